"""Attention of prompts and of one new token against their PyTorch references."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import layer_reference as reference
from kernels.decode_attention import nki_decode_attention_kernel
from kernels.flash_attention import nki_flash_attention_kernel

FP32, BF16 = torch.float32, torch.bfloat16
DTYPES = (FP32, BF16)
Tensors = tuple[torch.Tensor, ...]


def random(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = FP32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def largest_error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest |difference| over the truth's largest value."""
    assert actual.shape == truth.shape
    assert torch.isfinite(actual).all()
    return ((actual.double() - truth.double()).abs().max() / truth.double().abs().max()).item()


def launch(kernel: Any, cores: int) -> Any:
    return kernel[2] if cores == 2 else kernel


# --- prompts ------------------------------------------------------------------------------------


def prompt(
    batch: int, tokens: int, heads: tuple[int, int], width: int, dtype: torch.dtype,
    scale: float = 1.0,
) -> Tensors:  # fmt: skip
    return (
        random(1, batch, tokens, heads[0], width, scale=scale, dtype=dtype),
        random(2, batch, tokens, heads[1], width, dtype=dtype),
        random(3, batch, tokens, heads[1], width, dtype=dtype),
    )


def assert_attends(result: torch.Tensor, arguments: Tensors, causal: bool = True) -> None:
    """fp32: within 1e-5 of the exact result; bf16: within twice the reference's own error."""
    truth = reference.attention(*(a.double() for a in arguments), causal=causal)
    limit = 1e-5
    if arguments[0].dtype is BF16:
        own = largest_error(reference.attention(*arguments, causal=causal), truth)
        limit = max(2 * own, 2**-8)
    assert largest_error(result, truth) <= limit


BOUNDS = [None, 60.0]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"),
    [
        (1, 1, (1, 1), 64), (1, 17, (8, 1), 128), (2, 127, (3, 1), 64), (3, 128, (4, 2), 32),
        (1, 129, (2, 2), 16), (1, 300, (4, 2), 64), (1, 640, (2, 1), 128), (1, 1100, (1, 1), 32),
    ],
)  # fmt: skip
def test_flash_attention(
    batch: int, tokens: int, heads: tuple[int, int], width: int, dtype: torch.dtype,
    bound: float | None, cores: int,
) -> None:  # fmt: skip
    arguments = prompt(batch, tokens, heads, width, dtype)
    result = launch(nki_flash_attention_kernel, cores)(*arguments, logit_bound=bound)
    assert_attends(result, arguments)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 129, 300, 1100])
def test_flash_attention_without_a_mask(
    tokens: int, dtype: torch.dtype, bound: float | None
) -> None:
    arguments = prompt(1, tokens, (2, 1), 64, dtype)
    result = nki_flash_attention_kernel(*arguments, causal=False, logit_bound=bound)
    assert_attends(result, arguments, causal=False)


@pytest.mark.parametrize(
    "parameters",
    [{"key_block": 128}, {"key_block": 384}, {"evict_engine": "scalar"},
     {"evict_engine": "vector"}, {"evict_engine": "vector", "logit_bound": 40}],
    ids=str,
)  # fmt: skip
def test_flash_attention_parameters_do_not_change_values(parameters: dict[str, Any]) -> None:
    arguments = prompt(1, 520, (2, 1), 64, FP32)
    assert_attends(nki_flash_attention_kernel(*arguments, **parameters), arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 30.0, 1e4])
def test_flash_attention_of_small_and_large_logits(scale: float, dtype: torch.dtype) -> None:
    arguments = prompt(1, 300, (2, 1), 64, dtype, scale)
    result = nki_flash_attention_kernel(*arguments, key_block=128)
    truth = reference.attention(*(a.double() for a in arguments))
    own = largest_error(reference.attention(*arguments), truth)
    assert largest_error(result, truth) <= max(2 * own, 1e-5)


