"""Generate: run the prompts, greedily and by seeded sampling, and time them.

TTFT is the time from the prompt to the first token; ITL the time between two tokens; TPOT
the mean ITL of a run; end-to-end latency the time to the last token. All are measured by this
machine's clock on the device named in the record.
"""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np

from model.configuration import (
    Config,
    Sampling,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.decoding import Generation
from model.fingerprint import file_sha256, fingerprint
from model.progress import progress
from model.prompts import Prompt, read_prompts
from model.records import (
    CompileManifest,
    GenerationRecord,
    LatencySummary,
    PromptResult,
    RunTiming,
)
from model.runtime import LanguageModel, PromptError, load

log = logging.getLogger(__name__)


def generate(
    config: Config, name: str, manifest: Path, checkpoint: Path, output: Path
) -> GenerationRecord:
    """Run every prompt of `config.generate.prompts` in both modes; write the record.

    Raises:
        GraphError: a kernel changed since it was compiled, or a graph is another.
        PromptError: a prompt does not fit the buckets or the vocabulary.
    """
    compiled = CompileManifest.read(manifest)
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    model = load(checkpoint, configuration, dtype=config.dtype, config=config, compiled=manifest)
    prompts_file = Path(config.generate.prompts)
    prompts = read_prompts(prompts_file)
    encoded = [_encode(model, prompt) for prompt in prompts]
    results = []
    modes = (None, config.generate.sampling)
    for sampling, (prompt, tokens) in progress(
        list(product(modes, zip(prompts, encoded, strict=True))), "prompts"
    ):
        results.append(_run(model, config, prompt, tokens, sampling))
        log.info("%s %s: %s", prompt.name, results[-1].mode, results[-1].output_text)
    record = GenerationRecord(
        model=config.model,
        configuration=name,
        device=config.device,
        dtype=config.dtype,
        warmup_runs=config.generate.warmup_runs,
        prompts=results,
        measured=summarise(results),
        kernel_calls=model.kernel_calls(),
        fingerprint=fingerprint(
            compiled.fingerprint,
            file_sha256(prompts_file),
            config.generate,
            config.buckets,
            [[result.mode, result.output_tokens] for result in results],
        ),
    )
    record.write(output)
    return record


def _encode(model: LanguageModel, prompt: Prompt) -> list[int]:
    tokenizer = model.tokenizer
    tokens: list[int] = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise PromptError(f"prompt {prompt.name!r} has no tokens")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        raise PromptError(
            f"prompt {prompt.name!r} has words outside the model's vocabulary: {prompt.text!r}"
        )
    if len(tokens) > model.buckets[-1]:
        raise PromptError(
            f"prompt {prompt.name!r} has {len(tokens)} tokens, more than the largest "
            f"context_encoding bucket ({model.buckets[-1]})"
        )
    return tokens


def _run(
    model: LanguageModel,
    config: Config,
    prompt: Prompt,
    tokens: list[int],
    sampling: Sampling | None,
) -> PromptResult:
    settings = config.generate
    stop = [] if model.tokenizer.eos_token_id is None else [model.tokenizer.eos_token_id]
    runs: list[Generation] = []
    for _ in range(settings.warmup_runs + settings.measured_runs):
        runs += model.generate([tokens], settings.max_new_tokens, stop, sampling)
    measured = runs[settings.warmup_runs :]
    output = measured[0].tokens
    text: str = model.tokenizer.decode(output, skip_special_tokens=True).strip()
    return PromptResult(
        name=prompt.name,
        task=prompt.task,
        length=prompt.length,
        prompt_tokens=len(tokens),
        mode="greedy" if sampling is None else "sampling",
        seed=None if sampling is None else sampling.seed,
        output_tokens=output,
        output_text=text,
        expected=prompt.expected,
        correct=None if prompt.expected is None else is_correct(text, prompt.expected),
        runs=[
            RunTiming(ttft_ms=r.ttft_ms, itl_ms=r.itl_ms, end_to_end_ms=r.end_to_end_ms)
            for r in measured
        ],
    )


def is_correct(output: str, expected: str) -> bool:
    """Whether the output starts with the expected words, whole."""
    words = expected.split()
    return output.split()[: len(words)] == words


def summarise(results: list[PromptResult]) -> LatencySummary:
    """Percentiles over all measured runs; a run of one token has no TPOT."""
    runs = [run for result in results for run in result.runs]
    first = [run.ttft_ms for run in runs]
    per_token = [fmean(run.itl_ms) for run in runs if run.itl_ms]
    total = [run.end_to_end_ms for run in runs]
    tokens = sum(1 + len(run.itl_ms) for run in runs)
    if not per_token:
        raise PromptError("no prompt generated a second token, so there is no TPOT to measure")
    return LatencySummary(
        ttft_ms_p50=float(np.percentile(first, 50)),
        ttft_ms_p99=float(np.percentile(first, 99)),
        tpot_ms_p50=float(np.percentile(per_token, 50)),
        tpot_ms_p99=float(np.percentile(per_token, 99)),
        end_to_end_ms_p50=float(np.percentile(total, 50)),
        end_to_end_ms_p99=float(np.percentile(total, 99)),
        output_tokens_per_s=1e3 * tokens / sum(total),
        runs=len(runs),
    )
