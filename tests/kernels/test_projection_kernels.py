"""RoPE, the fused norm, the projections and the head against their PyTorch references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import layer_reference as reference
from kernels.add_rmsnorm import nki_fused_add_rmsnorm_kernel
from kernels.lm_head import nki_lm_head_kernel
from kernels.output_projection import nki_output_projection_kernel
from kernels.qkv_projection import nki_qkv_projection_kernel
from kernels.quantise import quantise_channels
from kernels.rope import nki_rope_kernel

FP32, BF16 = torch.float32, torch.bfloat16
DTYPES = (FP32, BF16)
Arguments = dict[str, Any]


def random(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = FP32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def largest_error(actual: Any, truth: Any) -> float:
    """Largest |difference| over the truth's largest value, the worst of all results."""
    worst = 0.0
    for a, b in zip(as_tuple(actual), as_tuple(truth), strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        error = ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        worst = max(worst, error)
    return worst


def assert_good(actual: Any, expected: Callable[..., Any], arguments: Arguments) -> None:
    """fp32: within 1e-5 of the exact result; bf16: within twice the reference's own error."""
    exact = {
        name: a.double() if torch.is_tensor(a) and a.is_floating_point() else a
        for name, a in arguments.items()
    }
    truth = expected(**exact)
    limit = 1e-5
    if any(torch.is_tensor(a) and a.dtype is BF16 for a in arguments.values()):
        limit = max(2 * largest_error(expected(**arguments), truth), 2**-8)
    assert largest_error(actual, truth) <= limit


def launch(kernel: Any, cores: int) -> Any:
    return kernel[2] if cores == 2 else kernel


def check(kernel: Any, expected: Callable[..., Any], arguments: Arguments, cores: int = 1) -> None:
    assert_good(launch(kernel, cores)(**arguments), expected, arguments)


# --- what the kernels take ----------------------------------------------------------------------


def norm_inputs(rows: int, hidden: int, dtype: torch.dtype, scale: float = 1.0) -> Arguments:
    return {
        "x": random(1, rows, hidden, scale=scale, dtype=dtype),
        "residual": random(2, rows, hidden, scale=scale, dtype=dtype),
        "weight": random(3, hidden, dtype=dtype),
    }


def rope_inputs(
    batch: int, tokens: int, dtype: torch.dtype, heads: tuple[int, int] = (8, 1),
    width: int = 128, offsets: tuple[int, ...] | None = None, positions: int = 2200,
) -> Arguments:  # fmt: skip
    frequencies = 1e6 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return {
        "q": random(1, batch, tokens, heads[0], width, dtype=dtype),
        "k": random(2, batch, tokens, heads[1], width, dtype=dtype),
        "cos": angles.cos().to(dtype),
        "sin": angles.sin().to(dtype),
        "offsets": None if offsets is None else torch.tensor(offsets, dtype=torch.int32)[:, None],
    }


def qkv_inputs(
    tokens: int, hidden: int, dtype: torch.dtype, q_width: int = 256, kv_width: int = 64,
    normed: bool = True, scale: float = 1.0,
) -> Arguments:  # fmt: skip
    columns = q_width + 2 * kv_width
    return {
        "x": random(1, tokens, hidden, scale=scale, dtype=dtype),
        "weight": random(2, hidden, columns, scale=hidden**-0.5, dtype=dtype),
        "kv_width": kv_width,
        "norm_weight": 1 + random(3, hidden, scale=0.2, dtype=dtype) if normed else None,
    }


def output_inputs(
    tokens: int, size: int, hidden: int, dtype: torch.dtype, summed: bool = True
) -> Arguments:
    return {
        "x": random(1, tokens, size, dtype=dtype),
        "weight": random(2, size, hidden, scale=size**-0.5, dtype=dtype),
        "residual": random(3, tokens, hidden, dtype=dtype) if summed else None,
    }


def head_inputs(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, normed: bool = True
) -> Arguments:
    return {
        "x": random(1, tokens, hidden, dtype=dtype),
        "weight": random(2, hidden, vocabulary, scale=hidden**-0.5, dtype=dtype),
        "norm_weight": 1 + random(3, hidden, scale=0.2, dtype=dtype) if normed else None,
    }


def low_precision(arguments: Arguments, bits: torch.dtype) -> tuple[Arguments, Arguments]:
    """(with an fp8 weight and its scales, with the exact weight that these stand for)."""
    quantised, scale = quantise_channels(arguments["weight"], 0)
    given = {**arguments, "weight": quantised.view(bits), "scale": scale}
    return given, {**arguments, "weight": quantised.double() * scale.double()}


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [64, 2048, 4096])
@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
def test_add_rmsnorm(rows: int, hidden: int, dtype: torch.dtype, cores: int) -> None:
    arguments = norm_inputs(rows, hidden, dtype)
    check(nki_fused_add_rmsnorm_kernel, reference.add_rmsnorm, arguments, cores)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 17, 127, 128, 129, 640])
