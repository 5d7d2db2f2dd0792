"""The Scalar engine: every activation function, scale and bias, accumulators, activate2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored, violations
from tile_bench import NUMPY, ROUNDING, Array, floats, numbers, run, seeds, shapes

from simulator import operators
from simulator.instructions import scalar_engine
from simulator.targets import TARGETS


def phi(z: float) -> float:
    """The normal distribution function."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def softplus(z: float) -> float:
    return max(z, 0) + math.log1p(math.exp(-abs(z)))


def gated_dx(z: float, factor: float) -> float:
    s = logistic(factor * z)
    return s + factor * z * s * logistic(-factor * z)


FUNCTIONS: dict[str, Callable[[float], float]] = {
    "copy": lambda z: z,
    "square": lambda z: z * z,
    "abs": abs,
    "sign": lambda z: float(z > 0) - float(z < 0),
    "relu": lambda z: max(z, 0),
    "sqrt": lambda z: math.sqrt(abs(z)),
    "rsqrt": lambda z: 1 / math.sqrt(abs(z)),
    "reciprocal": lambda z: 1 / z,
    "exp": lambda z: math.exp(min(z, 80)),
    "log": lambda z: math.log(abs(z)),
    "tanh": math.tanh,
    "sigmoid": logistic,
    "silu": lambda z: z * logistic(z),
    "silu_dx": lambda z: gated_dx(z, 1),
    "gelu": lambda z: z * phi(z),
    "gelu_dx": lambda z: phi(z) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    "gelu_apprx_tanh": lambda z: (
        0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    ),
    "gelu_apprx_sigmoid": lambda z: z * logistic(1.702 * z),
    "gelu_apprx_sigmoid_dx": lambda z: gated_dx(z, 1.702),
    "softplus": softplus,
    "mish": lambda z: z * math.tanh(softplus(z)),
    "erf": math.erf,
    "erf_dx": lambda z: 2 / math.sqrt(math.pi) * math.exp(-z * z),
    "sin": math.sin,
    "arctan": math.atan,
}
POSITIVE = {"sqrt", "rsqrt", "log"}
SMALL = {"sin"}
"""Kept in the range where the engine's function is the function."""


def inputs_for(op: str, shape: tuple[int, int], dtype: Any, seed: int) -> Array:
    random = np.random.default_rng(seed)
    size = float(random.choice([1, 3, 8 if op == "exp" else 30]))
    size = min(size, 3.0) if op in SMALL else size
    x = (random.uniform(0.01, size, shape) * random.choice([-1, 1], shape)).astype(NUMPY[dtype])
    return abs(x) if op in POSITIVE else x


def expected_of(op: str, z: Array) -> Array:
    return np.vectorize(FUNCTIONS[op], otypes=[float])(z.astype(np.float64))


@pytest.mark.parametrize("op", FUNCTIONS)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, dtype=floats, to=floats, seed=seeds, in_place=st.booleans())
def test_activation(
    shape: tuple[int, int], dtype: Any, to: Any, seed: int, in_place: bool, op: str
) -> None:
    x = inputs_for(op, shape, dtype, seed)

    def body(x: Any, out: Any) -> None:
        if in_place:
            nisa.activation(dst=x, op=getattr(nl, op), data=x)
            nisa.tensor_copy(dst=out, src=x)
        else:
            nisa.activation(dst=out, op=getattr(nl, op), data=x)

    (found,) = run(body, [x], [(shape, to)])
    expected = expected_of(op, x)
    if in_place:
        expected = expected.astype(np.float32).astype(NUMPY[dtype]).astype(np.float64)
    cast = expected.astype(np.float32).astype(NUMPY[to]).astype(np.float64)
    rounding = max(ROUNDING[to], ROUNDING[dtype] if in_place else 0.0)
    relative = 2 * rounding if op in ("square", "exp") else rounding
    assert (abs(found - cast) <= relative * np.maximum(abs(cast), 1)).all()


