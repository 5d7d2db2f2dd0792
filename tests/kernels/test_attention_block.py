"""The attention block of one new token against its PyTorch reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import layer_reference as reference
from kernels.attention_block import nki_attention_block_decode_kernel as kernel
from kernels.decode_attention import nki_decode_attention_kernel
from kernels.output_projection import nki_output_projection_kernel
from kernels.qk_rmsnorm import nki_qk_rmsnorm_kernel
from kernels.qkv_projection import nki_qkv_projection_kernel
from kernels.rope import nki_rope_kernel

FP32, BF16 = torch.float32, torch.bfloat16
DTYPES = (FP32, BF16)
Tensors = tuple[torch.Tensor, ...]
NAMES = (
    "x", "norm_weight", "qkv_weight", "q_norm_weight", "k_norm_weight", "cos", "sin",
    "k_cache", "v_cache", "lengths", "o_weight",
)  # fmt: skip


def random(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = FP32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def largest_error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest |difference| over the truth's largest value, or 0 of nothing at all."""
    assert actual.shape == truth.shape
    assert torch.isfinite(actual).all()
    largest = truth.double().abs().max().clamp(min=1e-30)
    return ((actual.double() - truth.double()).abs().max() / largest).item()


def expected(given: dict[str, torch.Tensor], exact: bool = False) -> Tensors:
    """The reference's results, which writes into copies of the caches."""
    copies = {name: tensor.clone() for name, tensor in given.items()}
    if exact:
        copies = {n: t.double() if t.is_floating_point() else t for n, t in copies.items()}
    return reference.attention_block_decode(**copies, eps=1e-6)


def launch(kernel: Any, cores: int) -> Any:
    return kernel[2] if cores == 2 else kernel


def refusal(kernel: Any, arguments: Any, **given: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        kernel(*arguments, **given)
    return str(caught.value)


def inputs(
    lengths: tuple[int, ...], positions: int, heads: tuple[int, int], width: int, hidden: int,
    dtype: torch.dtype = FP32, scale: float = 1.0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """What the kernel takes; `scale` is the residual stream's."""
    batch = len(lengths)
    columns = (heads[0] + 2 * heads[1]) * width
    turns = 10000.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = (torch.arange(positions)[:, None] * turns).repeat(1, 2)
    caches = (batch, heads[1], positions, width)
    tensors = (
        random(1, batch, hidden, scale=scale, dtype=dtype),
        1 + random(2, hidden, scale=0.2, dtype=dtype),
        random(3, hidden, columns, scale=hidden**-0.5, dtype=dtype),
        1 + random(4, width, scale=0.2, dtype=dtype),
        1 + random(5, width, scale=0.2, dtype=dtype),
        angles.cos().to(dtype),
        angles.sin().to(dtype),
        random(6, *caches, dtype=dtype),
        random(7, *caches, dtype=dtype),
        torch.tensor(lengths, dtype=torch.int32)[:, None],
        random(8, heads[0] * width, hidden, scale=(heads[0] * width) ** -0.5, dtype=dtype),
    )
    return dict(zip(NAMES, tensors, strict=True))


def run(given: dict[str, torch.Tensor], cores: int = 1, **parameters: Any) -> Tensors:
    """The kernel's results; it writes into copies of the caches."""
    copies = {name: tensor.clone() for name, tensor in given.items()}
    return launch(kernel, cores)(**copies, **parameters)  # type: ignore[no-any-return]


def assert_matches(results: Tensors, given: dict[str, torch.Tensor]) -> None:
    """fp32: within 1e-5 of the exact result; bf16: within twice the reference's own error.

    Rows of the caches that are not the new token's are the same bit for bit.
    """
    truth, own = expected(given, exact=True), expected(given)
    for n in range(3):
        limit = 1e-5
        if given["x"].dtype is BF16:
            limit = max(2 * largest_error(own[n], truth[n]), 2**-8)
        assert largest_error(results[n], truth[n]) <= limit
    positions = given["k_cache"].shape[2]
    old = torch.arange(positions)[None] != given["lengths"]
    for n, name in ((1, "k_cache"), (2, "v_cache")):
        same = (results[n] == given[name]).all(-1) | ~old[:, None]
        assert same.all()


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "positions", "heads", "width", "hidden"),
    [
        ((0,), 2, (1, 1), 16, 64), ((16,), 17, (4, 2), 32, 64), ((128,), 129, (8, 1), 128, 512),
        ((127,), 256, (4, 4), 64, 384), ((0, 255, 100), 256, (4, 2), 32, 128),
        ((299,), 300, (8, 1), 128, 2048), ((639, 3), 640, (8, 1), 128, 256),
        ((5, 1, 9, 12, 7, 0, 3, 2), 13, (6, 2), 32, 64), ((1050,), 1100, (3, 1), 64, 4096),
    ],
)  # fmt: skip
def test_block(
    lengths: tuple[int, ...], positions: int, heads: tuple[int, int], width: int, hidden: int,
    dtype: torch.dtype, cores: int,
) -> None:  # fmt: skip
    given = inputs(lengths, positions, heads, width, hidden, dtype)
    assert_matches(run(given, cores), given)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3])
