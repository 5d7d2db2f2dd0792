"""The mixture-of-experts kernels against their PyTorch references, on one core and on two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import moe_reference, quantise
from kernels.expert_aggregation import nki_expert_aggregation_kernel
from kernels.expert_mlp import nki_fused_expert_mlp_kernel
from kernels.moe_decode import nki_moe_decode_kernel
from kernels.moe_grouping import capacities
from kernels.moe_prefill import nki_moe_prefill_kernel
from kernels.router import nki_expert_router_kernel

FP32, BF16 = torch.float32, torch.bfloat16
Tensors = tuple[torch.Tensor, ...]


def random(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = FP32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def largest_error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest |difference| over the truth's largest value."""
    assert actual.shape == truth.shape
    assert torch.isfinite(actual).all()
    return ((actual.double() - truth.double()).abs().max() / truth.double().abs().max()).item()


def assert_good(
    actual: torch.Tensor, reference: Callable[..., torch.Tensor], arguments: Tensors, **given: Any
) -> None:
    """fp32: within 1e-5 of the exact result; bf16: within twice the reference's own error."""
    exact = tuple(a.double() if a.is_floating_point() else a for a in arguments)
    truth = reference(*exact, **given)
    limit = 1e-5
    if arguments[0].dtype is BF16:
        limit = max(2 * largest_error(reference(*arguments, **given), truth), 2**-8)
    assert largest_error(actual, truth) <= limit


def launch(kernel: Any, cores: int) -> Any:
    return kernel[2] if cores == 2 else kernel


# --- router -----------------------------------------------------------------------------------


def assert_routes(
    weights: torch.Tensor, chosen: torch.Tensor, logits: torch.Tensor, top_k: int, normalise: bool
) -> None:
    """Chosen experts have the largest logits (or ones as large), with their softmax weights."""
    probabilities = logits.double().softmax(-1)
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    shares = probabilities.gather(1, chosen.long())
    best = probabilities.topk(top_k).values
    torch.testing.assert_close(shares, best, rtol=1e-5, atol=1e-9)
    if normalise:
        shares = shares / shares.sum(-1, keepdim=True)
    torch.testing.assert_close(weights.double(), shares, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k"), [(8, 1), (8, 8), (128, 2), (128, 8), (128, 9), (128, 17)]
)
@pytest.mark.parametrize("tokens", [1, 127, 129])
def test_router_on_logits(tokens: int, experts: int, top_k: int, normalise: bool) -> None:
    logits = random(tokens, tokens, experts, scale=3.0)
    weights, chosen = nki_expert_router_kernel(logits, top_k=top_k, normalise=normalise)
    assert_routes(weights, chosen, logits, top_k, normalise)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "experts"), [(1, 64, 8), (17, 4096, 128), (129, 2048, 128), (640, 64, 128)]
)
def test_router_with_its_product(
    tokens: int, hidden: int, experts: int, dtype: torch.dtype, cores: int
) -> None:
    x = random(1, tokens, hidden, dtype=dtype)
    matrix = random(2, hidden, experts, scale=hidden**-0.5, dtype=dtype)
    weights, chosen = launch(nki_expert_router_kernel, cores)(x, matrix, top_k=8)
    assert_routes(weights, chosen, x.double() @ matrix.double(), 8, True)


def test_router_takes_the_lower_number_of_equal_experts_first() -> None:
    logits = torch.zeros(3, 32)
    logits[1, 5:25] = 2.0
    logits[2, ::2] = -1.0
    _, chosen = nki_expert_router_kernel(logits, top_k=12)
    expected = [list(range(12)), list(range(5, 17)), list(range(1, 25, 2))]
    assert chosen.tolist() == expected


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e4, -3e38])
def test_router_of_extreme_logits(value: float) -> None:
    logits = torch.full((2, 16), value)
    logits[1, 3] = abs(value) + 1
    weights, chosen = nki_expert_router_kernel(logits, top_k=8)
    assert_routes(weights, chosen, logits, 8, True)
    assert chosen[1, 0] == 3