TAILS = {
    "silu": [0, 200, 3e38], "gelu": [0, 200, 3e38], "mish": [0, 200, 3e38],
    "softplus": [0, 200, 3e38], "gelu_apprx_tanh": [0, 200, 3e38],
    "gelu_apprx_sigmoid": [0, 200, 3e38], "relu": [0, 200, 3e38],
    "silu_dx": [0, 1, 1], "gelu_dx": [0, 1, 1], "gelu_apprx_sigmoid_dx": [0, 1, 1],
    "sigmoid": [0, 1, 1], "erf_dx": [0, 0, 0], "erf": [-1, 1, 1], "tanh": [-1, 1, 1],
}  # fmt: skip


@pytest.mark.parametrize("op", TAILS)
def test_large_inputs_give_the_limits(op: str) -> None:
    x = np.array([[-200, 200, 3e38, -3e38]], np.float32)

    def body(x: Any, out: Any) -> None:
        nisa.activation(dst=out, op=getattr(nl, op), data=x)

    (found,) = run(body, [x], [((1, 4), nl.float32)])
    np.testing.assert_allclose(found[0], [*TAILS[op], TAILS[op][0]], rtol=1e-6, atol=1e-30)


def test_small_tails_are_relatively_exact() -> None:
    x = np.linspace(-10, -1, 64, dtype=np.float32).reshape(4, 16)
    for op, rounding in (("silu", 1e-6), ("softplus", 1e-6), ("mish", 2e-6), ("sigmoid", 1e-6)):

        def body(x: Any, out: Any, op: str = op) -> None:
            nisa.activation(dst=out, op=getattr(nl, op), data=x)

        (found,) = run(body, [x], [(x.shape, nl.float32)])
        np.testing.assert_allclose(found, expected_of(op, x), rtol=rounding)


def test_erf_is_exact_to_a_millionth() -> None:
    x = np.linspace(-6, 6, 128 * 200, dtype=np.float32).reshape(128, 200)

    def body(x: Any, out: Any) -> None:
        nisa.activation(dst=out, op=nl.erf, data=x)

    (found,) = run(body, [x], [(x.shape, nl.float32)])
    expected = expected_of("erf", x)
    assert abs(found - expected).max() < 4e-7
    small = abs(x) < 0.5
    assert (abs(found - expected)[small] <= 4e-7 * abs(expected[small])).all()


def test_sin_goes_on_as_a_cubic_beyond_pi() -> None:
    x = np.array([[9.0, -9.0, 4.0, 3.0, -3.0, 0.0]], np.float32)

    def body(x: Any, out: Any) -> None:
        nisa.activation(dst=out, op=nl.sin, data=x)

    (found,) = run(body, [x], [(x.shape, nl.float32)])

    def cubic(z: float) -> float:
        return -(z - math.pi) + (z - math.pi) ** 3 / 6

    expected = [cubic(9), -cubic(9), cubic(4), math.sin(3), -math.sin(3), 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-7)
    assert round(float(found[0, 0]), 2) == 27.65


# --- scale, bias, sums --------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shapes, floats, floats, seeds, st.sampled_from(["exp", "silu", "square", "gelu", "copy"]),
    st.sampled_from(["none", "number", "column"]), st.sampled_from(["none", "number", "column"]),
    st.sampled_from([nl.float32, nl.bfloat16, nl.int8]),
)  # fmt: skip
def test_scale_bias_and_the_sum(
    shape: tuple[int, int], dtype: Any, to: Any, seed: int, op: str, scale: str, bias: str,
    bias_dtype: Any,
) -> None:  # fmt: skip
    x = numbers(shape, dtype, seed)
    s = numbers((shape[0], 1), nl.float32, seed + 1)
    b = np.rint(2 * numbers((shape[0], 1), nl.float32, seed + 2)).astype(NUMPY[bias_dtype])

    def body(x: Any, s: Any, b: Any, out: Any, total: Any) -> None:
        more: dict[str, Any] = {}
        if scale != "none":
            more["scale"] = s if scale == "column" else -1.5
        if bias != "none":
            more["bias"] = b if bias == "column" else 0.5
        nisa.activation_reduce(
            dst=out, op=getattr(nl, op), data=x, reduce_op=nl.add, reduce_res=total, **more
        )

    found, total = run(body, [x, s, b], [(shape, to), ((shape[0], 1), nl.float32)])
    z = x.astype(np.float64)
    z = z if scale == "none" else z * (s.astype(np.float64) if scale == "column" else -1.5)
    z = z if bias == "none" else z + (b.astype(np.float64) if bias == "column" else 0.5)
    wanted = expected_of(op, z)
    assert (abs(found.astype(float) - wanted) <= 4 * ROUNDING[to] * (abs(wanted) + 1)).all()
    # The sum is taken before the cast: it is as exact for bf16 as for fp32.
    size = abs(wanted).sum(1, keepdims=True) + 1
    assert (abs(total - wanted.sum(1, keepdims=True)) <= 4e-6 * size).all()


