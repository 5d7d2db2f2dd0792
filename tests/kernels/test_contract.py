"""What `python -m simulator check` says of prefill and row kernels: good, for all they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cli import main

ROOT = Path(__file__).parents[2]
VERSIONS = ("0.3", "0.4", "0.5", "0.6", "0.7")

KERNELS = {
    "rmsnorm.py:nki_rmsnorm_kernel": ("x=bf16[300,256]", "weight=bf16[256]"),
    "add_rmsnorm.py:nki_fused_add_rmsnorm_kernel": (
        "x=bf16[300,256]", "residual=bf16[300,256]", "weight=bf16[256]",
    ),
    "qk_rmsnorm.py:nki_qk_rmsnorm_kernel": (
        "q=bf16[300,4,64]", "k=bf16[300,2,64]", "q_weight=bf16[64]", "k_weight=bf16[64]",
    ),
    "softmax.py:nki_softmax_kernel": ("x=bf16[300,256]",),
    "silu.py:nki_silu_kernel": ("x=bf16[300,256]",),
    "rope.py:nki_rope_kernel": (
        "q=bf16[1,300,4,64]", "k=bf16[1,300,1,64]", "cos=bf16[512,64]", "sin=bf16[512,64]",
        "offsets=i32[1,1]",
    ),
    "router.py:nki_expert_router_kernel": (
        "x=bf16[300,256]", "router_weight=bf16[256,16]", "top_k=9",
    ),
    "expert_mlp.py:nki_fused_expert_mlp_kernel": (
        "x=bf16[300,256]", "gate_weight=bf16[256,192]", "up_weight=bf16[256,192]",
        "down_weight=bf16[192,256]",
    ),
    "expert_aggregation.py:nki_expert_aggregation_kernel": (
        "expert_outputs=bf16[300,4,256]", "weights=f32[300,4]",
    ),
    "moe_prefill.py:nki_moe_prefill_kernel": (
        "x=bf16[300,256]", "weights=f32[300,4]", "chosen=i32[300,4]",
        "gate_up=f8e4m3[16,256,384]", "down=f8e4m3[16,192,256]", "scales=f32[16,384]",
    ),
    "flash_attention.py:nki_flash_attention_kernel": (
        "q=bf16[1,300,4,64]", "k=bf16[1,300,2,64]", "v=bf16[1,300,2,64]",
    ),
}  # fmt: skip
FP32 = (
    "rmsnorm.py:nki_rmsnorm_kernel", "qk_rmsnorm.py:nki_qk_rmsnorm_kernel",
    "softmax.py:nki_softmax_kernel", "router.py:nki_expert_router_kernel",
    "flash_attention.py:nki_flash_attention_kernel",
)  # fmt: skip
CASES = [
    *((kernel, arguments) for kernel, arguments in KERNELS.items()),
    *((kernel, tuple(a.replace("bf16", "f32") for a in KERNELS[kernel])) for kernel in FP32),
    *((kernel, tuple(a.replace("[300", "[1") for a in KERNELS[kernel])) for kernel in KERNELS
      if not kernel.startswith(("rope", "flash"))),
    ("flash_attention.py:nki_flash_attention_kernel",
     (*KERNELS["flash_attention.py:nki_flash_attention_kernel"], "logit_bound=30.0")),
]  # fmt: skip


@pytest.mark.parametrize("lnc", ["1", "2"])
@pytest.mark.parametrize(("kernel", "given"), CASES, ids=lambda value: str(value)[:48])
def test_both_targets_and_every_nki_accept(
    kernel: str, given: tuple[str, ...], lnc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--arg={argument}" for argument in given]
    asked = ["--target=trn2", "--target=trn3", "--lnc", lnc, "--nki", *VERSIONS]
    code = main(["check", f"{ROOT / 'kernels' / kernel}", *arguments, *asked])
    assert code == 0, capsys.readouterr().out