# --- one expert, and the sum ------------------------------------------------------------------


def mlp_inputs(tokens: int, hidden: int, inner: int, dtype: torch.dtype) -> Tensors:
    return (
        random(1, tokens, hidden, dtype=dtype),
        random(2, hidden, inner, scale=hidden**-0.5, dtype=dtype),
        random(3, hidden, inner, scale=hidden**-0.5, dtype=dtype),
        random(4, inner, hidden, scale=inner**-0.5, dtype=dtype),
    )


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner"),
    [(1, 64, 32), (17, 4096, 192), (127, 192, 33), (129, 64, 768), (300, 2048, 192)],
)
def test_expert_mlp(tokens: int, hidden: int, inner: int, dtype: torch.dtype, cores: int) -> None:
    arguments = mlp_inputs(tokens, hidden, inner, dtype)
    result = launch(nki_fused_expert_mlp_kernel, cores)(*arguments)
    assert_good(result, moe_reference.expert_mlp, arguments)


@pytest.mark.parametrize("engine", ["vector", "scalar", "both"])
@pytest.mark.parametrize("token_block", [1, 100, 512])
def test_expert_mlp_parameters_do_not_change_values(token_block: int, engine: str) -> None:
    arguments = mlp_inputs(130, 64, 32, FP32)
    result = nki_fused_expert_mlp_kernel(*arguments, token_block=token_block, evict_engine=engine)
    assert_good(result, moe_reference.expert_mlp, arguments)


def test_expert_mlp_of_large_and_small_values() -> None:
    for scale in (0.0, 1e-20, 1e3):
        arguments = mlp_inputs(5, 64, 32, FP32)
        scaled = (arguments[0] * scale, *arguments[1:])
        expected = moe_reference.expert_mlp(*(a.double() for a in scaled))
        result = nki_fused_expert_mlp_kernel(*scaled).double()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6 * scale**2 + 1e-38)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "top_k", "hidden"),
    [(1, 1, 64), (127, 2, 64), (129, 8, 2048), (640, 8, 64), (3, 8, 4096)],
)
def test_aggregation(tokens: int, top_k: int, hidden: int, dtype: torch.dtype, cores: int) -> None:
    arguments = (
        random(1, tokens, top_k, hidden, dtype=dtype),
        random(2, tokens, top_k).softmax(-1),
    )
    result = launch(nki_expert_aggregation_kernel, cores)(*arguments)
    assert_good(result, moe_reference.aggregate, arguments)


# --- prefill ----------------------------------------------------------------------------------


def expert_weights(experts: int, hidden: int, inner: int, dtype: torch.dtype) -> Tensors:
    return (
        random(5, experts, hidden, 2 * inner, scale=hidden**-0.5, dtype=dtype),
        random(6, experts, inner, hidden, scale=inner**-0.5, dtype=dtype),
    )


def routed(tokens: int, experts: int, top_k: int, skew: float) -> Tensors:
    """Weights and experts; a large skew sends most tokens to the same experts."""
    logits = random(7, tokens, experts, scale=2.0) + random(8, experts, scale=skew)
    return moe_reference.router(logits, None, top_k)


def prefill_inputs(
    tokens: int, hidden: int, inner: int, experts: int, top_k: int, dtype: torch.dtype,
    skew: float = 1.0,
) -> Tensors:  # fmt: skip
    x = random(9, tokens, hidden, dtype=dtype)
    weights = expert_weights(experts, hidden, inner, dtype)
    return (x, *routed(tokens, experts, top_k, skew), *weights)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "experts", "top_k"),
    [
        (1, 64, 32, 8, 1), (1, 64, 32, 128, 8), (17, 256, 192, 8, 2), (33, 64, 160, 8, 2),
        (127, 64, 32, 8, 8), (128, 64, 33, 16, 2), (129, 64, 32, 128, 8), (20, 2048, 192, 8, 2),
        (17, 4096, 32, 8, 2),
    ],
)  # fmt: skip
def test_prefill(
    tokens: int, hidden: int, inner: int, experts: int, top_k: int, dtype: torch.dtype, cores: int
) -> None:
    arguments = prefill_inputs(tokens, hidden, inner, experts, top_k, dtype)
    result = launch(nki_moe_prefill_kernel, cores)(*arguments)
    assert_good(result, moe_reference.experts, arguments)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("skew", [0.0, 100.0])