def test_rope_of_prompts(tokens: int, dtype: torch.dtype, cores: int) -> None:
    check(nki_rope_kernel, reference.rope, rope_inputs(1, tokens, dtype), cores)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "offsets"), [(1, (5,)), (1, (0, 2199, 17)), (1, tuple(range(130))), (150, (3, 700))]
)
def test_rope_at_offsets(
    tokens: int, offsets: tuple[int, ...], dtype: torch.dtype, cores: int
) -> None:
    arguments = rope_inputs(len(offsets), tokens, dtype, offsets=offsets)
    check(nki_rope_kernel, reference.rope, arguments, cores)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameters", [{"elements": 1}, {"elements": 6144},
                                        {"sum_on_tensor": False}], ids=str)  # fmt: skip
@pytest.mark.parametrize(("heads", "width"), [((4, 2), 16), ((3, 3), 80), ((2, 1), 512)])
def test_rope_parameters_do_not_change_values(
    heads: tuple[int, int], width: int, parameters: Arguments, dtype: torch.dtype
) -> None:
    arguments = rope_inputs(2, 300, dtype, heads, width, positions=300)
    assert_good(nki_rope_kernel(**arguments, **parameters), reference.rope, arguments)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("tokens", "hidden"),
    [(1, 64), (1, 2048), (17, 4096), (127, 64), (128, 192), (129, 2048), (640, 64)],
)
def test_qkv_projection(
    tokens: int, hidden: int, normed: bool, dtype: torch.dtype, cores: int
) -> None:
    arguments = qkv_inputs(tokens, hidden, dtype, normed=normed)
    check(nki_qkv_projection_kernel, reference.qkv_projection, arguments, cores)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(
    ("tokens", "size", "hidden"),
    [
        (1, 64, 64),
        (1, 1024, 2048),
        (17, 4096, 64),
        (127, 64, 1000),
        (129, 128, 2048),
        (600, 64, 65),
    ],
)
def test_output_projection(
    tokens: int, size: int, hidden: int, summed: bool, dtype: torch.dtype, cores: int
) -> None:
    arguments = output_inputs(tokens, size, hidden, dtype, summed)
    check(nki_output_projection_kernel, reference.output_projection, arguments, cores)


SMALL: list[tuple[Any, Callable[..., Any], Arguments]] = [
    (nki_qkv_projection_kernel, reference.qkv_projection, qkv_inputs(150, 256, FP32)),
    (nki_output_projection_kernel, reference.output_projection, output_inputs(150, 256, 300, FP32)),
]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    "parameters",
    [
        {"split": "tokens"}, {"split": "columns"}, {"column_block": 1536}, {"column_block": 50},
        {"pieces": 1}, {"pieces": 99}, {"evict_engine": "scalar"}, {"evict_engine": "vector"},
        {"warm_up": 0},
    ],
    ids=str,
)  # fmt: skip
def test_projection_parameters_do_not_change_values(parameters: Arguments, cores: int) -> None:
    for kernel, expected, arguments in SMALL:
        assert_good(launch(kernel, cores)(**arguments, **parameters), expected, arguments)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "vocabulary", "normed"),
    [(1, 64, 1000, True), (17, 2048, 3100, False), (129, 64, 65, True), (2, 4096, 320, True)],
)
def test_lm_head(
    tokens: int, hidden: int, vocabulary: int, normed: bool, dtype: torch.dtype, cores: int
) -> None:
    arguments = head_inputs(tokens, hidden, vocabulary, dtype, normed)
    check(nki_lm_head_kernel, reference.lm_head, arguments, cores)


def assert_chooses(found: Any, logits: torch.Tensor) -> None:
    values, indices = found
    best, where = logits.max(-1, keepdim=True)
    assert torch.equal(indices.long(), where)
    torch.testing.assert_close(values.to(best.dtype), best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 64), (3, 1540), (130, 1000), (2, 6001)])