def test_block_of_small_and_large_tokens(scale: float, dtype: torch.dtype, cores: int) -> None:
    """A norm's factor cancels in q and k, but for eps, which decides below about 1e-3."""
    given = inputs((40, 7), 50, (4, 2), 32, 128, dtype, scale)
    assert_matches(run(given, cores), given)


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_zeros_and_denormals_stay_finite(value: float) -> None:
    given = inputs((40,), 50, (4, 2), 32, 128)
    given["x"].fill_(value)
    assert_matches(run(given, 2), given)


def test_large_logits() -> None:
    given = inputs((140,), 300, (4, 1), 64, 128)
    given["q_norm_weight"] *= 100
    result = run(given, 2)[0]
    truth = expected(given, exact=True)[0]
    own = largest_error(expected(given)[0], truth)
    assert largest_error(result, truth) <= max(2 * own, 1e-5)


@pytest.mark.parametrize(
    "parameters",
    [{"pieces": 1}, {"pieces": 3}, {"buffers": 2}, {"evict_engine": "scalar"},
     {"evict_engine": "vector"}],
    ids=str,
)  # fmt: skip
def test_parameters_do_not_change_values(parameters: dict[str, Any]) -> None:
    given = inputs((270, 4, 90, 1, 299, 150), 300, (4, 1), 64, 128)
    for new, old in zip(run(given, 2, **parameters), run(given, 2), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cores", [1, 2])
def test_what_lies_beyond_a_length_does_not_count(cores: int) -> None:
    given = inputs((140, 20), 300, (4, 2), 32, 64)
    result = run(given, cores)[0]
    for b, length in enumerate((140, 20)):
        given["k_cache"][b, :, length:] = 1e4
        given["v_cache"][b, :, length:] = -1e4
    torch.testing.assert_close(run(given, cores)[0], result, rtol=0, atol=0)


def test_block_agrees_with_its_parts() -> None:
    given = inputs((40, 7), 50, (4, 2), 32, 128)
    rows = nki_qkv_projection_kernel(
        given["x"], given["qkv_weight"], 64, norm_weight=given["norm_weight"]
    )
    q, k = nki_qk_rmsnorm_kernel(
        rows[0].reshape(2, 4, 32), rows[1].reshape(2, 2, 32), given["q_norm_weight"],
        given["k_norm_weight"], 1e-6,
    )  # fmt: skip
    q, k = nki_rope_kernel(q[:, None], k[:, None], given["cos"], given["sin"], given["lengths"])
    mixed = nki_decode_attention_kernel(
        q[:, 0], k[:, 0], rows[2].reshape(2, 2, 32), given["k_cache"].clone(),
        given["v_cache"].clone(), given["lengths"],
    )  # fmt: skip
    parts = nki_output_projection_kernel(mixed[0].flatten(1), given["o_weight"])
    torch.testing.assert_close(run(given, 2)[0], parts, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_block_at_full_size(cores: int) -> None:
    for lengths, positions in (((4000,), 4096), ((639, 0, 17, 300), 640)):
        given = inputs(lengths, positions, (8, 1), 128, 2048, BF16)
        assert_matches(run(given, cores), given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_five_percent_and_wrong_constants_are_caught(dtype: torch.dtype) -> None:
    given = inputs((12, 9), 40, (4, 2), 32, 64, dtype)
    result, keys, values = run(given)
    for wrong in (1.05 * result, 0.95 * result, 0 * result):
        with pytest.raises(AssertionError):
            assert_matches((wrong, keys, values), given)
    changes: tuple[tuple[str, Any], ...] = (
        ("lengths", 1), ("norm_weight", 0.1), ("q_norm_weight", 0.2), ("k_norm_weight", 0.2),
        ("cos", 0.2), ("sin", 0.2), ("o_weight", 0.02),
    )  # fmt: skip
    for name, change in changes:
        moved = run({**given, name: given[name] + change})
        with pytest.raises(AssertionError):
            assert_matches((moved[0], keys, values), given)
    moved = run({**given, "lengths": given["lengths"] + 1})
    with pytest.raises(AssertionError):
        assert_matches((result, moved[1], values), given)
    with pytest.raises(AssertionError):
        assert_matches((result, keys, moved[2]), given)


REFUSALS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("x", (33, 64), "more than 32 sequences"),
    ("norm_weight", (65,), "norm_weight must have x's hidden"),
    ("qkv_weight", (64, 250), "qkv_weight must be"),
    ("q_norm_weight", (16,), "q_norm_weight must have head_dim"),
    ("k_norm_weight", (16,), "k_norm_weight must have head_dim"),
    ("cos", (40, 16), "cos must have rows of head_dim"),
    ("sin", (41, 32), "sin must have cos's shape"),
    ("k_cache", (1, 2, 40, 32), "k_cache must be"),
    ("k_cache", (2, 2, 40, 130), "head_dim above 128"),
    ("k_cache", (2, 2, 40, 31), "odd head_dim"),
    ("k_cache", (2, 2, 1, 32), "fewer than 2 positions"),
    ("v_cache", (2, 2, 41, 32), "v_cache must have k_cache's shape"),
    ("o_weight", (128, 65), "o_weight must be"),
    ("o_weight", (130, 64), "o_weight must be"),
    ("o_weight", (96, 64), "multiple of key heads"),
)


@pytest.mark.parametrize(("name", "shape", "message"), REFUSALS)
def test_block_refuses_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    given = inputs((12, 9), 40, (4, 2), 32, 64)
    given[name] = torch.zeros(shape)
    assert message in refusal(kernel, tuple(given.values()))


def test_block_refuses() -> None:
    given = inputs((12, 9), 40, (4, 2), 32, 64)
    assert "pieces must be" in refusal(kernel, tuple(given.values()), pieces=0)
    assert "buffers must be" in refusal(kernel, tuple(given.values()), buffers=1)
    for name in NAMES:
        if name not in ("x", "lengths"):
            other = {**given, name: given[name].to(BF16)}
            assert name in refusal(kernel, tuple(other.values()))
    assert "lengths must be" in refusal(
        kernel, tuple({**given, "lengths": given["lengths"][:1]}.values())
    )
    wide = {**given, "x": torch.zeros(2, 63)}
    assert "divide by the cores" in refusal(kernel[2], tuple(wide.values()))
    huge = inputs((3,), 40000, (1, 1), 128, 64)
    assert "176 KiB" in refusal(kernel, tuple(huge.values()))
    many = inputs((3,) * 32, 4, (16, 1), 2, 64)
    assert "above 512" in refusal(kernel, tuple(many.values()))
