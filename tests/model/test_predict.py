"""A kernel's prediction in a graph: what is left out, on how many cores, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.op_calls import OpCall, TensorSpec
from model.predict import Predictions, specialised
from simulator.timing import load_machine, predict

RMSNORM = OpCall(
    op="rmsnorm",
    layer=0,
    arguments=(
        ("x", TensorSpec("bfloat16", (1, 64, 256))),
        ("weight", TensorSpec("bfloat16", (256,))),
        ("eps", 1e-6),
    ),
    results=(TensorSpec("bfloat16", (1, 64, 256)),),
    kernel="nki_rmsnorm_kernel",
)
ADD_RMSNORM = OpCall(
    op="add_rmsnorm",
    layer=0,
    arguments=(
        ("x", TensorSpec("bfloat16", (1, 64, 256))),
        ("residual", TensorSpec("bfloat16", (1, 64, 256))),
        ("weight", TensorSpec("bfloat16", (256,))),
        ("eps", 1e-6),
    ),
    results=(TensorSpec("bfloat16", (1, 64, 256)),) * 2,
    kernel="nki_fused_add_rmsnorm_kernel",
)
NOT_DIVIDED = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def mine(x, weight, eps=1e-6):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""


def own(tmp_path: Path) -> OpCall:
    """A call of a kernel that takes no notice of a second core."""
    (tmp_path / "k.py").write_text(NOT_DIVIDED)
    return OpCall(RMSNORM.op, 0, RMSNORM.arguments, RMSNORM.results, f"{tmp_path}/k.py:mine")


def test_a_graph_has_no_launch_per_kernel(tmp_path: Path) -> None:
    machine = load_machine("trn2")
    call = own(tmp_path)
    alone = predict(specialised(call, "trn2", 1), "trn2").latency_us
    inside = Predictions(1).predict(call, "trn2").predicted_us
    assert inside == pytest.approx(alone - (machine.launch_ns + machine.finish_ns) / 1000)
    assert inside > 1


def test_a_kernel_that_does_not_divide_its_work_runs_on_one_core(tmp_path: Path) -> None:
    assert Predictions(2).predict(own(tmp_path), "trn2").cores == 1
    assert Predictions(2).predict(ADD_RMSNORM, "trn2").cores == 2
    assert Predictions(1).predict(ADD_RMSNORM, "trn2").cores == 1


def test_predictions_are_kept_by_all_they_depend_on(tmp_path: Path) -> None:
    def run(sources: str, call: OpCall = RMSNORM, lnc: int = 1, target: str = "trn2") -> int:
        Predictions(lnc, tmp_path, {"rmsnorm": sources}).predict(call, target)
        return len(list(tmp_path.iterdir()))

    assert run("as it is") == run("as it is") == 1
    assert run("edited") == 2
    assert run("as it is", target="trn3") == 3
    assert run("as it is", lnc=2) == 4
    larger = OpCall(
        "rmsnorm",
        0,
        (("x", TensorSpec("bfloat16", (1, 65, 256))), *RMSNORM.arguments[1:]),
        (TensorSpec("bfloat16", (1, 65, 256)),),
        RMSNORM.kernel,
    )
    assert run("as it is", larger) == 5


def test_a_kept_prediction_is_used_and_a_broken_one_made_again(tmp_path: Path) -> None:
    first = Predictions(1, tmp_path).predict(RMSNORM, "trn2")
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"predicted_us": 12345.0}))
    assert Predictions(1, tmp_path).predict(RMSNORM, "trn2").predicted_us == 12345.0
    for broken in ("{", "{}", '{"cores": 1}'):
        file.write_text(broken)
        assert Predictions(1, tmp_path).predict(RMSNORM, "trn2") == first
        assert json.loads(file.read_text()) == kept