def test_lm_head_chooses(tokens: int, vocabulary: int, cores: int) -> None:
    arguments = head_inputs(tokens, 64, vocabulary, FP32)
    exact = {name: a.double() for name, a in arguments.items()}
    found = launch(nki_lm_head_kernel, cores)(**arguments, argmax=True)
    assert_chooses(found, reference.lm_head(**exact))
    moved = launch(nki_lm_head_kernel, cores)(**arguments, argmax=True, vocabulary_offset=70000)
    assert torch.equal(moved[1], found[1] + 70000)


@pytest.mark.parametrize("cores", [1, 2])
def test_lm_head_chooses_the_first_of_equal_logits(cores: int) -> None:
    arguments = {"x": torch.ones(2, 64), "weight": torch.zeros(64, 4000)}
    arguments["weight"][:, [77, 78, 1999, 2500, 3999]] = 1.0
    _, indices = launch(nki_lm_head_kernel, cores)(**arguments, argmax=True)
    assert indices.tolist() == [[77], [77]]
    arguments["weight"][:] = -3.0
    _, indices = launch(nki_lm_head_kernel, cores)(**arguments, argmax=True)
    assert indices.tolist() == [[0], [0]]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("bits", [torch.float8_e4m3fn, torch.uint8], ids=str)
@pytest.mark.parametrize("tokens", [1, 130])
def test_fp8_weights(tokens: int, bits: torch.dtype, cores: int) -> None:
    for kernel, expected, arguments in (
        (nki_qkv_projection_kernel, reference.qkv_projection, qkv_inputs(tokens, 256, BF16)),
        (
            nki_output_projection_kernel,
            reference.output_projection,
            output_inputs(tokens, 256, 300, BF16),
        ),
        (nki_lm_head_kernel, reference.lm_head, head_inputs(tokens, 256, 1000, BF16)),
    ):
        given, exact = low_precision(arguments, bits)
        truth = expected(**{n: a.double() if torch.is_tensor(a) else a for n, a in exact.items()})
        assert largest_error(launch(kernel, cores)(**given), truth) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("tokens", [1, 640, 2048])
def test_projections_at_full_size(tokens: int, cores: int) -> None:
    arguments = qkv_inputs(tokens, 2048, BF16, 1024, 128)
    check(nki_qkv_projection_kernel, reference.qkv_projection, arguments, cores)
    arguments = output_inputs(tokens, 1024, 2048, BF16)
    check(nki_output_projection_kernel, reference.output_projection, arguments, cores)


# --- extreme values -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e15])
def test_small_and_large_values(scale: float, dtype: torch.dtype) -> None:
    check(nki_fused_add_rmsnorm_kernel, reference.add_rmsnorm, norm_inputs(5, 64, dtype, scale))
    arguments = qkv_inputs(5, 64, dtype, scale=scale)
    check(nki_qkv_projection_kernel, reference.qkv_projection, arguments)


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_zeros_and_denormals_stay_finite(value: float) -> None:
    cases: list[tuple[Any, Callable[..., Any], Arguments]] = [
        (nki_fused_add_rmsnorm_kernel, reference.add_rmsnorm, norm_inputs(5, 64, FP32)),
        (nki_qkv_projection_kernel, reference.qkv_projection, qkv_inputs(5, 64, FP32)),
        (nki_output_projection_kernel, reference.output_projection, output_inputs(5, 64, 64, FP32)),
        (nki_lm_head_kernel, reference.lm_head, head_inputs(5, 64, 100, FP32)),
        (nki_rope_kernel, reference.rope, rope_inputs(1, 5, FP32)),
    ]
    for kernel, expected, arguments in cases:
        filled = {
            name: torch.full_like(a, value) if name in ("x", "residual", "q", "k") and a is not None
            else a
            for name, a in arguments.items()
        }  # fmt: skip
        results = zip(as_tuple(kernel(**filled)), as_tuple(expected(**filled)), strict=True)
        for a, b in results:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-38)


# --- what must be noticed, and refused ----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_five_percent_is_caught(dtype: torch.dtype) -> None:
    cases: list[tuple[Any, Callable[..., Any], Arguments]] = [
        (nki_fused_add_rmsnorm_kernel, reference.add_rmsnorm, norm_inputs(5, 64, dtype)),
        (nki_rope_kernel, reference.rope, rope_inputs(1, 20, dtype)),
        (nki_qkv_projection_kernel, reference.qkv_projection, qkv_inputs(5, 64, dtype)),
        (nki_output_projection_kernel, reference.output_projection,
         output_inputs(5, 64, 64, dtype)),
        (nki_lm_head_kernel, reference.lm_head, head_inputs(5, 64, 100, dtype)),
    ]  # fmt: skip
    for kernel, expected, arguments in cases:
        right = as_tuple(kernel(**arguments))
        assert_good(right, expected, arguments)
        for n in range(len(right)):
            for factor in (1.05, 0.95, 0.0):
                wrong = tuple(r * factor if i == n else r for i, r in enumerate(right))
                with pytest.raises(AssertionError):
                    assert_good(wrong, expected, arguments)


