"""The operators that instructions take as `op`: ALU operators and activation functions.

One table for checks and execution. Source: nki_facts.md §2.7, §2.10, §5. Arithmetic is fp32,
comparisons and logical operators give 1.0 or 0.0; bitvec operators work on the bits of integers.
Called as functions (`nl.add(x, y)`), the same objects are nki.language's functions on tiles:
`simulator.language` fills in `FUNCTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from simulator import activations as act
from simulator.errors import refuse

Array = np.ndarray[Any, Any]
Kind = Literal["arithmetic", "bitvec", "function"]

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Name -> what calling the operator on tiles does."""


@dataclass(frozen=True, eq=False)
class Operator:
    """An `nl.*` object used as `op`, `op0`, `op1`, `reduce_op` or `cmp_op`."""

    name: str
    binary: Callable[..., Array] | None = None
    """ALU: f(x, y, out=None) in fp32; of a bitvec operator on unsigned integers of one dtype."""
    reduction: np.ufunc | None = None
    """The ufunc that reduces with it, if it may reduce."""
    unary: Callable[..., Array] | None = None
    """Activation or unary ALU: f(x, out=None) in fp32; see `reuses_input`."""
    kind: Kind = "arithmetic"
    predicate: np.ufunc | None = None
    """Of comparisons and logical operators: the ufunc that gives booleans."""
    reuses_input: bool = False
    """`unary` reads x after it began to write; it is called f(x, out, scratch), where scratch
    is an fp32 array that does not overlap x."""
    generation: int = 2
    """The first NeuronCore generation that has it."""
    since: str = "0.3"
    """The first `nki` version that has it."""

    def __repr__(self) -> str:
        return f"nl.{self.name}"

    def __deepcopy__(self, memo: Any) -> Operator:
        """An operator is one object, also in a copy of what holds it."""
        return self

    def __copy__(self) -> Operator:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function of nki.language: works on tiles and returns a new one."""
        function = FUNCTIONS.get(self.name)
        if function is None:
            raise refuse(
                "operator",
                f"nl.{self.name} is an operator, not a function",
                f"Pass it to an instruction, as op=nl.{self.name}",
            )
        return function(*args, **kwargs)


def _truth(ufunc: np.ufunc) -> Callable[..., Array]:
    """1.0 where the ufunc holds, else 0.0."""

    def truth(x: Array, y: Array, out: Array | None = None) -> Array:
        held = ufunc(x, y)
        if out is None:
            return np.asarray(held, np.float32)
        np.copyto(out, held)
        return out

    return truth


def _magnitude(larger: np.ufunc) -> Callable[..., Array]:
    """x where `larger(|x|, |y|)`, else y: the one with its sign (nki_facts.md §2.10)."""

    def choose(x: Array, y: Array, out: Array | None = None) -> Array:
        chosen = np.where(larger(np.abs(x), np.abs(y)), x, y)
        if out is None:
            return chosen
        np.copyto(out, chosen)
        return out

    return choose


def _truth_operator(name: str, ufunc: np.ufunc, reduces: bool = False) -> Operator:
    return Operator(name, _truth(ufunc), ufunc if reduces else None, predicate=ufunc)


# --- arithmetic -----------------------------------------------------------------------------

add = Operator("add", np.add, np.add)
subtract = Operator("subtract", np.subtract, np.subtract)
multiply = Operator("multiply", np.multiply, np.multiply)
# fmax/fmin would hide a NaN; the engines' rule is undocumented, so NaN is kept visible.
maximum = Operator("maximum", np.maximum, np.maximum)
minimum = Operator("minimum", np.minimum, np.minimum)
power = Operator("power", np.power)
abs_max = Operator("abs_max", _magnitude(np.greater), generation=4, since="0.4")
abs_min = Operator("abs_min", _magnitude(np.less), generation=4, since="0.4")
equal = _truth_operator("equal", np.equal)
not_equal = _truth_operator("not_equal", np.not_equal)
greater = _truth_operator("greater", np.greater)
greater_equal = _truth_operator("greater_equal", np.greater_equal)
less = _truth_operator("less", np.less)
less_equal = _truth_operator("less_equal", np.less_equal)
logical_and = _truth_operator("logical_and", np.logical_and, True)
logical_or = _truth_operator("logical_or", np.logical_or, True)
logical_xor = _truth_operator("logical_xor", np.logical_xor, True)

# --- bitvec ---------------------------------------------------------------------------------

bitwise_and = Operator("bitwise_and", np.bitwise_and, np.bitwise_and, kind="bitvec")
bitwise_or = Operator("bitwise_or", np.bitwise_or, np.bitwise_or, kind="bitvec")
bitwise_xor = Operator("bitwise_xor", np.bitwise_xor, np.bitwise_xor, kind="bitvec")
left_shift = Operator("left_shift", np.left_shift, kind="bitvec")
right_shift = Operator("right_shift", np.right_shift, kind="bitvec")
invert = Operator("invert", unary=np.invert, kind="bitvec")

# --- activation functions, of which some are unary ALU operators too --------------------------

copy = Operator("copy", unary=act.copy)
square = Operator("square", unary=np.square)
abs = Operator("abs", unary=np.abs)
sign = Operator("sign", unary=np.sign)
relu = Operator("relu", unary=act.relu)
sqrt = Operator("sqrt", unary=np.sqrt)
rsqrt = Operator("rsqrt", unary=act.rsqrt)
reciprocal = Operator("reciprocal", unary=np.reciprocal)
exp = Operator("exp", unary=np.exp)
log = Operator("log", unary=np.log)
tanh = Operator("tanh", unary=np.tanh)
arctan = Operator("arctan", unary=np.arctan)
sigmoid = Operator("sigmoid", unary=act.sigmoid)
erf_dx = Operator("erf_dx", unary=act.erf_dx)
prelu = Operator("prelu", unary=act.prelu, since="0.4")


def _composed(function: Callable[..., Array]) -> Operator:
    return Operator(function.__name__, unary=function, reuses_input=True)


sin = _composed(act.sin)
erf = _composed(act.erf)
gelu = _composed(act.gelu)
gelu_dx = _composed(act.gelu_dx)
gelu_apprx_tanh = _composed(act.gelu_apprx_tanh)
gelu_apprx_sigmoid = _composed(act.gelu_apprx_sigmoid)
gelu_apprx_sigmoid_dx = _composed(act.gelu_apprx_sigmoid_dx)
silu = _composed(act.silu)
silu_dx = _composed(act.silu_dx)
softplus = _composed(act.softplus)
mish = _composed(act.mish)

# --- names that no element-wise instruction computes -----------------------------------------

bypass = Operator("bypass", kind="function", since="0.4")
average = Operator("average", kind="function", since="0.5")
# AWS's simulator has them, the chip does not (§8 trap 1): a call runs, a check refuses.
divide = Operator("divide", np.divide)
mod = Operator("mod", np.mod)
fmod = Operator("fmod", np.fmod)
SIMULATOR_ONLY = frozenset({divide, mod, fmod})

OPERATORS: dict[str, Operator] = {
    o.name: o
    for o in (
        add, subtract, multiply, maximum, minimum, power, abs_max, abs_min, equal, not_equal,
        greater, greater_equal, less, less_equal, logical_and, logical_or, logical_xor,
        bitwise_and, bitwise_or, bitwise_xor, left_shift, right_shift, invert, copy, square,
        abs, sign, relu, prelu, sqrt, rsqrt, reciprocal, exp, log, tanh, arctan, sin, sigmoid,
        erf, erf_dx, gelu, gelu_dx, gelu_apprx_tanh, gelu_apprx_sigmoid, gelu_apprx_sigmoid_dx,
        silu, silu_dx, softplus, mish, bypass, average, divide, mod, fmod,
    )
}  # fmt: skip

ALU = frozenset(
    o
    for o in OPERATORS.values()
    if o.binary is not None and o.kind == "arithmetic" and o not in SIMULATOR_ONLY
)
"""Binary operators in fp32."""
BITVEC = frozenset(o for o in OPERATORS.values() if o.kind == "bitvec")
"""Operators on bits, with `invert`, which has one operand."""
UNARY_ALU: dict[Operator, int] = {abs: 3, rsqrt: 3, reciprocal: 3, square: 4, relu: 4}
"""Operators of one operand that tensor_scalar takes, and the first generation that does."""
REDUCTIONS = frozenset(o for o in OPERATORS.values() if o.reduction is not None)
ACTIVATIONS = frozenset(
    o for o in OPERATORS.values() if o.unary is not None and o.kind == "arithmetic"
)
"""What the Scalar engine applies (nki_facts.md §2.7)."""
