"""The figures of the accuracy benchmark, on predictions made up for the purpose."""

import math

import pytest

import simulator.finder  # noqa: F401
from benchmarks import timing_accuracy as accuracy
from benchmarks.published import rows
from simulator.dtypes import float32
from simulator.specialise import TensorSpec


def prediction(family, predicted, measured, source="a"):
    return accuracy.Prediction(
        row="r",
        source=source,
        family=family,
        kernel="k",
        shape="s",
        dtype="fp32",
        device="trn2",
        metric="m",
        grade="A",
        measured_us=measured,
        predicted_us=predicted,
        ratio=predicted / measured,
        instructions=1,
        hbm_read_bytes=0,
        hbm_write_bytes=0,
    )


def test_rank_correlation_is_one_for_the_right_order_whatever_the_scale():
    found = [prediction("f", p, m) for p, m in ((1, 10), (2, 11), (30, 12))]
    assert accuracy.rank_correlations(found) == {"f": pytest.approx(1)}


def test_measurements_within_the_noise_of_measuring_are_not_ranked():
    pairs = ((2, 10), (1, 10.1), (4, 12), (5, 14))
    found = [prediction("f", p, m) for p, m in pairs]
    assert accuracy.rank_correlations(found)["f"] == pytest.approx(1)
    assert accuracy.rank_correlations(found, noise=0)["f"] == pytest.approx(0.8)


def test_rank_correlation_is_minus_one_for_the_reverse_order():
    found = [prediction("f", p, m) for p, m in ((3, 10), (2, 11), (1, 12))]
    assert accuracy.rank_correlations(found) == {"f": pytest.approx(-1)}


def test_rows_of_one_and_the_same_program_count_as_one_member():
    found = [prediction("f", p, m) for p, m in ((1, 10), (1, 12), (2, 11.5), (3, 13))]
    assert accuracy.rank_correlations(found)["f"] == pytest.approx(1)


def test_a_pair_is_no_family():
    assert accuracy.rank_correlations([prediction("f", 1, 1), prediction("f", 2, 2)]) == {}


def test_summary(monkeypatch):
    monkeypatch.setattr(accuracy, "instruction_error", lambda: 2.5)
    found = [
        prediction("f", 110, 100),
        prediction("f", 80, 100.5, "b"),
        prediction("f", 130, 101),
    ]
    figures = accuracy.summary(found)
    assert figures["rows"] == 3
    assert figures["sources"] == 2
    assert figures["median_abs_error_pct"] == pytest.approx(20.4, abs=0.1)
    assert figures["p90_abs_error_pct"] > figures["median_abs_error_pct"]
    assert figures["instruction_median_error_pct"] == 2.5


def test_the_same_launch_is_predicted_once():
    launch = rows.Launch("nkibench:silu", ((128, 1, 1024),), "float32", "trn1")
    known = {}
    first = accuracy.play(launch, known)
    assert accuracy.play(launch, known) is first
    assert len(known) == 1
    assert first[0] > 0
    assert first[3] == first[4] == 128 * 1024 * 4


def test_issue_bound_counts_the_busiest_engine_at_64_cycles():
    from benchmarks.published.conv1d import streamed

    program = streamed.specialise(TensorSpec((1, 128, 512), float32), TensorSpec((128, 3), float32))
    vector = program.instructions_by_engine()["vector"]
    assert vector >= 2 * 512
    assert accuracy.least_issue_us(program, "trn1") == pytest.approx(vector * 64 / 1.12 / 1000)


def test_a_run_faster_than_its_instructions_can_be_issued_is_no_run_as_published():
    table = [row for row in rows.read_rows() if row["id"] == "chau-attn-002"]
    quick = [dict(table[0], measured_us="0.1")]
    found, refused = accuracy.predictions(quick)
    assert found == []
    assert refused == {"chau-attn-002": accuracy.REWRITTEN}


def test_a_prediction_carries_its_row_and_its_ratio():
    table = [row for row in rows.read_rows() if row["id"] == "chau-attn-002"]
    found, refused = accuracy.predictions(table)
    assert not refused
    assert found[0].ratio == pytest.approx(found[0].predicted_us / 31, rel=1e-3)
    assert not math.isnan(found[0].predicted_us)


def test_kernels_read_the_bytes_that_their_publishers_counted():
    """HBM reads published with the latencies, less the identity matrix they load (64 KiB)."""
    published = {
        "nkibench-003": 42012672,
        "nkibench-007": 268435456,
        "nkibench-012": 358612992,
        "nkibench-013": 117440512,
        "chau-prof-004": 10027008,
        "chau-prof-009": 1638400,
    }
    table = [row for row in rows.read_rows() if row["id"] in published]
    found, _ = accuracy.predictions(table)
    assert len(found) == len(published)
    for p in found:
        assert published[p.row] - p.hbm_read_bytes in (0, 65536)
