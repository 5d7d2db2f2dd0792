"""What a Timeline says: hints, text, JSON, trace, comparison, command line; and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import nki
import nki.isa as nisa
import nki.language as nl
import pytest
import yaml
from timing_bench import ROUND, X, buffered, filled, played, product, program, psum, sbuf

from simulator import dtypes
from simulator.cli import main
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS
from simulator.timing import Timeline, load_machine, machine, predict, report
from simulator.timing.calibration import instruction_median_error_pct, instruction_table_error
from simulator.timing.hints import hints
from simulator.timing.perfetto import events, write_trace

SCHEMA = json.loads((Path(machine.__file__).parent / "timeline.schema.json").read_text())


def patterns(timeline: Timeline) -> set[str]:
    """The patterns of the hints given."""
    return {hint.pattern for hint in hints(timeline)}


# --- hints ----------------------------------------------------------------------------------


def test_a_single_buffered_load_is_hinted_at() -> None:
    assert "single-buffered" in patterns(played(buffered, X, inside=False))
    assert "single-buffered" not in patterns(played(buffered, X, inside=True))


def test_short_rows_are_hinted_at() -> None:
    def kernel(x: Any) -> None:
        for _ in range(16):
            nisa.dma_copy(dst=sbuf(16), src=x[:, 0:16])

    assert "short-rows" in patterns(predict(program(kernel, X)))


def test_fp32_matmuls_are_hinted_at() -> None:
    def kernel(dtype: Any = nl.float32) -> None:
        weights, moving = filled(128, dtype), filled(512, dtype)
        for _ in range(16):
            nisa.nc_matmul(dst=psum(), stationary=weights, moving=moving)

    assert "fp32-matmul" in patterns(predict(program(kernel)))
    assert "fp32-matmul" not in patterns(predict(program(kernel, dtype=nl.bfloat16)))


def test_alternating_functions_are_hinted_at() -> None:
    def kernel() -> None:
        tile = filled()
        for _ in range(4):
            nisa.activation(dst=sbuf(), op=nl.exp, data=tile)
            nisa.activation(dst=sbuf(), op=nl.silu, data=tile)

    (hint,) = [h for h in hints(predict(program(kernel))) if h.pattern == "table-thrash"]
    assert "exp, silu" in hint.message


def test_copies_that_another_engine_could_take_are_hinted_at() -> None:
    def kernel() -> None:
        tile = product()
        for _ in range(32):
            nisa.tensor_copy(dst=sbuf(), src=tile, engine=nisa.engine.vector)

    assert "vector-copies" in patterns(predict(program(kernel)))


def test_small_transfers_are_hinted_at() -> None:
    def kernel(x: Any) -> None:
        for _ in range(64):
            nisa.dma_copy(dst=sbuf(128), src=x[:, 0:128])

    assert "small-transfers" in patterns(predict(program(kernel, X)))


def test_at_most_three_hints_and_each_names_a_line() -> None:
    found = hints(played(buffered, X, inside=False))
    assert len(found) <= 3
    assert all(Path(hint.file).name == "timing_bench.py" and hint.line for hint in found)


# --- text, JSON, trace ------------------------------------------------------------------------


def test_the_report_says_predicted_and_for_which_device() -> None:
    text = report.text(played(buffered, X))
    assert "µs predicted for trn2" in text
    assert "critical path" in text
    assert "roofline" in text
    assert "timing_bench.py:" in text


def test_lanes_are_dark_where_an_engine_is_busy() -> None:
    def kernel() -> None:
        for _ in range(50):
            filled()

    lines = report.lanes(played(kernel), 40).splitlines()
    (vector,) = [line for line in lines if line.startswith("vector")]
    assert vector.count("█") >= 39


def test_the_json_follows_its_schema() -> None:
    document = report.as_dict(predict(program(buffered, X)))
    jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)
    assert document["device"] == "trn2"
    assert document["kind"] == "predicted"


def test_the_trace_has_a_lane_per_engine_and_dma_ring(tmp_path: Path) -> None:
    timeline = played(buffered, X)
    write_trace(timeline, tmp_path / "trace.json")
    found = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = {e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert {"vector", "scalar", "loads", "stores", "loads DMA transfers"} <= lanes
    slices = [e for e in found if e["ph"] == "X"]
    assert len(slices) == len(timeline) + len(timeline.played.flow)
    assert all("timing_bench.py:" in e["name"] for e in slices)


def test_slices_of_a_lane_do_not_overlap() -> None:
    lanes: dict[tuple[int, int], float] = {}
    for event in events(played(buffered, X)):
        if event["ph"] == "X" and "copy" not in event["name"]:
            key = (event["pid"], event["tid"])
            assert event["ts"] >= lanes.get(key, 0.0) - 1e-9
            lanes[key] = event["ts"] + event["dur"]


def test_a_comparison_says_what_changed() -> None:
    single, double = played(buffered, X, inside=False), played(buffered, X, inside=True)
    text = report.compare(single, double)
    assert "× faster on trn2" in text
    assert "on the critical path" in text
    assert report.comparison(single, double)["speedup"] > 2


# --- the instruction table and the machine files --------------------------------------------


def test_the_instruction_table_is_met() -> None:
    rows = instruction_table_error()
    assert len(rows) > 60
    assert instruction_median_error_pct() < 10
    worse = [row.row for row in rows if abs(row.error_pct) > 10]
    sequencers = ("COMPARE_BRANCH", "TENSOR_LOAD", "GpSimd DMA_DIRECT2D")
    compute = [row for row in worse if not any(name in row for name in sequencers)]
    assert compute == ["Scalar CAST bfloat16 PSUM 128"]  # 265 predicted, 297 measured


@pytest.mark.parametrize("name", machine.NAMES)
def test_every_constant_has_a_unit_and_a_source(name: str) -> None:
    for constant in load_machine(name).constants.values():
        assert constant.unit
        assert len(constant.source) > 10


def test_a_constant_without_a_source_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((machine.FOLDER / "trn2.yaml").read_text())
    content["constants"]["vector engine"]["vector_clock_ghz"].pop("source")
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="vector_clock_ghz needs a unit and a source"):
        machine.read_machine(path)


def test_a_missing_constant_is_named(tmp_path: Path) -> None:
    content = yaml.safe_load((machine.FOLDER / "trn2.yaml").read_text())
    del content["constants"]["vector engine"]["vector_clock_ghz"]
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="vector_clock_ghz"):
        machine.read_machine(path)


# --- bad input --------------------------------------------------------------------------------


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown target 'trn9'; known targets: trn1, trn2, trn3"):
        predict(program(buffered, X), "trn9")


def test_an_empty_program_is_refused() -> None:
    def nothing() -> None:
        pass

    with pytest.raises(ValueError, match="nothing has no instructions"):
        predict(program(nothing))


def counted(x: Any, bound: Any = None) -> Any:
    """A dynamic loop: a fixed number of times, or as often as a register says."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 512), dtype=x.dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=0.0)
    count = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.memset(dst=count, value=4)
    register = nisa.register_alloc()
    nisa.register_load(register, count)

    def body(i: Any) -> None:
        nisa.activation(dst=tile, op=nl.copy, data=tile)

    nl.fori_loop(0, register if bound is None else bound, body)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_a_dynamic_trip_count_is_asked_for() -> None:
    built = nki.jit(counted).specialise(X)
    with pytest.raises(ValueError, match=r"known on the device only; give it, or a bound"):
        predict(built)