def test_a_bound_of_sixty_is_safe() -> None:
    q, k, v = prompt(1, 300, (2, 1), 64, FP32)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    arguments = (60 * 8 * q, k, v)
    assert_attends(nki_flash_attention_kernel(*arguments, logit_bound=60), arguments)
    arguments = (torch.full_like(q, 60.0), -torch.full_like(k, 1 / 8.0), v)  # all scores are -60
    assert_attends(nki_flash_attention_kernel(*arguments, logit_bound=60), arguments)


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("cores", [1, 2])
def test_flash_attention_at_full_size(cores: int, bound: float | None) -> None:
    arguments = prompt(1, 2048, (8, 1), 128, BF16)
    assert_attends(
        launch(nki_flash_attention_kernel, cores)(*arguments, logit_bound=bound), arguments
    )


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_five_percent_and_a_missing_mask_are_caught(
    dtype: torch.dtype, bound: float | None
) -> None:
    arguments = prompt(1, 150, (2, 1), 64, dtype)
    right = nki_flash_attention_kernel(*arguments, logit_bound=bound)
    open_ = nki_flash_attention_kernel(*arguments, logit_bound=bound, causal=False)
    for wrong in (1.05 * right, 0.95 * right, 0 * right, open_):
        with pytest.raises(AssertionError):
            assert_attends(wrong, arguments)


def refusal(kernel: Any, arguments: Any, **given: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        kernel(*arguments, **given)
    return str(caught.value)


def zeros(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def test_flash_attention_refuses() -> None:
    kernel = nki_flash_attention_kernel
    q, k, v = prompt(1, 5, (4, 2), 64, FP32)
    assert "head_dim above 128" in refusal(kernel, (zeros(1, 5, 4, 129), k, v))
    assert "more than 16384" in refusal(kernel, (zeros(1, 8193, 1, 8), k, v))
    assert "k must have q's batch" in refusal(kernel, (q, k[:, :4], v))
    assert "v must have k's shape" in refusal(kernel, (q, k, v[:, :, :1]))
    assert "multiple of k's heads" in refusal(kernel, (q[:, :, :3], k, v))
    assert "k must have q's dtype" in refusal(kernel, (q, k.to(BF16), v))
    assert "v must have q's dtype" in refusal(kernel, (q, k, v.to(BF16)))
    assert "multiple of 128" in refusal(kernel, (q, k, v), key_block=100)
    assert "128 to 1024" in refusal(kernel, (q, k, v), key_block=1152)
    assert "0 to 60" in refusal(kernel, (q, k, v), logit_bound=61)


# --- one new token ------------------------------------------------------------------------------


def decode_inputs(
    lengths: tuple[int, ...], positions: int, heads: tuple[int, int], width: int,
    dtype: torch.dtype, scale: float = 1.0,
) -> Tensors:  # fmt: skip
    batch = len(lengths)
    caches = (batch, heads[1], positions, width)
    return (
        random(1, batch, heads[0], width, scale=scale, dtype=dtype),
        random(2, batch, heads[1], width, dtype=dtype),
        random(3, batch, heads[1], width, dtype=dtype),
        random(4, *caches, dtype=dtype),
        random(5, *caches, dtype=dtype),
        torch.tensor(lengths, dtype=torch.int32)[:, None],
    )


def decode(arguments: Tensors, cores: int = 1, **given: Any) -> Tensors:
    """The kernel's results; it writes into copies of the caches."""
    copies = tuple(a.clone() for a in arguments)
    return launch(nki_decode_attention_kernel, cores)(*copies, **given)  # type: ignore[no-any-return]


def assert_decodes(results: Tensors, arguments: Tensors) -> None:
    """The result as `assert_attends`; the caches bit for bit."""
    expected = reference.decode_attention(*arguments)
    truth = reference.decode_attention(*(a.double() for a in arguments))
    limit = 1e-5
    if arguments[0].dtype is BF16:
        limit = max(2 * largest_error(expected[0], truth[0]), 2**-8)
    assert largest_error(results[0], truth[0]) <= limit
    assert torch.equal(results[1], expected[1])
    assert torch.equal(results[2], expected[2])


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "positions", "heads", "width"),
    [
        ((0,), 1, (1, 1), 64), ((5,), 17, (8, 1), 128), ((0,), 300, (8, 1), 64),
        ((127,), 128, (8, 1), 128), ((128,), 129, (3, 1), 64), ((640,), 1100, (8, 1), 128),
        ((0, 255, 100), 256, (4, 2), 32), ((639, 3), 640, (8, 1), 128), ((90,), 640, (4, 2), 16),
        ((1000,), 2048, (8, 1), 64),
    ],
)  # fmt: skip
def test_decode_attention(
    lengths: tuple[int, ...], positions: int, heads: tuple[int, int], width: int,
    dtype: torch.dtype, bound: float | None, cores: int,
) -> None:  # fmt: skip
    arguments = decode_inputs(lengths, positions, heads, width, dtype)
    assert_decodes(decode(arguments, cores, logit_bound=bound), arguments)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 30.0, 1e4])
