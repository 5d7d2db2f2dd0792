"""The contest's score, by its formula and corrected, with its ingredients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import samples

from evaluation.results import ConfigurationResults, read_results
from evaluation.score import CONTEST, Figures, Workload, contest_score, score, weighted_ratio
from model.configuration import Config


def test_the_formula_gives_the_winners_score() -> None:
    """facts/nxdi.md §2: latency 4.2019 and throughput 4.2363 times, ratio 0.9929: 35.475."""
    base = Figures(latency_ms=4.2019, tokens_per_s=1.0)
    own = Figures(latency_ms=1.0, tokens_per_s=4.2363)
    assert contest_score(1, base, own, 0.9929) == pytest.approx(35.475, rel=1e-4)
    assert contest_score(0, base, own, 0.9929) == 0.0


def test_the_winners_score_on_trn3_from_the_base_latencies() -> None:
    """Prompt by prompt from the table: the winner's are 3.8 to 4.3 times shorter."""
    winner = {"0": 4078.7, "1": 3057.0, "2": 3821.1, "3": 4095.8, "4": 1012.9}
    speedups = [CONTEST[name].latency_ms["trn3"] / ms for name, ms in winner.items()]
    assert min(speedups) > 3.8
    assert max(speedups) < 4.3
    # Throughput counts 640 tokens over the mean, which is below the 99th percentile.
    for prompt in CONTEST.values():
        for target in ("trn2", "trn3"):
            tokens = prompt.latency_ms[target] * prompt.tokens_per_s[target] / 1e3
            assert 638 < tokens < 1.05 * 640


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = samples.project(tmp_path)
    for name in ("baseline", "norms"):
        samples.write(folder, name)
    return folder


def read(results: Path, name: str) -> ConfigurationResults:
    return read_results(results, "tiny", name)


def test_a_small_model_is_scored_against_its_baseline_by_predictions(results: Path) -> None:
    baseline, norms = read(results, "baseline"), read(results, "norms")
    assert norms.trace is not None
    faster = samples.trace(
        "norms", samples.OPS_OF["norms"], slower=samples.PREDICTED["baseline"] / 2
    )
    norms = ConfigurationResults(
        "norms", trace=faster, accuracy=norms.accuracy, latency=norms.latency
    )
    found = score(samples.config(), norms, baseline)
    assert found is not None
    assert (found.source, found.device) == ("predicted", "trn2")
    assert found.base == "baseline, predicted for trn2"
    assert not found.comparable
    assert found.accuracy == 1
    assert [x.prompt for x in found.prompts] == ["short", "long"]
    for prompt in found.prompts:
        assert prompt.base_latency_ms / prompt.latency_ms == pytest.approx(2.0)
        assert prompt.score == pytest.approx(4.0 * (1 + faster.nki_flops_ratio))
        assert prompt.score_corrected == pytest.approx(4.0 * (1 + prompt.nki_flops_ratio_weighted))
    assert found.total == pytest.approx(sum(x.score for x in found.prompts))
    assert any("predicted" in note for note in found.notes)


def test_the_simulators_clock_is_not_in_the_score(results: Path) -> None:
    baseline, norms = read(results, "baseline"), read(results, "norms")
    slow = ConfigurationResults(
        "norms",
        trace=norms.trace,
        accuracy=norms.accuracy,
        latency=samples.latency("norms", ratio=100.0),
    )
    assert score(samples.config(), slow, baseline) == score(samples.config(), norms, baseline)


def test_a_failed_gate_scores_nothing(results: Path) -> None:
    baseline, norms = read(results, "baseline"), read(results, "norms")
    wrong = samples.accuracy("norms", samples.OPS_OF["norms"], passed=False)
    found = score(
        samples.config(),
        ConfigurationResults("norms", trace=norms.trace, accuracy=wrong, latency=norms.latency),
        baseline,
    )
    assert found is not None
    assert (found.accuracy, found.total, found.total_corrected) == (0, 0.0, 0.0)


def test_each_graph_counts_as_often_as_it_runs(results: Path) -> None:
    trace = read(results, "norms").trace
    assert trace is not None
    context, step = trace.graphs
    changed = trace.model_copy(
        update={
            "graphs": [
                context.model_copy(update={"macs_needed_nki": 0, "macs_needed_total": 1000}),
                step.model_copy(update={"macs_needed_nki": 10, "macs_needed_total": 10}),
            ]
        }
    )
    assert weighted_ratio(changed, Workload("p", 64, 101)) == pytest.approx(0.5)
    assert weighted_ratio(changed, Workload("p", 64, 1)) == 0.0
    with pytest.raises(KeyError):
        weighted_ratio(changed, Workload("p", 65, 2))


def test_the_contests_model_is_scored_on_its_prompts_and_base(results: Path) -> None:
    folder = Path("model/checkpoints/qwen3-30b-a3b")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(architecture := {"hidden_size": 2048}))
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text(json.dumps(architecture))
    norms = read(results, "norms")
    assert norms.trace is not None
    wide = norms.trace.model_dump_json().replace('"1x64"', '"1x512"')
    trace = type(norms.trace).model_validate_json(wide)
    config: Config = samples.config()
    found = score(
        config,
        ConfigurationResults("norms", trace=trace, accuracy=norms.accuracy, latency=norms.latency),
        None,
    )
    assert found is not None
    assert found.comparable
    assert found.base == "the contest's, measured on trn2"
    assert [(x.context_tokens, x.new_tokens) for x in found.prompts][4] == (402, 238)
    assert found.prompts[0].base_latency_ms == 12498
    assert any("two kinds" in note for note in found.notes)


def test_without_a_trace_there_is_no_score(results: Path) -> None:
    norms = read(results, "norms")
    bare = ConfigurationResults("norms", accuracy=norms.accuracy, latency=norms.latency)
    assert score(samples.config(), bare, read(results, "baseline")) is None
    assert score(samples.config(), norms, None) is None
