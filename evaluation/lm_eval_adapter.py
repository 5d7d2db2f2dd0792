"""lm-eval on our model: an `LM` over the model's graphs, and the run over a folder of tasks.

Scores go through the context-encoding graph, generation through both. Requests are cut from
the left to what the compiled shapes hold, as `HFLM` does, and give the scores it gives.
"""

# ruff: noqa: I001
from __future__ import annotations

import evaluation.offline  # noqa: F401  before any Hugging Face library

import contextlib
import io
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.metrics import bits_per_byte, bootstrap_stderr, weighted_perplexity
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evaluation.inputs import EvaluationError
from evaluation.interface import LanguageModel
from model.progress import progress
from evaluation.records import TaskResult
from evaluation.request_cache import Calls, RequestCache, Score, Tokens, difference, request_key
from evaluation.tasks import LoadedTask

log = logging.getLogger(__name__)

TokenRequest = tuple[Any, list[int], list[int]]
"""Request (for lm-eval's cache), context tokens, continuation tokens."""

ScoreKey = tuple[Tokens, Tokens]
"""The model's input, and the continuation."""

GenerateKey = tuple[Tokens, int, Tokens]
"""Prompt, how many new tokens, stop tokens."""

Key = TypeVar("Key")

BOOTSTRAPS = 1000
"""Resamplings behind the standard errors that have no formula, such as a perplexity's."""

RESAMPLED = (weighted_perplexity, bits_per_byte)
"""Aggregations over documents of unequal length. lm-eval's list of what its bootstrap is used for
(`stderr_for_metric`, up to 0.4.13) leaves them out, and gives their standard error as N/A."""


class NkiLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's view of a `LanguageModel`."""

    def __init__(
        self,
        model: LanguageModel,
        max_context: int,
        batch_size: int,
        cache: RequestCache | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: The model.
            max_context: Largest context-encoding bucket, in tokens.
            batch_size: Sequences given to the model at once.
            cache: Answers of earlier runs, and where new ones go.

        Raises:
            EvaluationError: the tokenizer has neither a BOS nor an EOS token.
        """
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_context = max_context
        self.batch_size = batch_size
        self.cache = cache or RequestCache(None, "")
        self.asked: set[ScoreKey | GenerateKey] = set()
        """The distinct requests so far; `run_tasks` empties it for each task."""
        self.cached: set[ScoreKey | GenerateKey] = set()
        """The requests that an earlier run had answered."""
        self._scores: dict[ScoreKey, Score] = {}
        self._generated: dict[GenerateKey, Tokens] = {}
        self._stops: dict[tuple[str, ...], list[int]] = {}
        if self.tokenizer.eos_token_id is None:
            raise EvaluationError("the tokenizer has no end-of-text token (eos_token)")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(
            string, self.tokenizer.decode(self.prefix_token_id)
        ):
            add_special_tokens = False
        kwargs = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(token) for token in self.tokenizer.encode(string, **kwargs)]

    # --- scores ---------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], **_options: object
    ) -> list[tuple[float, bool]]:
        """Sum of the continuation's log-probabilities in nats, and whether greedy decoding
        would have produced it, per request.

        Raises:
            EvaluationError: a continuation is empty or too long, or logits are not finite.
        """
        keys = [self._key(context, continuation) for _, context, continuation in requests]
        self.asked.update(keys)
        by_input: dict[Tokens, list[Tokens]] = {}
        for key in dict.fromkeys(keys):
            if key not in self._scores and not self._recall_score(key):
                by_input.setdefault(key[0], []).append(key[1])
        pending = sorted(by_input, key=lambda inputs: (len(inputs), inputs))
        for batch in progress(_batches(pending, self.batch_size), "batches of choices"):
            before = self._calls()
            found: dict[ScoreKey, Score] = {}
            for inputs, logits in zip(batch, self._logits(batch), strict=True):
                for continuation in by_input[inputs]:
                    found[inputs, continuation] = _score(logits, continuation)
            self._scores |= found
            kept = {request_key("score", *key): score for key, score in found.items()}
            self.cache.keep(kept, {}, difference(self.model.kernel_calls(), before))
        for (request, _, _), key in zip(requests, keys, strict=True):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, self._scores[key])
        return [self._scores[key] for key in keys]

    def _recall_score(self, key: ScoreKey) -> bool:
        """Take a score from the cache, if it is there."""
        score = self.cache.score(request_key("score", *key))
        if score is None:
            return False
        self._scores[key] = score
        self.cached.add(key)
        return True

    def _calls(self) -> Calls:
        return {kernel: dict(calls) for kernel, calls in self.model.kernel_calls().items()}

    def _key(self, context: list[int], continuation: list[int]) -> ScoreKey:
        """The model's input (all but the last token, cut from the left) and the continuation."""
        context = context or [self.prefix_token_id]
        if not 0 < len(continuation) <= self.max_context:
            raise EvaluationError(
                f"a continuation of {len(continuation)} tokens cannot be scored: the largest "
                f"context_encoding bucket holds {self.max_context}, and it must not be empty"
            )
        whole = (context + continuation)[-(self.max_context + 1) :]
        return tuple(whole[:-1]), tuple(continuation)

    def _logits(self, batch: Sequence[Tokens]) -> list[torch.Tensor]:
        result = list(self.model.logits([list(inputs) for inputs in batch]))
        for inputs, logits in zip(batch, result, strict=True):
            if logits.shape[0] != len(inputs) or not torch.isfinite(logits).all():
                raise EvaluationError(
                    f"the model's logits of {len(inputs)} tokens are NaN, infinite or of the "
                    f"wrong shape {list(logits.shape)}"
                )
        return result

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows of the largest bucket."""
        windows: list[TokenRequest] = []
        counts = []
        for request in requests:
            pairs = [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_context,
                    context_len=1,
                )
            ]
            windows += [(None, context, continuation) for context, continuation in pairs]
            counts.append(len(pairs))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    # --- generation -----------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first stop string.

        Raises:
            EvaluationError: a task asks for sampling, or for more tokens than the cache holds.
        """
        texts: list[str | None] = [None] * len(requests)
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        for index, request in enumerate(requests):
            options = normalize_gen_kwargs(request.args[1], self.model.max_length // 2)
            if options.get("do_sample"):
                raise EvaluationError("tasks that sample are not supported; set do_sample: false")
            until = tuple(handle_stop_sequences(options.get("until"), eos=eos))
            groups.setdefault((until, options["max_gen_toks"]), []).append(index)
        for (until, new_tokens), indices in groups.items():
            room = min(self.max_context, self.model.max_length - new_tokens)
            if room < 1 or new_tokens < 1:
                raise EvaluationError(
                    f"max_gen_toks is {new_tokens}; it must be at least 1 and leave room for a "
                    f"prompt in buckets.max_length, {self.model.max_length} tokens"
                )
            prompts = [
                self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id]
                for i in indices
            ]
            answers = self._generate(prompts, new_tokens, self._stop_tokens(until))
            for index, tokens in zip(indices, answers, strict=True):
                texts[index] = self._text(list(tokens), until)
        return [text if text is not None else "" for text in texts]

    def _generate(
        self, prompts: Sequence[list[int]], new_tokens: int, stops: list[int]
    ) -> list[Tokens]:
        """The new tokens of each prompt; those alike in length share a batch, and its bucket."""
        keys: list[GenerateKey] = [(tuple(x), new_tokens, tuple(stops)) for x in prompts]
        self.asked.update(keys)
        for key in set(keys) - self._generated.keys():
            tokens = self.cache.tokens(request_key("generate", *key))
            if tokens is not None:
                self._generated[key] = tokens
                self.cached.add(key)
        pending = sorted(set(keys) - self._generated.keys(), key=lambda key: (len(key[0]), key))
        for batch in progress(_batches(pending, self.batch_size), "batches of answers"):
            before = self._calls()
            outputs = self.model.generate_batch([list(key[0]) for key in batch], new_tokens, stops)
            found = {
                key: tuple(map(int, output)) for key, output in zip(batch, outputs, strict=True)
            }
            self._generated |= found
            kept = {request_key("generate", *key): tokens for key, tokens in found.items()}
            self.cache.keep({}, kept, difference(self.model.kernel_calls(), before))
        return [self._generated[key] for key in keys]

    def _stop_tokens(self, until: tuple[str, ...]) -> list[int]:
        """Tokens after which the text is sure to hold a stop string, and the end of text."""
        if until not in self._stops:
            stops = {self.eot_token_id}
            for token in range(len(self.tokenizer)):
                piece = self.tokenizer.decode([token], skip_special_tokens=False)
                if any(stop and stop in piece for stop in until):
                    stops.add(token)
            self._stops[until] = sorted(stops)
        return self._stops[until]

    def _text(self, tokens: list[int], until: tuple[str, ...]) -> str:
        if self.eot_token_id in tokens:
            tokens = tokens[: tokens.index(self.eot_token_id)]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, list(until), None))