COMMANDS = nisa.reduce_cmd


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["idle", "reset", "reduce", "reset_reduce"]), max_size=5), seeds,
    floats,
)  # fmt: skip
def test_accumulators_follow_their_commands(names: list[str], seed: int, dtype: Any) -> None:
    names = ["reset", *names]
    x = np.random.default_rng(seed).integers(-4, 5, (6, 10)).astype(NUMPY[dtype])

    def body(x: Any, *results: Any) -> None:
        out = nl.ndarray(x.shape, dtype=x.dtype)
        for name, result in zip(names, results, strict=True):
            nisa.activation(
                dst=out, op=nl.copy, data=x, scale=2.0, reduce_op=nl.add, reduce_res=result,
                reduce_cmd=COMMANDS[name],
            )  # fmt: skip

    found = run(body, [x], [((6, 1), nl.float32)] * len(names))
    held = 0.0 * x[:, :1].astype(float)
    for name, array in zip(names, found, strict=True):
        held = 0 * held if "reset" in name else held
        held = held + 2 * x.astype(float).sum(1, keepdims=True) if "reduce" in name else held
        np.testing.assert_array_equal(array, held)


def test_an_instruction_uses_the_accumulators_of_its_partitions() -> None:
    x = numbers((64, 8), nl.float32, 5)

    def body(x: Any, low: Any, high: Any) -> None:
        out = nl.ndarray(x.shape, dtype=x.dtype)
        for command in (COMMANDS.reset_reduce, COMMANDS.reduce):
            nisa.activation(
                dst=out, op=nl.square, data=x, reduce_op=nl.add, reduce_res=None,
                reduce_cmd=command,
            )  # fmt: skip
        for rows, result in ((slice(0, 32), low), (slice(32, 64), high)):
            nisa.activation(
                dst=out[rows], op=nl.square, data=x[rows], reduce_op=nl.add, reduce_res=result,
                reduce_cmd=COMMANDS.reduce,
            )  # fmt: skip

    low, high = run(body, [x], [((32, 1), nl.float32)] * 2)
    sums = 3 * np.square(x.astype(np.float64)).sum(1, keepdims=True)
    np.testing.assert_allclose(low, sums[:32], rtol=1e-6)
    np.testing.assert_allclose(high, sums[32:], rtol=1e-6)


def test_a_sum_written_into_the_destination_comes_last() -> None:
    x = numbers((16, 5), nl.float32, 1)
    for dtype in (nl.float32, nl.bfloat16):

        def body(x: Any, out: Any) -> None:
            nisa.activation_reduce(
                dst=out, op=nl.square, data=x, reduce_op=nl.add, reduce_res=out[:, 2:3]
            )

        (found,) = run(body, [x], [(x.shape, dtype)])
        squares = x.astype(np.float64) ** 2
        squares[:, 2] = squares.sum(1)
        np.testing.assert_allclose(found.astype(float), squares, rtol=2 * ROUNDING[dtype])