def test_prefill_of_even_and_of_overfull_experts(skew: float, cores: int) -> None:
    arguments = prefill_inputs(300, 64, 32, 16, 2, FP32, skew)
    busiest = arguments[2].flatten().long().bincount(minlength=16).max()
    assert busiest == 300 if skew else busiest < 150
    result = launch(nki_moe_prefill_kernel, cores)(*arguments)
    assert_good(result, moe_reference.experts, arguments)


def test_prefill_reads_nothing_of_experts_without_tokens() -> None:
    arguments = list(prefill_inputs(40, 64, 32, 16, 2, FP32, 100.0))
    empty = [e for e in range(16) if not (arguments[2] == e).any()]
    assert len(empty) == 14
    expected = moe_reference.experts(*arguments)
    arguments[3], arguments[4] = arguments[3].clone(), arguments[4].clone()
    arguments[3][empty[8:]] = torch.nan
    arguments[4][empty[8:]] = torch.nan
    result = nki_moe_prefill_kernel(*arguments, buffers=2)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parameters",
    [
        {"capacity_step": 16}, {"capacity_step": 128}, {"token_block": 16}, {"token_block": 512},
        {"buffers": 1}, {"buffers": 9}, {"evict_engine": "scalar"},
    ],
    ids=str,
)  # fmt: skip
def test_prefill_parameters_do_not_change_values(parameters: dict[str, Any]) -> None:
    arguments = prefill_inputs(130, 64, 32, 8, 2, FP32)
    result = nki_moe_prefill_kernel(*arguments, **parameters)
    assert_good(result, moe_reference.experts, arguments)


def test_no_routing_has_more_tokens_than_a_visit_has_slots() -> None:
    for skew in (0.0, 0.5, 3.0, 30.0):
        chosen = routed(100, 32, 4, skew)[1]
        counts = chosen.flatten().long().bincount(minlength=32).sort(descending=True).values
        sizes = capacities(100, 4, 32, 16)
        assert all(count <= size for count, size in zip(counts.tolist(), sizes, strict=True))


@pytest.fixture(scope="module")
def full_size_weights() -> tuple[Tensors, Tensors]:
    """Of 128 experts in bf16, and the same in fp32; they take seconds to make."""
    weights = expert_weights(128, 2048, 192, BF16)
    return weights, tuple(w.float() for w in weights)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [640, 2048])
def test_prefill_at_full_size(tokens: int, full_size_weights: tuple[Tensors, Tensors]) -> None:
    weights, exact_weights = full_size_weights
    x, routes = random(9, tokens, 2048, dtype=BF16), routed(tokens, 128, 8, 1.0)
    arguments, exact = (x, *routes, *weights), (x.float(), *routes, *exact_weights)
    result = nki_moe_prefill_kernel[2](*arguments)
    truth = moe_reference.experts(*exact)
    own = largest_error(moe_reference.experts(*arguments), truth)
    assert largest_error(result, truth) <= max(2 * own, 2**-8)


# --- decode -----------------------------------------------------------------------------------


def decode_inputs(
    tokens: int, hidden: int, inner: int, experts: int, dtype: torch.dtype
) -> Tensors:
    return (
        random(10, tokens, hidden, dtype=dtype),
        1 + random(11, hidden, scale=0.1, dtype=dtype),
        random(12, hidden, experts, scale=3 * hidden**-0.5, dtype=dtype),
        *expert_weights(experts, hidden, inner, dtype),
    )


