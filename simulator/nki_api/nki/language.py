"""`nki.language`: dtypes, memory, allocation, operators, functions on tiles, loops.

Meaning: `simulator.language`, `simulator.operators`, `simulator.control`.
"""

import builtins as _builtins

from simulator.control import dynamic_range, fori_loop, no_reorder, while_loop
from simulator.dtypes import DType as DType
from simulator.dtypes import (
    bfloat16,
    bool_,
    float4_e2m1fn_x4,
    float8_e4m3,
    float8_e4m3fn,
    float8_e4m3fn_x4,
    float8_e5m2,
    float8_e5m2_x4,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from simulator.instructions.cores import device_print
from simulator.language.elementwise import cos, dropout, logical_not, negative, tan, where
from simulator.language.memory import (
    empty_like,
    full,
    is_hbm,
    is_on_chip,
    is_psum,
    is_sbuf,
    ndarray,
    ones,
    rand,
    random_seed,
    shared_constant,
    shared_identity_matrix,
    zeros,
    zeros_like,
)
from simulator.language.movement import (
    broadcast_to,
    expand_dims,
    gather_flattened,
    load,
    load_transpose2d,
    matmul,
    store,
    transpose,
)
from simulator.language.objects import (
    NKIObject,
    affine_range,
    ds,
    num_programs,
    program_id,
    program_ndim,
    tile_size,
)
from simulator.language.reductions import all, max, mean, min, prod, rms_norm, softmax, sum, var
from simulator.language.rounding import ceil, floor, trunc
from simulator.operators import (
    abs,
    abs_max,
    abs_min,
    add,
    arctan,
    average,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    bypass,
    copy,
    divide,
    equal,
    erf,
    erf_dx,
    exp,
    fmod,
    gelu,
    gelu_apprx_sigmoid,
    gelu_apprx_sigmoid_dx,
    gelu_apprx_tanh,
    gelu_dx,
    greater,
    greater_equal,
    invert,
    left_shift,
    less,
    less_equal,
    log,
    logical_and,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    mish,
    mod,
    multiply,
    not_equal,
    power,
    prelu,
    reciprocal,
    relu,
    right_shift,
    rsqrt,
    sigmoid,
    sign,
    silu,
    silu_dx,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tanh,
)
from simulator.tensor import MemoryRegion, NkiTensor

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
hbm = private_hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm
sequential_range = static_range = affine_range
# Not documented, but public kernels that ship with the SDK use them.
range = _builtins.range
bool = bool_

__all__ = [
    "MemoryRegion", "NKIObject", "NkiTensor", "abs", "abs_max", "abs_min", "add",
    "affine_range", "all", "arctan", "average", "bfloat16", "bitwise_and", "bitwise_or",
    "bitwise_xor", "bool_", "broadcast_to", "bypass", "ceil", "copy", "cos", "device_print",
    "divide", "dropout", "ds", "dynamic_range", "empty_like", "equal", "erf", "erf_dx", "exp",
    "expand_dims", "float4_e2m1fn_x4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fn_x4",
    "float8_e5m2", "float8_e5m2_x4", "float8_e8m0fnu", "float16", "float32", "floor", "fmod",
    "fori_loop", "full", "gather_flattened", "gelu", "gelu_apprx_sigmoid",
    "gelu_apprx_sigmoid_dx", "gelu_apprx_tanh", "gelu_dx", "greater", "greater_equal", "hbm",
    "int8", "int16", "int32", "invert", "is_hbm", "is_on_chip", "is_psum", "is_sbuf",
    "left_shift", "less", "less_equal", "load", "load_transpose2d", "log", "logical_and",
    "logical_not", "logical_or", "logical_xor", "matmul", "max", "maximum", "mean", "min",
    "minimum", "mish", "mod", "multiply", "ndarray", "negative", "no_reorder", "not_equal",
    "num_programs", "ones", "power", "prelu", "private_hbm", "prod", "program_id",
    "program_ndim", "psum", "rand", "random_seed", "reciprocal", "relu", "right_shift",
    "rms_norm", "rsqrt", "sbuf", "sequential_range", "shared_constant", "shared_hbm",
    "shared_identity_matrix", "sigmoid", "sign", "silu", "silu_dx", "sin", "softmax",
    "softplus", "sqrt", "square", "static_range", "store", "subtract", "sum", "tan", "tanh",
    "tfloat32", "tile_size", "transpose", "trunc", "uint8", "uint16", "uint32", "var", "where",
    "while_loop", "zeros", "zeros_like",
]  # fmt: skip
