"""What `python -m simulator check` says of the decode kernels: good, for all that they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cli import main

ROOT = Path(__file__).parents[2]

KERNELS = {
    "moe_decode.py:nki_moe_decode_kernel": (
        "x=bf16[2,256]", "norm_weight=bf16[256]", "router_weight=bf16[256,16]",
        "gate_up=bf16[16,256,384]", "down=bf16[16,192,256]", "top_k=4",
    ),
    "decode_attention.py:nki_decode_attention_kernel": (
        "q=bf16[2,4,64]", "k=bf16[2,1,64]", "v=bf16[2,1,64]", "k_cache=bf16[2,1,300,64]",
        "v_cache=bf16[2,1,300,64]", "lengths=i32[2,1]",
    ),
    "attention_block.py:nki_attention_block_decode_kernel": (
        "x=bf16[2,256]", "norm_weight=bf16[256]", "qkv_weight=bf16[256,384]",
        "q_norm_weight=bf16[64]", "k_norm_weight=bf16[64]", "cos=bf16[300,64]",
        "sin=bf16[300,64]", "k_cache=bf16[2,1,300,64]", "v_cache=bf16[2,1,300,64]",
        "lengths=i32[2,1]", "o_weight=bf16[256,256]",
    ),
    "qkv_projection.py:nki_qkv_projection_kernel": (
        "x=bf16[2,256]", "weight=bf16[256,384]", "kv_width=64", "norm_weight=bf16[256]",
    ),
    "output_projection.py:nki_output_projection_kernel": (
        "x=bf16[2,256]", "weight=bf16[256,384]", "residual=bf16[2,384]",
    ),
    "lm_head.py:nki_lm_head_kernel": (
        "x=bf16[2,256]", "weight=bf16[256,1700]", "norm_weight=bf16[256]", "argmax=True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lnc", ["1", "2"])
@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_both_targets_and_every_nki_accept(
    kernel: str, sequences: int, lnc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("[2,", f"[{sequences},") for argument in KERNELS[kernel]]
    arguments = [f"--arg={argument}" for argument in given]
    asked = ["--target=trn2", "--target=trn3", "--lnc", lnc, "--nki"]
    versions = ["0.3", "0.4", "0.5", "0.6", "0.7"]
    code = main(["check", f"{ROOT / 'kernels' / kernel}", *arguments, *asked, *versions])
    assert code == 0, capsys.readouterr().out


def test_a_kernel_that_breaks_a_rule_does_not_pass(tmp_path: Path) -> None:
    source = (ROOT / "kernels" / "silu.py").read_text()
    broken = tmp_path / "broken.py"
    broken.write_text(source.replace("buffer=nl.sbuf", "buffer=nl.psum"))
    assert main(["check", f"{broken}:nki_silu_kernel", "--arg=x=bf16[64,128]"]) == 1
