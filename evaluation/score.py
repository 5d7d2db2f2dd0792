"""The contest's score of a configuration, by its own formula and by a corrected one.

AWS's kernel contest for this model (nki-moe, main.py) scores a prompt as

    accuracy * (base latency / latency) * (tokens per s / base tokens per s) * (1 + ratio)

and adds up five prompts. The latency is the 99th percentile of a whole generation, the tokens
per second count the prompt too, and the ratio is (MACs in NKI) / (all MACs) with both graphs
counted once, at their smallest buckets: context encoding, which runs once, outweighs token
generation, which runs for every token. The corrected score weighs each graph by how often it
runs for the prompt, at the buckets that the prompt uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.estimates import PromptScore, Score
from evaluation.latency_records import SideLatency
from evaluation.results import ConfigurationResults
from model.configuration import Config
from model.records import GraphTrace, TraceSummary

CONTEST_MODEL = Path("model/checkpoints/qwen3-30b-a3b/config.json")
CONTEST_TOKENS = 640
"""Prompt and output of every contest run."""


@dataclass(frozen=True)
class ContestPrompt:
    """One of the contest's prompts and its base figures: stock NxD Inference, TP 4, batch 1."""

    context_tokens: int
    latency_ms: dict[str, float]
    tokens_per_s: dict[str, float]


CONTEST: dict[str, ContestPrompt] = {
    "0": ContestPrompt(18, {"trn2": 12498.0, "trn3": 17138.28}, {"trn2": 51.86, "trn3": 37.87}),
    "1": ContestPrompt(126, {"trn2": 9432.19, "trn3": 12427.41}, {"trn2": 70.24, "trn3": 52.34}),
    "2": ContestPrompt(43, {"trn2": 12089.08, "trn3": 16208.29}, {"trn2": 54.40, "trn3": 40.25}),
    "3": ContestPrompt(10, {"trn2": 12868.67, "trn3": 17177.15}, {"trn2": 50.89, "trn3": 37.93}),
    "4": ContestPrompt(402, {"trn2": 3041.92, "trn3": 3871.62}, {"trn2": 217.74, "trn3": 168.39}),
}
"""Measured by the contest on the devices; from its main.py and result files (nki-moe)."""


@dataclass(frozen=True)
class Figures:
    """A prompt's latency and throughput, of the configuration or of what it is compared with."""

    latency_ms: float
    tokens_per_s: float


@dataclass(frozen=True)
class Workload:
    """A prompt and how much is generated after it."""

    name: str
    context_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Prompt and output."""
        return self.context_tokens + self.new_tokens


def contest_score(accuracy: int, base: Figures, own: Figures, ratio: float) -> float:
    """The contest's formula for one prompt; `ratio` is the NKI FLOPs ratio."""
    speed = base.latency_ms / own.latency_ms * (own.tokens_per_s / base.tokens_per_s)
    return accuracy * speed * (1 + ratio)


def weighted_ratio(trace: TraceSummary, work: Workload) -> float:
    """(MACs needed in NKI) / (all MACs needed), each graph as often as it runs for a prompt.

    Raises:
        KeyError: no bucket holds the prompt.
    """
    context = trace_of(trace, work)
    [step] = [graph for graph in trace.graphs if graph.graph == "token_generation"]
    steps = work.new_tokens - 1  # the first token comes from context encoding
    inside = context.macs_needed_nki + steps * step.macs_needed_nki
    return inside / (context.macs_needed_total + steps * step.macs_needed_total)


def trace_of(trace: TraceSummary, work: Workload) -> GraphTrace:
    """Context encoding at the smallest bucket that holds the prompt.

    Raises:
        KeyError: there is none.
    """
    fitting = [
        graph
        for graph in trace.graphs
        if graph.graph == "context_encoding" and _bucket_tokens(graph.bucket) >= work.context_tokens
    ]
    if not fitting:
        raise KeyError(f"no context_encoding bucket holds {work.context_tokens} tokens")
    return min(fitting, key=lambda graph: _bucket_tokens(graph.bucket))


def predicted_figures(trace: TraceSummary, work: Workload) -> Figures:
    """Context encoding at the prompt's own bucket and a decode step for every further token.

    Raises:
        KeyError: no bucket holds the prompt, or nothing is predicted for the trace's target.
    """
    bucket = trace_of(trace, work).bucket
    predictions = {
        (graph.graph, graph.bucket): graph.predicted_ms
        for graph in trace.predictions[trace.target].graphs
    }
    [step] = [ms for (graph, _), ms in predictions.items() if graph == "token_generation"]
    latency = predictions["context_encoding", bucket] + (work.new_tokens - 1) * step
    return Figures(latency, 1e3 * work.tokens / latency)