def test_decode_attention_of_small_and_large_logits(
    scale: float, dtype: torch.dtype, cores: int
) -> None:
    arguments = decode_inputs((200,), 300, (4, 1), 64, dtype, scale)
    truth = reference.decode_attention(*(a.double() for a in arguments))[0]
    own = largest_error(reference.decode_attention(*arguments)[0], truth)
    assert largest_error(decode(arguments, cores)[0], truth) <= max(2 * own, 1e-5)


@pytest.mark.parametrize(
    "parameters",
    [{"pieces": 1}, {"pieces": 7}, {"buffers": 2}, {"evict_engine": "scalar"},
     {"evict_engine": "vector"}],
    ids=str,
)  # fmt: skip
def test_decode_attention_parameters_do_not_change_values(parameters: dict[str, Any]) -> None:
    arguments = decode_inputs((700, 1299, 3), 1300, (4, 1), 64, FP32)
    assert_decodes(decode(arguments, **parameters), arguments)


def test_what_lies_beyond_a_length_does_not_count() -> None:
    arguments = decode_inputs((140,), 300, (4, 1), 64, FP32)
    result = decode(arguments, 2)[0]
    arguments[3][:, :, 141:] = 1e4
    arguments[4][:, :, 140:] = -1e4
    torch.testing.assert_close(decode(arguments, 2)[0], result, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_decode_attention_at_full_size(cores: int) -> None:
    for lengths in ((4095,), (639, 4000, 0, 2048)):
        arguments = decode_inputs(lengths, 4096, (8, 1), 128, BF16)
        assert_decodes(decode(arguments, cores), arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_five_percent_and_a_wrong_length_are_caught(dtype: torch.dtype) -> None:
    arguments = decode_inputs((3, 9), 40, (4, 2), 64, dtype)
    result, keys, values = decode(arguments)
    for wrong in (1.05 * result, 0.95 * result, 0 * result):
        with pytest.raises(AssertionError):
            assert_decodes((wrong, keys, values), arguments)
    moved = decode((*arguments[:5], arguments[5] + 1))
    with pytest.raises(AssertionError):
        assert_decodes((moved[0], keys, values), arguments)
    with pytest.raises(AssertionError):
        assert_decodes((result, moved[1], values), arguments)


def test_decode_attention_refuses() -> None:
    kernel = nki_decode_attention_kernel
    good = list(decode_inputs((3,), 40, (4, 2), 64, FP32))

    def changed(n: int, value: torch.Tensor) -> list[torch.Tensor]:
        return [*good[:n], value, *good[n + 1 :]]

    assert "head_dim above 128" in refusal(kernel, changed(0, zeros(1, 4, 129)))
    assert "multiple of k's heads" in refusal(kernel, changed(0, zeros(1, 3, 64)))
    assert "more than 128 heads" in refusal(kernel, changed(0, zeros(1, 258, 64)))
    assert "k must have q's batch" in refusal(kernel, changed(1, zeros(2, 2, 64)))
    assert "v must have k's shape" in refusal(kernel, changed(2, zeros(2, 2, 64)))
    assert "k_cache must be" in refusal(kernel, changed(3, zeros(1, 1, 40, 64)))
    assert "v_cache must have k_cache's shape" in refusal(kernel, changed(4, zeros(1, 2, 41, 64)))
    assert "k_cache must have q's dtype" in refusal(kernel, changed(3, good[3].to(BF16)))
    assert "v_cache must have q's dtype" in refusal(kernel, changed(4, good[4].to(BF16)))
    assert "k must have q's dtype" in refusal(kernel, changed(1, good[1].to(BF16)))
    assert "v must have q's dtype" in refusal(kernel, changed(2, good[2].to(BF16)))
    assert "lengths must be" in refusal(kernel, changed(5, torch.zeros(2, 1, dtype=torch.int32)))
    assert "pieces must be" in refusal(kernel, good, pieces=0)
    assert "buffers must be" in refusal(kernel, good, buffers=1)
    assert "0 to 60" in refusal(kernel, good, logit_bound=-1)
    long = torch.zeros(1, 2, 40000, 64)
    assert "96 KiB" in refusal(kernel, [*good[:3], long, long, good[5]])