DECODE = [
    (1, 64, 32, 8, 1), (1, 256, 192, 8, 8), (1, 2048, 192, 16, 8), (2, 64, 32, 16, 9),
    (3, 64, 32, 8, 1), (4, 256, 33, 128, 8), (32, 64, 32, 8, 2),
    (1, 4096, 32, 8, 2),
]  # fmt: skip


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "inner", "experts", "top_k"), DECODE)
def test_decode(
    tokens: int, hidden: int, inner: int, experts: int, top_k: int, dtype: torch.dtype, cores: int
) -> None:
    arguments = decode_inputs(tokens, hidden, inner, experts, dtype)
    result = launch(nki_moe_decode_kernel, cores)(*arguments, top_k=top_k)
    assert_good(result, moe_reference.moe_layer, arguments, top_k=top_k)


@pytest.mark.parametrize("cores", [1, 2])
def test_decode_without_normalised_weights(cores: int) -> None:
    arguments = decode_inputs(2, 64, 32, 16, FP32)
    result = launch(nki_moe_decode_kernel, cores)(*arguments, top_k=10, normalise=False)
    assert_good(result, moe_reference.moe_layer, arguments, top_k=10, normalise=False)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3])
def test_decode_of_large_and_small_tokens(scale: float) -> None:
    arguments = decode_inputs(1, 64, 32, 16, FP32)
    scaled = (arguments[0] * scale, *arguments[1:])
    result = nki_moe_decode_kernel(*scaled, top_k=2)
    assert_good(result, moe_reference.moe_layer, scaled, top_k=2)


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_zeros_and_denormals_stay_finite(value: float) -> None:
    prefill = prefill_inputs(20, 64, 32, 8, 2, FP32)
    decode = decode_inputs(2, 64, 32, 8, FP32)
    for kernel, reference, arguments, given in (
        (nki_moe_prefill_kernel, moe_reference.experts, prefill, {}),
        (nki_moe_decode_kernel, moe_reference.moe_layer, decode, {"top_k": 2}),
    ):
        filled = (torch.full_like(arguments[0], value), *arguments[1:])
        expected = reference(*filled, **given)
        torch.testing.assert_close(kernel(*filled, **given), expected, rtol=1e-5, atol=1e-38)


def test_decode_reads_only_the_chosen_experts() -> None:
    arguments = list(decode_inputs(1, 64, 32, 16, FP32))
    expected = moe_reference.moe_layer(*arguments, top_k=2)
    normed = moe_reference.rmsnorm(arguments[0], arguments[1], 1e-6)
    chosen = moe_reference.router(normed, arguments[2], 2)[1][0].tolist()
    others = [e for e in range(16) if e not in chosen]
    for n in (3, 4):
        arguments[n] = arguments[n].clone()
        arguments[n][others] = torch.nan
    result = nki_moe_decode_kernel(*arguments, top_k=2)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_decode_agrees_with_its_parts() -> None:
    x, norm, matrix, gate_up, down = decode_inputs(4, 256, 192, 16, FP32)
    normed = moe_reference.rmsnorm(x, norm, 1e-6)
    weights, chosen = nki_expert_router_kernel(normed, matrix, top_k=2)
    parts = nki_moe_prefill_kernel(normed, weights, chosen, gate_up, down)
    whole = nki_moe_decode_kernel(x, norm, matrix, gate_up, down, top_k=2)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


# --- fp8 weights ------------------------------------------------------------------------------


def test_quantiser_uses_the_whole_range_of_the_chip_s_format() -> None:
    weight = random(1, 4, 64, 32)
    weight[0, :, 3] = 0
    weight[1, 5, 7] = 1e6
    quantised, scales = quantise.quantise_channels(weight, 1)
    values = quantised.float()
    assert values.abs().max() == quantise.LARGEST
    assert (scales > 0).all()
    error = (values * scales[:, None, :] - weight).abs()
    assert (error <= weight.abs() / 16 + scales[:, None, :] * 2**-9).all()


def quantised_inputs(experts: int, hidden: int, inner: int) -> tuple[Tensors, Tensors]:
    """(what a kernel takes, exact weights that these stand for)."""
    made = quantise.quantise_experts(*expert_weights(experts, hidden, inner, FP32))
    return tuple(made), quantise.dequantise_experts(made)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("bits", [torch.float8_e4m3fn, torch.uint8], ids=str)
