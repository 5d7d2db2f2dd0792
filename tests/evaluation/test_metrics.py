"""The metrics' names say what they are, and MLflow takes them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import samples

from evaluation.estimates import PromptScore, Score
from evaluation.metrics import kernel_calls, key_metrics, metrics, token_latencies, worst
from evaluation.results import ConfigurationResults, read_results


@pytest.fixture
def found(tmp_path: Path) -> ConfigurationResults:
    results = samples.project(tmp_path)
    samples.write(results, "norms")
    return read_results(results, "tiny", "norms")


def test_names_and_values(found: ConfigurationResults) -> None:
    values = metrics(found)
    expected = {
        "latency_measured_simulator/ttft_ms_p50": 21.56,
        "latency_measured_simulator/tpot_ms_p50": 5.39,
        "latency_measured_simulator/end_to_end_ms_p50": 107.8,
        "latency_measured_simulator/ttft_ms_p50_short_prompts": 21.56,
        "throughput_measured_simulator/output_tokens_per_s": 160 / 1.1,
        "quality/bfloat16_kl_per_token_context_encoding": 1.2e-5,
        "quality/bfloat16_top1_agreement_token_generation": 0.992,
        "quality/float32_relative_l2_error_token_generation": 3.1e-6,
        "quality/op_rmsnorm_bfloat16_max_relative_error": 3.9e-3,
        "quality/task_nano_arithmetic_acc": 0.84,
        "quality/task_nano_text_word_perplexity": 4.2,
        "quality/prompts_correct_share": 1.0,
        "trace_counted/nki_flops_ratio": 0.02,
        "nki_calls_counted/nki_rmsnorm_kernel": 288.0,
        "nki_calls_counted/nki_silu_kernel": 0.0,
        "stages_measured_host/compile_s": 1.5,
        "programs_counted_trn2/instructions": 48.0,
    }
    assert {name: values.get(name) for name in expected} == pytest.approx(expected)


def test_matching_rounding_and_error_budget_have_sections(found: ConfigurationResults) -> None:
    assert found.accuracy is not None
    assert found.error_map is not None
    values = metrics(found)
    for rounding in found.accuracy.rounding:
        name = f"quality_rounding/bfloat16_kl_p90_ratio_{rounding.graph}"
        assert values[name] == rounding.kl_p90_ratio
    for match in found.accuracy.matches:
        section = f"quality_matching/{match.comparison.split()[0]}"
        assert values[f"{section}_divergences"] == match.divergences
        assert values[f"{section}_passed"] == match.passed
        for top in match.top_k:
            error = values[f"{section}_relative_error_top_{top.k or 'all'}"]
            assert error == top.relative_error
    assert {values[f"quality_matching/{x}_passed"] for x in ("float32", "bfloat16")} == {0, 1}
    budget = {name for name in values if name.startswith("quality_error_budget/")}
    assert len(budget) == 2 * len(found.error_map.budget) > 0
    for row in found.error_map.budget:
        name = f"quality_error_budget/{row.dtype}_{row.op}_relative_l2_error_{row.graph}"
        assert values[name] == row.relative_l2_error


SCORE = Score(
    source="predicted", device="trn2", base="baseline, predicted for trn2", comparable=False,
    accuracy=1, total=6.0, total_corrected=5.0, notes=(),
    prompts=(
        PromptScore(
            prompt="short prompt", context_tokens=18, new_tokens=622, context_bucket=64,
            base_latency_ms=4000.0, latency_ms=2000.0, base_tokens_per_s=160.0,
            tokens_per_s=320.0, nki_flops_ratio=0.5, nki_flops_ratio_weighted=0.25, score=6.0,
            score_corrected=5.0,
        ),
    ),
)  # fmt: skip


def test_the_score_has_a_section_that_says_it_is_predicted(found: ConfigurationResults) -> None:
    names = {name: value for name, value in metrics(found, SCORE).items() if "score" in name}
    assert names == {
        "score_predicted_trn2/total": 6.0,
        "score_predicted_trn2/total_corrected": 5.0,
        "score_predicted_trn2/accuracy": 1.0,
        "score_predicted_trn2/prompt_short_prompt": 6.0,
        "score_predicted_trn2/prompt_short_prompt_corrected": 5.0,
    }
    measured = SCORE.model_copy(update={"source": "measured", "device": "neuron"})
    assert "score_measured_neuron/total" in metrics(found, measured)
    assert "score_measured_neuron/total" in key_metrics("neuron", "trn2")
    assert "score_predicted_trn2/total" in key_metrics("simulator", "trn2")
    assert not any("score_" in name for name in metrics(found))


def test_a_wrong_configuration_has_no_ratio_to_the_baseline(found: ConfigurationResults) -> None:
    assert found.accuracy is not None
    ratio = "latency_ratio_measured_simulator/end_to_end_ratio"
    assert metrics(found)[ratio] == pytest.approx(1.1)
    wrong = found.accuracy.model_copy(update={"verdict": "fail"})
    values = metrics(replace(found, accuracy=wrong))
    assert not any(name.startswith("latency_ratio") for name in values)
    assert "latency_measured_simulator/ttft_ms_p50" in values


def test_mlflow_allows_every_name(found: ConfigurationResults) -> None:
    for name in metrics(found, SCORE):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII), name
        assert len(name) <= 250


def test_a_clocks_reading_names_its_device(found: ConfigurationResults) -> None:
    assert found.generation is not None
    timed = [name for name in metrics(found) if "_ms" in name or "per_s" in name]
    measured = [name for name in timed if "_measured_" in name]
    assert measured
    assert all("_measured_simulator/" in name for name in measured)
    assert not any("trn" in name or "neuron" in name for name in measured)
    predicted = set(timed) - set(measured)
    assert "latency_predicted_trn3/tpot_ms" in predicted
    assert all(re.match(r"latency_predicted_trn[23]/", name) for name in predicted)
    on_device = found.generation.model_copy(update={"device": "neuron"})
    names = metrics(ConfigurationResults(name="norms", generation=on_device))
    assert "latency_measured_neuron/ttft_ms_p50" in names
    assert not any("simulator" in name for name in names)


def test_nothing_gives_nothing() -> None:
    assert metrics(ConfigurationResults(name="norms")) == {}


def test_not_a_number_is_left_out_and_marked(found: ConfigurationResults) -> None:
    assert found.accuracy is not None
    broken = [
        logits.model_copy(update={"kl_per_token_mean": math.nan, "finite": False})
        for logits in found.accuracy.logits
    ]
    accuracy = found.accuracy.model_copy(update={"logits": broken})
    results = ConfigurationResults(name="norms", accuracy=accuracy)
    values = metrics(results)
    assert "quality/bfloat16_kl_per_token_context_encoding" not in values
    assert values["quality/bfloat16_finite_context_encoding"] == 0.0
    assert math.isnan(worst(results, "bfloat16", "kl_per_token_mean") or 0.0)


def test_kernel_calls_are_summed_and_a_silent_kernel_is_zero(found: ConfigurationResults) -> None:
    assert kernel_calls(found) == {"nki_rmsnorm_kernel": 288, "nki_qk_rmsnorm_kernel": 288}
    silent = ConfigurationResults(name="norms", manifest=found.manifest)
    assert kernel_calls(silent) == {"nki_rmsnorm_kernel": 0, "nki_qk_rmsnorm_kernel": 0}


def test_a_kernel_from_a_file_has_a_valid_name(found: ConfigurationResults) -> None:
    assert found.generation is not None
    generation = found.generation.model_copy(
        update={"kernel_calls": {"../my kernels/a.py:norm": {"token_generation": 3}}}
    )
    values = metrics(ConfigurationResults(name="x", generation=generation))
    assert values["nki_calls_counted/my_kernels_a.py_norm"] == 3.0


def test_token_latencies_are_medians_by_position(found: ConfigurationResults) -> None:
    assert found.generation is not None
    assert token_latencies(found.generation) == pytest.approx([5.0, 5.5, 5.0])