def test_a_given_trip_count_is_stated() -> None:
    built = nki.jit(counted).specialise(X)
    short, long = predict(built, trips=2), predict(built, trips=20)
    assert len(long) - len(short) == 18 * 6  # the body, and a branch on each of five engines
    assert long.latency_us > short.latency_us
    (assumption,) = long.assumptions
    assert assumption.endswith("is assumed to run 20 times")
    assert assumption in report.text(long)
    line = int(assumption.split(" is assumed")[0].rpartition(":")[2])
    assert predict(built, trips={line: 20}).latency_us == long.latency_us


@pytest.mark.parametrize("wrong", [-1, True, "4"])
def test_a_trip_count_must_be_a_count(wrong: Any) -> None:
    with pytest.raises(ValueError, match="integer of at least 0"):
        predict(nki.jit(counted).specialise(X), trips=wrong)


def test_a_known_trip_count_needs_nothing() -> None:
    timeline = predict(nki.jit(counted).specialise(X, bound=5))
    assert timeline.assumptions == []
    assert sum(i.spec.name == "activation" for i in timeline.decoded.instructions) == 5


# --- command line -------------------------------------------------------------------------------

SILU = ["profile", "kernels/silu.py:nki_silu_kernel", "--arg", "x=bf16[256,512]"]


def test_profile_prints_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SILU, "--target", "trn2"]) == 0
    assert "µs predicted for trn2" in capsys.readouterr().out


def test_profile_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SILU, "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_profile_compares(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SILU, "--compare", "kernels/softmax.py:nki_softmax_kernel"]) == 0
    assert "nki_softmax_kernel is predicted" in capsys.readouterr().out


def test_profile_writes_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert main([*SILU, "--trace", str(path)]) == 0
    assert json.loads(path.read_text())["traceEvents"]


def test_profile_refuses_an_odd_trip_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SILU, "--trips", "many"]) == 2
    assert "--trips many is no count" in capsys.readouterr().err


def test_a_machine_can_be_varied() -> None:
    built = program(buffered, X)
    fast = load_machine("trn2").with_changes(launch_ns=0, finish_ns=0)
    launch = load_machine("trn2").launch_ns + load_machine("trn2").finish_ns
    assert predict(built, fast).latency_ns == pytest.approx(predict(built).latency_ns - launch)
    assert ROUND.name == "trn2"
    assert set(TARGETS) <= set(machine.NAMES)
    assert TensorSpec((1,), dtypes.float32) != X