def test_a_sum_may_stay_in_the_accumulators() -> None:
    x = numbers((4, 5), nl.float32, 1)

    def body(x: Any, total: Any) -> None:
        out = nl.ndarray(x.shape, dtype=x.dtype)
        nisa.activation_reduce(dst=out, op=nl.copy, data=x, reduce_op=nl.add, reduce_res=None)
        nisa.activation(
            dst=out, op=nl.copy, data=x, reduce_op=nl.add, reduce_res=total,
            reduce_cmd=COMMANDS.reduce,
        )  # fmt: skip

    (total,) = run(body, [x], [((4, 1), nl.float32)])
    np.testing.assert_allclose(total, 2 * x.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


# --- activate2 ----------------------------------------------------------------------------------

PAIRS = [
    ("multiply", "add"), ("multiply", "subtract"), ("multiply", "bypass"), ("add", "bypass"),
    ("subtract", "bypass"), ("bypass", "bypass"),
]  # fmt: skip
STAGES: dict[str, Callable[[Array, Any], Array]] = {
    "multiply": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
}
FOLDS: dict[str, Callable[[Array], Array]] = {
    "add": lambda x: x.sum(1),
    "maximum": lambda x: x.max(1),
    "minimum": lambda x: x.min(1),
    "abs_max": lambda x: np.array([max(row[::-1], key=abs) for row in x]),
    "abs_min": lambda x: np.array([min(row[::-1], key=abs) for row in x]),
}


@settings(max_examples=50, deadline=None)
@given(
    shapes, floats, seeds, st.sampled_from(PAIRS), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["copy", "prelu", "silu", "tanh"]), st.sampled_from(list(FOLDS)),
)  # fmt: skip
def test_activate2(
    shape: tuple[int, int], dtype: Any, seed: int, pair: tuple[str, str], column: bool,
    rev0: bool, rev1: bool, op: str, fold: str,
) -> None:  # fmt: skip
    x = numbers(shape, dtype, seed)
    a, slope = (numbers((shape[0], 1), nl.float32, seed + n) for n in (1, 2))
    rev0, rev1 = rev0 and pair[0] != "bypass", rev1 and pair[1] != "bypass"

    def body(x: Any, a: Any, slope: Any, out: Any, result: Any) -> None:
        nisa.activate2(
            dst=out, op=getattr(nl, op), data=x, imm0=a if column else 0.75,
            imm1=None if pair[1] == "bypass" else a, op0=getattr(nl, pair[0]),
            op1=getattr(nl, pair[1]), relu_param=slope if op == "prelu" else 0.0, reverse0=rev0,
            reverse1=rev1, reduce_op=getattr(nl, fold), reduce_res=result,
            reduce_cmd=COMMANDS.reset_reduce,
        )  # fmt: skip

    found, result = run(
        body, [x, a, slope], [(shape, dtype), ((shape[0], 1), nl.float32)], on="trn3"
    )
    z = x.astype(np.float64)
    for name, value, reverse in (
        (pair[0], a.astype(float) if column else 0.75, rev0), (pair[1], a.astype(float), rev1),
    ):  # fmt: skip
        if name != "bypass":
            z = STAGES[name](value, z) if reverse else STAGES[name](z, value)
    wanted = np.where(z > 0, z, slope * z) if op == "prelu" else expected_of(op, z)
    assert (abs(found.astype(float) - wanted) <= 4 * ROUNDING[dtype] * (abs(wanted) + 1)).all()
    folded = FOLDS[fold](wanted)
    exact = abs(result[:, 0]) if fold.startswith("abs") else result[:, 0]
    folded = abs(folded) if fold.startswith("abs") else folded
    assert (abs(exact - folded) <= 5e-6 * (abs(wanted).sum(1) + 1)).all()