def score(
    config: Config,
    found: ConfigurationResults,
    baseline: ConfigurationResults | None,
) -> Score | None:
    """Score a configuration: from measured latencies on a device, else from predicted ones.

    A simulator's wall clock is never used. Where the model is not the contest's, its base
    latencies mean nothing; the baseline configuration's own take their place.

    Args:
        config: the evaluation.
        found: the configuration's results.
        baseline: those of `config.latency.baseline`.

    Returns:
        None if the trace, the verdict's results or the base figures are missing.
    """
    if found.trace is None or found.accuracy is None or found.latency is None:
        return None
    contest = is_contest_model(config)
    measured = found.latency.measured if config.device == "neuron" else None
    if config.device == "neuron" and measured is None:
        return None
    works = _workloads(config, found, contest and measured is None)
    accuracy: Literal[0, 1] = (
        1 if found.accuracy.verdict == "pass" and not found.latency.withheld else 0
    )
    prompts, bases = [], set()
    for work in works:
        try:
            own = _figures(measured, found.trace, work)
            base, origin = _base(config, found, baseline, work, contest)
            prompts.append(_prompt(accuracy, base, own, found.trace, work))
        except KeyError:
            return None
        bases.add(origin)
    if not prompts or len(bases) != 1:
        return None
    [origin] = bases
    return Score(
        source="predicted" if measured is None else "measured",
        device=found.trace.target if measured is None else config.device,
        base=origin,
        comparable=origin.startswith("the contest") and len(prompts) == len(CONTEST),
        accuracy=accuracy,
        prompts=tuple(prompts),
        total=sum(prompt.score for prompt in prompts),
        total_corrected=sum(prompt.score_corrected for prompt in prompts),
        notes=_notes(measured is None, origin),
    )


def is_contest_model(config: Config) -> bool:
    """Whether the evaluated model has the architecture that the contest's base figures are of."""
    source = config.models[config.model]
    folder = Path(source.architecture or source.source)
    try:
        found, wanted = (
            json.loads(path.read_text(encoding="utf-8"))
            for path in (folder / "config.json", CONTEST_MODEL)
        )
    except (OSError, ValueError):
        return False
    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_experts",
        "moe_intermediate_size",
        "vocab_size",
    )
    return all(found.get(key) == wanted.get(key) for key in keys)


def _workloads(config: Config, found: ConfigurationResults, contest: bool) -> list[Workload]:
    """The contest's prompts, or those that the latency stage ran."""
    if contest:
        return [
            Workload(name, x.context_tokens, CONTEST_TOKENS - x.context_tokens)
            for name, x in CONTEST.items()
        ]
    side = found.latency.measured if found.latency else None
    return [
        Workload(prompt.prompt, prompt.prompt_tokens, prompt.new_tokens)
        for prompt in (side.prompts if side else [])
    ]


def _figures(measured: SideLatency | None, trace: TraceSummary, work: Workload) -> Figures:
    if measured is None:
        return predicted_figures(trace, work)
    [prompt] = [prompt for prompt in measured.prompts if prompt.prompt == work.name]
    return Figures(prompt.end_to_end_ms.p99.value, prompt.total_tokens_per_s)


def _base(
    config: Config,
    found: ConfigurationResults,
    baseline: ConfigurationResults | None,
    work: Workload,
    contest: bool,
) -> tuple[Figures, str]:
    """The base figures and where they are from.

    Raises:
        KeyError: there are none.
    """
    if contest and work.tokens == CONTEST_TOKENS:
        for prompt in CONTEST.values():
            if prompt.context_tokens == work.context_tokens:
                target = config.target
                figures = Figures(prompt.latency_ms[target], prompt.tokens_per_s[target])
                return figures, f"the contest's, measured on {target}"
    if config.device == "neuron":
        side = found.latency.measured_baseline if found.latency else None
        if side is None or found.trace is None:
            raise KeyError("no measured baseline")
        return _figures(side, found.trace, work), f"{side.configuration}, measured beside it"
    if baseline is None or baseline.trace is None:
        raise KeyError("no trace of the baseline")
    origin = f"{baseline.name}, predicted for {baseline.trace.target}"
    return predicted_figures(baseline.trace, work), origin


def _prompt(
    accuracy: int, base: Figures, own: Figures, trace: TraceSummary, work: Workload
) -> PromptScore:
    weighted = weighted_ratio(trace, work)
    return PromptScore(
        prompt=work.name,
        context_tokens=work.context_tokens,
        new_tokens=work.new_tokens,
        context_bucket=_bucket_tokens(trace_of(trace, work).bucket),
        base_latency_ms=base.latency_ms,
        latency_ms=own.latency_ms,
        base_tokens_per_s=base.tokens_per_s,
        tokens_per_s=own.tokens_per_s,
        nki_flops_ratio=trace.nki_flops_ratio,
        nki_flops_ratio_weighted=weighted,
        score=contest_score(accuracy, base, own, trace.nki_flops_ratio),
        score_corrected=contest_score(accuracy, base, own, weighted),
    )


def _notes(predicted: bool, origin: str) -> tuple[str, ...]:
    notes = []
    if predicted:
        notes.append(
            "Latencies are predicted: the device's time only, without host, tokenizer and "
            "sampling; ops without a kernel are coarse estimates."
        )
        if origin.startswith("the contest"):
            notes.append("The base was measured on a device, so that the ratio is of two kinds.")
    if not origin.startswith("the contest"):
        notes.append("The base is not the contest's: the score compares with this baseline only.")
    return tuple(notes)


def _bucket_tokens(bucket: str) -> int:
    """Tokens of each sequence in `BATCHxTOKENS`."""
    return int(bucket.partition("x")[2])