def test_fp8_decode(bits: torch.dtype, cores: int) -> None:
    x, norm, matrix, _, _ = decode_inputs(2, 256, 192, 16, BF16)
    (gate_up, down, scales), exact = quantised_inputs(16, 256, 192)
    result = launch(nki_moe_decode_kernel, cores)(
        x, norm, matrix, gate_up.view(bits), down.view(bits), scales, top_k=2
    )
    truth = moe_reference.moe_layer(
        x.double(), norm.double(), matrix.double(), *(w.double() for w in exact), top_k=2
    )
    assert largest_error(result, truth) < 0.01


@pytest.mark.parametrize("cores", [1, 2])
def test_fp8_prefill(cores: int) -> None:
    x, weights, chosen, _, _ = prefill_inputs(130, 256, 192, 16, 2, BF16)
    (gate_up, down, scales), exact = quantised_inputs(16, 256, 192)
    result = launch(nki_moe_prefill_kernel, cores)(x, weights, chosen, gate_up, down, scales)
    truth = moe_reference.experts(x.double(), weights, chosen, *(w.double() for w in exact))
    assert largest_error(result, truth) < 0.01


def test_fp8_expert_mlp() -> None:
    (gate_up, down, scales), exact = quantised_inputs(1, 256, 192)
    x = random(1, 130, 256, dtype=BF16)
    gate, up = (w.contiguous() for w in gate_up[0].split(192, dim=-1))
    result = nki_fused_expert_mlp_kernel(x, gate, up, down[0], scales[0, :192], scales[0, 192:])
    exact_gate, exact_up = exact[0][0].double().split(192, dim=-1)
    truth = moe_reference.expert_mlp(x.double(), exact_gate, exact_up, exact[1][0].double())
    assert largest_error(result, truth) < 0.01


# --- what must be noticed, and refused --------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_five_percent_is_caught(dtype: torch.dtype) -> None:
    mlp, prefill = mlp_inputs(20, 64, 32, dtype), prefill_inputs(20, 64, 32, 8, 2, dtype)
    decode = decode_inputs(2, 64, 32, 8, dtype)
    parts = (random(1, 20, 8, 64, dtype=dtype), random(2, 20, 8).softmax(-1))
    cases: list[tuple[Any, Callable[..., torch.Tensor], Tensors, dict[str, Any]]] = [
        (nki_fused_expert_mlp_kernel, moe_reference.expert_mlp, mlp, {}),
        (nki_moe_prefill_kernel, moe_reference.experts, prefill, {}),
        (nki_moe_decode_kernel, moe_reference.moe_layer, decode, {"top_k": 2}),
        (nki_expert_aggregation_kernel, moe_reference.aggregate, parts, {}),
    ]
    for kernel, reference, arguments, given in cases:
        right = kernel(*arguments, **given)
        assert_good(right, reference, arguments, **given)
        for factor in (1.05, 0.95, 0.0):
            with pytest.raises(AssertionError):
                assert_good(right * factor, reference, arguments, **given)


def test_a_wrong_weight_or_expert_of_the_router_is_caught() -> None:
    logits = random(1, 5, 16)
    weights, chosen = nki_expert_router_kernel(logits, top_k=4)
    with pytest.raises(AssertionError):
        assert_routes(weights * 1.05, chosen, logits, 4, True)
    with pytest.raises(AssertionError):
        assert_routes(weights, (chosen + 1) % 16, logits, 4, True)