def test_magnitude_reductions_keep_signs_and_accumulate() -> None:
    x = np.array([[1, -3, 3, 2], [-1, 5, -5, 1]], np.float32)
    y = np.array([[-4, 1, 1, 1], [-5, 1, 1, 0.5]], np.float32)

    def body(x: Any, y: Any, first: Any, both: Any, least: Any) -> None:
        out = nl.ndarray(x.shape, dtype=x.dtype)
        for data, fold, result, command in (
            (x, nl.abs_max, first, COMMANDS.reset_reduce), (y, nl.abs_max, both, COMMANDS.reduce),
            (y, nl.abs_min, least, COMMANDS.reset_reduce),
        ):  # fmt: skip
            nisa.activate2(
                dst=out, op=nl.copy, data=data, imm0=0.0, imm1=0.0, op0=nl.bypass,
                op1=nl.bypass, reduce_op=fold, reduce_res=result, reduce_cmd=command,
            )  # fmt: skip

    first, both, least = run(body, [x, y], [((2, 1), nl.float32)] * 3, on="trn3")
    assert first.tolist() == [[3], [-5]]
    assert both.tolist() == [[-4], [-5]]
    assert least.tolist() == [[1], [0.5]]


def test_resets_give_the_identity_of_the_reduction() -> None:
    folds = {nl.add: 0, nl.maximum: -np.inf, nl.minimum: np.inf, nl.abs_max: 0, nl.abs_min: np.inf}

    def body(x: Any, *results: Any) -> None:
        for fold, result in zip(folds, results, strict=True):
            nisa.activate2(
                dst=x, op=nl.copy, data=x, imm0=0.0, imm1=0.0, op0=nl.bypass, op1=nl.bypass,
                reduce_op=fold, reduce_res=result, reduce_cmd=COMMANDS.reset,
            )  # fmt: skip

    found = run(body, [np.ones((2, 2), np.float32)], [((2, 1), nl.float32)] * 5, on="trn3")
    for array, identity in zip(found, folds.values(), strict=True):
        np.testing.assert_array_equal(array, identity)


COVERED = {
    "activation": test_activation,
    "activation_reduce": test_scale_bias_and_the_sum,
    "activate2": test_activate2,
}


# --- limits -------------------------------------------------------------------------------------


def tf32_bias(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1, dtype=nl.tfloat32)
    nisa.memset(dst=column, value=1.0)
    nisa.activation(dst=tile, op=nl.exp, data=tile, bias=column)
    return stored(tile)


def low_scale(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1, dtype=nl.bfloat16)
    nisa.memset(dst=column, value=1.0)
    nisa.activation(dst=tile, op=nl.exp, data=tile, scale=column)
    return stored(tile)


def wide_bias(x: Any) -> Any:
    tile = loaded(x)
    nisa.activation(dst=tile, op=nl.exp, data=tile, bias=tile)
    return stored(tile)


def maximum_of_activations(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1)
    nisa.activation_reduce(dst=tile, op=nl.exp, data=tile, reduce_op=nl.maximum, reduce_res=column)
    return stored(tile)


def prelu_without_a_slope(x: Any) -> Any:
    tile = loaded(x)
    nisa.activation(dst=tile, op=nl.prelu, data=tile)
    return stored(tile)


def activation_of_two(x: Any) -> Any:
    tile = loaded(x)
    nisa.activation(dst=tile, op=nl.add, data=tile)
    return stored(tile)


def packed_activation(x: Any) -> Any:
    tile, packed = loaded(x), sbuf(64, 32, dtype=nl.float8_e5m2_x4)
    nisa.memset(dst=packed, value=0)
    nisa.activation(dst=tile, op=nl.copy, data=packed)
    return stored(tile)


def on_trn2(x: Any) -> Any:
    tile = loaded(x)
    nisa.activate2(
        dst=tile, op=nl.exp, data=tile, imm0=2.0, imm1=None, op0=nl.multiply, op1=nl.bypass
    )
    return stored(tile)


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    tf32_bias: ("dtype", "not tfloat32", "tfloat32"),
    low_scale: ("dtype", "float32", "bfloat16"),
    wide_bias: ("shape", "(P, 1)", "(64, 32)"),
    maximum_of_activations: ("operator", "nl.add", "nl.maximum"),
    prelu_without_a_slope: ("operator", "", "nl.prelu"),
    activation_of_two: ("operator", "", "nl.add"),
    packed_activation: ("dtype", "not packed", "float8_e5m2_x4"),
    on_trn2: ("gen4-only", "generation 4", "trn2"),
}
FIRES = {"reduce-idle", "relu-param"}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def activate2_of(**more: Any) -> Callable[[Any], Any]:
    def kernel(x: Any) -> Any:
        tile = loaded(x)
        given = {"imm0": 1.0, "imm1": 1.0, "op0": nl.multiply, "op1": nl.add, **more}
        nisa.activate2(dst=tile, op=given.pop("op", nl.exp), data=tile, **given)
        return stored(tile)

    return kernel