def _batches(pending: Sequence[Key], size: int) -> list[Sequence[Key]]:
    """Batches of requests in order of length. The one that is not full comes first, among the
    short ones: its empty rows are computed too, and are cheapest in the smallest bucket.
    """
    first = len(pending) % size
    starts = range(first, len(pending), size)
    return [pending[:first]] * bool(first) + [pending[at : at + size] for at in starts]


def _score(logits: torch.Tensor, continuation: Tokens) -> Score:
    """The continuation's log-likelihood in nats from `[tokens, vocab]`, and if it is greedy."""
    rows = logits[-len(continuation) :].float()
    targets = torch.tensor(continuation)
    chosen = rows.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((rows.argmax(-1) == targets).all())


def run_tasks(
    model: LanguageModel,
    tasks: Sequence[LoadedTask],
    documents: int,
    max_context: int,
    batch_size: int,
    cache: RequestCache | None = None,
) -> list[TaskResult]:
    """Run tasks (of `load_tasks`) on their first `documents` documents.

    Args:
        model: The model.
        tasks: The tasks; each may be run once.
        documents: How many documents of each.
        max_context: Largest context-encoding bucket, in tokens.
        batch_size: Sequences given to the model at once.
        cache: Answers of earlier runs; its `kernel_calls` belong to those of the model then.

    Raises:
        EvaluationError: the model's outputs are not finite, or a task asks for what is not
            supported.
    """
    lm = NkiLM(model, max_context=max_context, batch_size=batch_size, cache=cache)
    return [_run_task(lm, loaded, documents) for loaded in tasks]


def _run_task(lm: NkiLM, loaded: LoadedTask, documents: int) -> TaskResult:
    start = time.perf_counter()
    lm.asked.clear()
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval would start a pool to resample 50 numbers
    loaded.task.set_fewshot_seed(seed=1234)  # lm-eval's default
    try:
        # Not simple_evaluate: it also runs a dozen programs to describe the machine.
        results = evaluate(
            lm,
            {"tasks": {loaded.name: loaded.task}, "groups": {}, "group_map": {}},
            limit=documents,
            bootstrap_iters=BOOTSTRAPS if documents > 1 else 0,
            log_samples=True,  # each document's figures, to resample
        )
        found = results["results"][loaded.name]
        found |= _resampled(loaded.task, found, results["samples"][loaded.name])
    except OverflowError as error:
        raise EvaluationError(f"task {loaded.name}: a metric is beyond a float: {error}") from None
    count = int(results["n-samples"][loaded.name]["effective"])
    metrics = _metrics(found)
    log.info(
        "task %s: %s on %d documents in %.1f s, %d of %d requests from an earlier run",
        loaded.name,
        ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
        count,
        time.perf_counter() - start,
        len(lm.asked & lm.cached),
        len(lm.asked),
    )
    return TaskResult(
        task=loaded.name,
        documents=count,
        metrics=metrics,
        chance=loaded.chance,
        source=loaded.source,
        requests=len(lm.asked),
        requests_cached=len(lm.asked & lm.cached),
    )


def _resampled(
    task: Any, results: dict[str, Any], samples: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """The standard errors of perplexities that lm-eval leaves out, by its own bootstrap over
    documents: `METRIC_stderr,FILTER: value`.
    """
    errors: dict[str, float] = {}
    for key in results:
        name, comma, filter_name = key.partition(",")
        aggregation = task.aggregation().get(name) if comma else None
        if aggregation not in RESAMPLED:
            continue
        items = [sample[name] for sample in samples if sample["filter"] == filter_name]
        if len(items) > 1:
            with contextlib.redirect_stdout(io.StringIO()):  # it says that it begins
                error = bootstrap_stderr(aggregation, items, iters=BOOTSTRAPS)
            errors[f"{name}_stderr,{filter_name}"] = error
    return errors


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    """lm-eval's `METRIC,FILTER: value` as `METRIC: value`, standard errors (`METRIC_stderr`) too.

    With more than one filter the later ones keep theirs: `METRIC_FILTER`.
    """
    metrics: dict[str, float] = {}
    names: dict[str, str] = {}
    for key, value in results.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr") or isinstance(value, str):
            continue
        names[key] = name if name not in metrics else f"{name}_{filter_name}"
        metrics[names[key]] = float(value)
        error = results.get(f"{name}_stderr,{filter_name}")
        if isinstance(error, int | float):
            metrics[f"{names[key]}_stderr"] = float(error)
    return metrics