def refusal(kernel: Any, *arguments: Any, **given: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        kernel(*arguments, **given)
    return str(caught.value)


def zeros(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def test_router_refuses() -> None:
    kernel = nki_expert_router_kernel
    assert "fewer than 8 experts" in refusal(kernel, zeros(1, 7), top_k=1)
    assert "top_k must be 1" in refusal(kernel, zeros(1, 8), top_k=9)
    assert "more than 512 experts" in refusal(kernel, zeros(1, 64), zeros(64, 513))
    assert "x's hidden dimension" in refusal(kernel, zeros(1, 64), zeros(32, 8))


def test_expert_mlp_refuses() -> None:
    kernel, (x, gate, up, down) = nki_fused_expert_mlp_kernel, mlp_inputs(2, 64, 32, FP32)
    assert "gate_weight must be" in refusal(kernel, x, zeros(32, 32), up, down)
    assert "up_weight must have" in refusal(kernel, x, gate, zeros(64, 16), down)
    assert "down_weight must be" in refusal(kernel, x, gate, up, zeros(32, 32))
    assert "token_block must be" in refusal(kernel, x, gate, up, down, token_block=513)
    assert "engine must be" in refusal(kernel, x, gate, up, down, evict_engine="gpsimd")
    low = [w.to(torch.float8_e4m3fn) for w in (gate, up, down)]
    assert "x must be bfloat16" in refusal(kernel, x, *low)
    assert "need gate_scale" in refusal(kernel, x.to(BF16), *low)
    assert "128 KiB" in refusal(
        kernel, zeros(1, 4096), *(zeros(4096, 2048),) * 2, zeros(2048, 4096)
    )


def test_prefill_refuses() -> None:
    kernel = nki_moe_prefill_kernel
    x, weights, chosen, gate_up, down = prefill_inputs(4, 64, 32, 8, 2, FP32)
    rest = (gate_up, down)
    assert "weights must have" in refusal(kernel, x, weights[:, :1], chosen, *rest)
    assert "chosen must have x's tokens" in refusal(kernel, x[:3], weights, chosen, *rest)
    assert "gate_up must be" in refusal(kernel, x, weights, chosen, gate_up[:, :, :32], down)
    assert "down must be" in refusal(kernel, x, weights, chosen, gate_up, down[:, :, :32])
    assert "capacity_step must" in refusal(kernel, x, weights, chosen, *rest, capacity_step=8)
    assert "token_block must" in refusal(kernel, x, weights, chosen, *rest, token_block=8)
    many = zeros(130, 64, 64), zeros(130, 32, 64)
    assert "more than 128 experts" in refusal(kernel, x, weights, chosen, *many)
    odd = zeros(4, 384), weights, chosen, zeros(8, 384, 64), zeros(8, 32, 384)
    assert "power of two" in refusal(kernel, *odd)
    long = zeros(2049, 64), zeros(2049, 2), zeros(2049, 2, dtype=torch.int32)
    assert "more than 2048 tokens" in refusal(kernel, *long, *rest)


def test_decode_refuses() -> None:
    kernel = nki_moe_decode_kernel
    x, norm, matrix, gate_up, down = decode_inputs(2, 64, 32, 8, FP32)
    assert "1 to 32 tokens" in refusal(kernel, zeros(33, 64), norm, matrix, gate_up, down)
    assert "8 to 512 experts" in refusal(kernel, x, norm, matrix[:, :4], gate_up, down)
    assert "gate_up must be" in refusal(kernel, x, norm, matrix, gate_up[:7], down)
    assert "down must be" in refusal(kernel, x, norm, matrix, gate_up, down[:7])
    assert "top_k must be" in refusal(kernel, x, norm, matrix, gate_up, down, top_k=9)
    low = gate_up.to(torch.float8_e4m3fn), down.to(torch.float8_e4m3fn)
    assert "x must be bfloat16" in refusal(kernel, x, norm, matrix, *low, top_k=2)
    short = tuple(a.to(BF16) for a in (x, norm, matrix))
    assert "need scales" in refusal(kernel, *short, *low, top_k=2)


def test_aggregation_refuses() -> None:
    kernel = nki_expert_aggregation_kernel
    assert "weights must be" in refusal(kernel, zeros(2, 8, 64), zeros(2, 7))
    assert "top_k above 32" in refusal(kernel, zeros(2, 33, 64), zeros(2, 33))
    assert "columns must be" in refusal(kernel, zeros(2, 8, 64), zeros(2, 8), columns=100)