@pytest.mark.parametrize(
    ("more", "rule", "value"),
    [
        ({"op0": nl.add}, "operator", "(nl.add, nl.add)"),
        ({"op0": nl.maximum, "op1": nl.bypass}, "operator", "nl.maximum"),
        ({"op1": nl.bypass, "reverse1": True}, "operand", "True"),
        ({"imm1": None}, "operand", "None"),
        ({"reduce_op": nl.multiply}, "operator", "nl.multiply"),
    ],
)
def test_activate2_refuses(more: dict[str, Any], rule: str, value: str) -> None:
    (found,) = violations(activate2_of(**more), target="trn3")
    assert (found.rule, found.value) == (rule, value)


def test_what_has_no_effect_is_warned_of() -> None:
    def idle(x: Any) -> Any:
        tile = loaded(x)
        nisa.activation(dst=tile, op=nl.exp, data=tile, reduce_op=nl.add)
        return stored(tile)

    def rules(body: Callable[..., Any]) -> list[str]:
        program = nki.jit(body).specialise(X, target=TARGETS["trn3"])
        return [warning.rule for warning in program.warnings]

    assert rules(idle) == ["reduce-idle"]
    assert rules(activate2_of(op=nl.relu, relu_param=0.5)) == ["relu-param"]
    assert rules(activate2_of(op=nl.prelu, relu_param=0.5)) == []


def test_activate2_and_prelu_came_with_0_4() -> None:
    program = nki.jit(activate2_of(op=nl.prelu)).specialise(X, target=TARGETS["trn3"])
    assert program.versions[0] == "0.4"
    assert {"nisa.activate2", "nl.prelu"} <= set(program.features)


# --- wrong implementations are noticed ----------------------------------------------------------

ONE = {"shape": (3, 9), "dtype": nl.float32, "seed": 4}
MUTANTS: list[tuple[str, Any]] = [
    ("gelu", operators.gelu_apprx_tanh.unary), ("gelu_apprx_tanh", operators.gelu.unary),
    ("gelu_apprx_sigmoid", operators.gelu.unary), ("silu_dx", operators.sigmoid.unary),
    ("softplus", operators.relu.unary), ("mish", operators.silu.unary),
    ("erf", np.tanh), ("erf_dx", np.exp), ("arctan", np.tanh), ("sin", np.tanh),
    ("sign", np.tanh), ("gelu_dx", operators.gelu_apprx_sigmoid_dx.unary),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), MUTANTS, ids=lambda m: m if isinstance(m, str) else "")
def test_a_wrong_function_is_noticed(name: str, wrong: Any) -> None:
    operator = operators.OPERATORS[name]
    inner, right = test_activation.hypothesis.inner_test, operator.unary
    case = {**ONE, "to": nl.float32, "in_place": False, "op": name}
    inner(**case)
    object.__setattr__(operator, "unary", lambda x, out=None, scratch=None: wrong(x, out))
    try:
        with pytest.raises(AssertionError):
            inner(**case)
    finally:
        object.__setattr__(operator, "unary", right)


def test_sums_after_the_cast_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = test_scale_bias_and_the_sum.hypothesis.inner_test
    case = {
        "shape": (7, 24), "dtype": nl.float32, "to": nl.bfloat16, "seed": 1, "op": "exp",
        "scale": "number", "bias": "column", "bias_dtype": nl.float32,
    }  # fmt: skip
    inner(**case)
    right = scalar_engine.row_sums
    monkeypatch.setattr(
        scalar_engine, "row_sums",
        lambda x: right(x.astype(NUMPY[nl.bfloat16]).astype(np.float32)),
    )  # fmt: skip
    with pytest.raises(AssertionError):
        inner(**case)