def test_a_wrong_offset_is_caught() -> None:
    arguments = rope_inputs(2, 1, FP32, offsets=(7, 8))
    result = nki_rope_kernel(**{**arguments, "offsets": arguments["offsets"] + 1})
    with pytest.raises(AssertionError):
        assert_good(result, reference.rope, arguments)


def refusal(kernel: Any, arguments: Arguments, **changes: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        kernel(**{**arguments, **changes})
    return str(caught.value)


def zeros(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def test_add_rmsnorm_refuses() -> None:
    kernel, good = nki_fused_add_rmsnorm_kernel, norm_inputs(2, 64, FP32)
    assert "residual must have x's shape" in refusal(kernel, good, residual=zeros(1, 64))
    assert "residual must have x's dtype" in refusal(
        kernel, good, residual=zeros(2, 64, dtype=BF16)
    )
    assert "weight must have" in refusal(kernel, good, weight=zeros(63))
    wide = {"x": zeros(1, 4097), "residual": zeros(1, 4097), "weight": zeros(4097)}
    assert "above 4096" in refusal(kernel, wide)


def test_rope_refuses() -> None:
    kernel, good = nki_rope_kernel, rope_inputs(1, 3, FP32)
    assert "odd head_dim" in refusal(kernel, good, q=zeros(1, 3, 8, 127))
    assert "k must have q's batch" in refusal(kernel, good, k=zeros(1, 2, 1, 128))
    assert "k must have q's dtype" in refusal(kernel, good, k=zeros(1, 3, 1, 128, dtype=BF16))
    assert "6144" in refusal(kernel, good, q=zeros(1, 3, 48, 128))
    assert "rows of head_dim" in refusal(kernel, good, cos=zeros(10, 64))
    assert "sin must have" in refusal(kernel, good, sin=zeros(10, 128))
    assert "fewer rows" in refusal(kernel, good, cos=zeros(2, 128), sin=zeros(2, 128))
    assert "elements must be" in refusal(kernel, good, elements=6145)


def test_projections_refuse() -> None:
    low = torch.zeros(64, 384, dtype=torch.float8_e4m3fn)
    for kernel, good in (
        (nki_qkv_projection_kernel, qkv_inputs(2, 64, FP32)),
        (nki_output_projection_kernel, output_inputs(2, 64, 384, FP32)),
        (nki_lm_head_kernel, head_inputs(2, 64, 384, FP32)),
    ):
        assert "as rows" in refusal(kernel, good, weight=zeros(63, 384))
        assert "weight must have x's dtype" in refusal(
            kernel, good, weight=zeros(64, 384, dtype=BF16)
        )
        assert "x must be bfloat16" in refusal(kernel, good, weight=low)
        short = {n: a.to(BF16) if torch.is_tensor(a) else a for n, a in good.items()}
        assert "needs scale" in refusal(kernel, short, weight=low)
        assert "one number for each" in refusal(kernel, short, weight=low, scale=zeros(383))
        assert "goes with an fp8 weight" in refusal(kernel, good, scale=zeros(384))
        assert "pieces must be" in refusal(kernel, good, pieces=0)
        assert "column_block must be" in refusal(kernel, good, column_block=0)
        assert "engine must be" in refusal(kernel, good, evict_engine="gpsimd")
    good = qkv_inputs(2, 64, FP32)
    assert "kv_width must" in refusal(nki_qkv_projection_kernel, good, kv_width=192)
    assert "norm_weight must" in refusal(nki_qkv_projection_kernel, good, norm_weight=zeros(63))
    good = output_inputs(2, 64, 384, FP32)
    assert "residual must be" in refusal(nki_output_projection_kernel, good, residual=zeros(2, 383))
    assert "split must be" in refusal(nki_output_projection_kernel[2], good, split="rows")
    good = head_inputs(2, 64, 63, FP32)
    assert "fewer than 64" in refusal(nki_lm_head_kernel, good, argmax=True)
    assert "2^24" in refusal(
        nki_lm_head_kernel, head_inputs(2, 64, 64, FP32), argmax=True, vocabulary_offset=2**24
    )
