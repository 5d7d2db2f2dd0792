"""What plots show, as far as it can be told without looking."""

from __future__ import annotations

import numpy as np
import pytest
import samples

from evaluation.plots_error import _slots, _spread
from evaluation.plots_model import by_op
from evaluation.plots_timeline import occupancy, read_step
from evaluation.records import CutPoint
from model.records import RecordError


def cut_points(*sites: tuple[int | None, str]) -> list[CutPoint]:
    sample = samples.error_map("norms", ["rmsnorm"]).cut_points[0]
    return [
        sample.model_copy(update={"order": order, "layer": layer, "op": op})
        for order, (layer, op) in enumerate(sites)
    ]


def test_layers_stand_below_each_other_though_a_composite_has_fewer_outputs() -> None:
    plain = cut_points((None, "embedding"), (0, "a"), (0, "b"), (1, "a"), (1, "b"), (None, "head"))
    fused = cut_points((0, "ab"), (1, "ab"), (None, "head"))
    slots = _slots([fused, plain])
    assert list(slots.values()) == [1, 2, 2, 1]
    assert [point and point.op for point in _spread(plain, slots)] == [
        "embedding", "a", "b", "a", "b", "head",
    ]  # fmt: skip
    assert [point and point.op for point in _spread(fused, slots)] == [
        None, "ab", "ab", "ab", "ab", "head",
    ]  # fmt: skip


def test_occupancy_counts_what_overlaps_once() -> None:
    spans = [(0.0, 5.0), (2.0, 6.0), (9.0, 20.0)]
    assert occupancy(spans, 0.0, 10.0, 5) == pytest.approx([1, 1, 1, 0, 0.5])
    assert np.all(occupancy([], 0.0, 10.0, 5) == 0)


def test_an_ops_shapes_are_added_up_and_the_longest_is_first() -> None:
    trace = samples.trace("norms", ["rmsnorm"])
    ops = by_op(trace.predictions["trn2"].ops)
    assert ops[0].op == "experts_decode"
    assert ops[0].predicted_us == 6000.0
    assert ops[0].calls == 18


@pytest.mark.parametrize("content", [b"", b"{}", b"\x1f\x8b broken"])
def test_a_broken_timeline_is_named(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("trace") / "decode_step.json.gz"
    file.write_bytes(content)
    with pytest.raises(RecordError, match=r"decode_step\.json\.gz: not a timeline"):
        read_step(file)
