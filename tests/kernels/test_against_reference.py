"""Every kernel against its PyTorch reference; the same tests run on the real SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import KERNELS, OPS
from kernels.contracts import CONTRACTS
from model.ops import load_kernel

NAMES = ("nki_rmsnorm_kernel", "nki_qk_rmsnorm_kernel", "nki_softmax_kernel", "nki_silu_kernel")
"""The others' values are tested in test_*_kernels.py."""
ROWS = (1, 127, 128, 129, 640)
DTYPES = (torch.float32, torch.bfloat16)


def inputs(op: str, rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> list[Any]:
    """The op's arguments, random."""
    generator = torch.Generator().manual_seed(rows * 10007 + width)

    def random(*shape: int) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    if op == "rmsnorm":
        return [random(rows, width), random(width), 1e-6]
    if op == "qk_norm":
        heads, kv_heads, head = (32, 4, 128) if width > 128 else (4, 2, width // 2)
        q, k = random(1, rows, heads, head), random(1, rows, kv_heads, head)
        return [q, k, random(head), random(head), 1e-6]
    return [random(rows, width)]


def results(value: Any) -> tuple[torch.Tensor, ...]:
    """A kernel's results as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def error(actual: Any, expected: Any) -> float:
    """Largest |difference| over the reference's largest value, over all results."""
    worst = 0.0
    for a, b in zip(results(actual), results(expected), strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        worst = max(worst, ((a.double() - b.double()).abs().max() / b.double().abs().max()).item())
    return worst


def in_float64(op: str, arguments: list[Any]) -> Any:
    """The reference's truth: the same inputs, computed with fp32's or more digits."""
    exact = [a.float() if isinstance(a, torch.Tensor) else a for a in arguments]
    return CONTRACTS[op].reference(*exact)


def run(name: str, arguments: list[Any], cores: int = 1, **parameters: Any) -> Any:
    kernel: Any = load_kernel(name)
    kernel = kernel[2] if cores == 2 else kernel
    return CONTRACTS[KERNELS[name].op].call(kernel, *arguments, **parameters)


def check(name: str, arguments: list[Any], dtype: torch.dtype, result: Any = None) -> None:
    """fp32: within 1e-5; bf16: within twice the reference's own error, or one rounding."""
    op = KERNELS[name].op
    result = run(name, arguments) if result is None else result
    truth = in_float64(op, arguments)
    limit = 1e-5
    if dtype is torch.bfloat16:
        limit = max(2 * error(CONTRACTS[op].reference(*arguments), truth), 2**-8)
    assert error(result, truth) <= limit


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width"),
    [*((rows, width) for rows in ROWS for width in (64, 2048)), (17, 128), (129, 4096)],
)
@pytest.mark.parametrize("name", NAMES)
def test_values(name: str, rows: int, width: int, dtype: torch.dtype, cores: int) -> None:
    arguments = inputs(KERNELS[name].op, rows, width, dtype)
    check(name, arguments, dtype, run(name, arguments, cores))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "parameters",
    [{"elements": 1}, {"elements": 8192}, {"gpsimd_tenths": 0}, {"gpsimd_tenths": 10}],
    ids=str,
)
def test_q_and_k_norm_parameters_do_not_change_values(
    parameters: dict[str, int], dtype: torch.dtype
) -> None:
    arguments = inputs("qk_norm", 700, 128, dtype)
    result = run("nki_qk_rmsnorm_kernel", arguments, **parameters)
    check("nki_qk_rmsnorm_kernel", arguments, dtype, result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 16, 129, 300])
def test_q_and_k_norm_of_any_head_dim(head_dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    shapes = ((1, 130, 4, head_dim), (1, 130, 2, head_dim), (head_dim,), (head_dim,))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    check("nki_qk_rmsnorm_kernel", [*tensors, 1e-6], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_small_and_large_values(name: str, scale: float, dtype: torch.dtype) -> None:
    check(name, inputs(KERNELS[name].op, 130, 64, dtype, scale), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_denormals_stay_finite(name: str) -> None:
    arguments = inputs(KERNELS[name].op, 5, 64, torch.float32)
    for value in (0.0, 1e-40):
        filled = [
            torch.full_like(a, value) if torch.is_tensor(a) and a.ndim > 1 else a for a in arguments
        ]
        expected = results(CONTRACTS[KERNELS[name].op].reference(*filled))
        for a, b in zip(results(run(name, filled)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-38)


def test_softmax_of_large_and_masked_logits() -> None:
    x = torch.tensor([[1e4, 1e4 - 1, -1e4, 0], [-3.4e38, 2, 1, -3.4e38]])
    torch.testing.assert_close(run("nki_softmax_kernel", [x]), x.softmax(-1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_five_percent_is_caught(name: str, dtype: torch.dtype) -> None:
    arguments = inputs(KERNELS[name].op, 129, 64, dtype)
    right = run(name, arguments)
    for factor in (1.05, 0.95, 0.0):
        wrong = tuple(r * factor for r in results(right))
        with pytest.raises(AssertionError):
            check(name, arguments, dtype, wrong if isinstance(right, tuple) else wrong[0])


@pytest.mark.parametrize("tile_columns", [1, 7, 512, 16384])
@pytest.mark.parametrize("shape", [(3, 5), (128, 33), (130, 600)])
def test_silu_tiles_do_not_change_values(shape: tuple[int, int], tile_columns: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = run("nki_silu_kernel", [x], tile_columns=tile_columns)
    torch.testing.assert_close(result, torch.nn.functional.silu(x), rtol=1e-6, atol=1e-7)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(AssertionError) as caught:
        call()
    return str(caught.value)


def test_limits_are_refused_with_the_argument_and_the_limit() -> None:
    wide = torch.zeros(1, 8193)
    assert "x has a hidden dimension above 8192" in refusal(
        lambda: run("nki_rmsnorm_kernel", [wide, wide[0], 1e-6])
    )
    assert "weight must have x's hidden" in refusal(
        lambda: run("nki_rmsnorm_kernel", [torch.zeros(2, 8), torch.zeros(4), 1e-6])
    )
    assert "x has more than 8192 columns" in refusal(lambda: run("nki_softmax_kernel", [wide]))
    assert "tile_columns must be 1 to 16384" in refusal(
        lambda: run("nki_silu_kernel", [torch.zeros(2, 8)], tile_columns=0)
    )
    q, k, w = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 1, 8), torch.zeros(8)
    assert "q and k must have as many tokens" in refusal(
        lambda: run("nki_qk_rmsnorm_kernel", [q, k[:, :3], w, w, 1e-6])
    )
    for argument, changed, given in (
        ("q_weight must have head_dim", [q, k, w[:4], w], {}),
        ("k_weight must have head_dim", [q, k, w, w[:4]], {}),
        ("one head_dim", [q, k[..., :4], w, w], {}),
        ("k must have q's dtype", [q, k.bfloat16(), w, w], {}),
        ("elements must be at most 8192", [q, k, w, w], {"elements": 8193}),
        ("gpsimd_tenths must be 0 to 10", [q, k, w, w], {"gpsimd_tenths": 11}),
        ("more than 8192 numbers", [q.repeat(1, 1, 600, 1), k, w, w], {}),
    ):
        message = refusal(lambda c=changed, g=given: run("nki_qk_rmsnorm_kernel", [*c, 1e-6], **g))
        assert argument in message


def test_tables_agree() -> None:
    assert set(OPS) == set(CONTRACTS) == {op for info in KERNELS.values() for op in info.ops}
