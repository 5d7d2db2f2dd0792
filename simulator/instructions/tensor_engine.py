"""The Tensor engine: matrix multiplication and transposes. Source: nki_facts.md §2.4, §2.5.

The limits are in `tensor_engine_checks.py`; what `accumulate` means for each location of PSUM
is decided while a kernel is traced (`simulator.psum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.enums import engine, matmul_perf_mode
from simulator.instructions.limits import all_of
from simulator.instructions.table import (
    ON_CHIP,
    PSUM,
    SBUF,
    Array,
    Arrays,
    Operand,
    Run,
    Slots,
    instruction,
)
from simulator.instructions.tensor_engine_checks import MATMUL_DTYPES, check_matmul
from simulator.instructions.transpose_checks import check_transpose, in_one_byte
from simulator.numerics import as_float32, copy_float32, round_tfloat32, store
from simulator.psum import EVICTED, HOLDS_A_SUM, MATMUL, OTHER, REPLACED, UNWRITTEN, PartlyStarted
from simulator.tensor import MemoryRegion, NkiTensor
from simulator.views import reshaped_strides

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["nc_matmul", "nc_transpose"]

_F32 = np.dtype(np.float32)
Product = Callable[[Arrays, Array], Any]
"""Writes an fp32 product to an array."""


# --- accumulate -----------------------------------------------------------------------------


def resolve_accumulate(program: Program, instruction: Instruction) -> None:
    """Replace `accumulate=None` by what it means here, and follow the state of PSUM."""
    dst, accumulate = instruction["dst"], instruction["accumulate"]
    if dst.storage.buffer is not MemoryRegion.psum:
        return  # refused by the checks, as other values of accumulate are
    if instruction.get("is_transpose"):
        _resolve_transpose(program, instruction, dst)
        return
    states, held = program.psum.matmul(dst)
    if accumulate is None:
        adds = states & HOLDS_A_SUM != 0
        instruction.set("accumulate", adds if held is None else PartlyStarted(held))
        if states != 1 << UNWRITTEN and states != 1 << MATMUL:
            _warn_of_reuse(program, instruction, states)
        if program.loops and dst.storage.scope != program.loops[-1]:
            _warn_of_loop(program, instruction)
    elif accumulate is True:
        good = HOLDS_A_SUM
        if program.target.generation >= 4:  # may add to what memset or tensor_copy left
            good |= 1 << OTHER | 1 << REPLACED
        if states & ~good:
            _refuse_accumulate(program, instruction, states)


def _resolve_transpose(program: Program, instruction: Instruction, dst: NkiTensor) -> None:
    """Transposes always overwrite."""
    if instruction["accumulate"] is None and program.psum.states(dst) & HOLDS_A_SUM:
        _warn(
            program,
            instruction,
            "a transpose with accumulate=None onto a tile that holds a matmul's result: it is "
            "overwritten here",
            "Give accumulate=False, or use a PSUM tile of its own",
        )
    if instruction["accumulate"]:
        program.report(
            instruction,
            "psum-accumulate",
            "a transpose cannot be added to what PSUM holds",
            "Leave accumulate out with is_transpose=True",
            operand="accumulate",
            limit="False",
            value="True",
        )
    instruction.set("accumulate", False)
    program.psum.transposed(dst)


def _refuse_accumulate(program: Program, instruction: Instruction, states: int) -> None:
    other = states & (1 << OTHER | 1 << REPLACED)
    program.tolerate(
        instruction,
        "psum-accumulate",
        "adds to PSUM locations that no matmul has started: what another engine wrote there "
        "does not count on this chip"
        if other
        else "adds to PSUM locations that nothing has written",
        "Let the first matmul overwrite: accumulate=(k > 0)",
        operand="accumulate",
        limit="locations started by a matmul",
        value="written by another instruction" if other else "never written",
    )


def _warn(program: Program, instruction: Instruction, message: str, mend: str) -> None:
    """Warn once for each line: loops are unrolled."""
    line = (instruction.file, instruction.line)
    if line not in program.psum.warned:
        program.psum.warned.add(line)
        program.warn(instruction, "psum-reuse", message, mend, operand="dst")


def _warn_of_reuse(program: Program, instruction: Instruction, states: int) -> None:
    if states & 1 << EVICTED:
        _warn(
            program,
            instruction,
            "accumulate=None adds to a tile whose result was read already: a product of an "
            "earlier iteration is still in it",
            "Give accumulate=(k > 0), or allocate the PSUM tile inside the loop",
        )
    elif states & (1 << OTHER | 1 << REPLACED):
        _warn(
            program,
            instruction,
            "the first matmul overwrites what another instruction wrote into PSUM",
            "Leave that out, and add it after the matmuls; accumulate=(k > 0) says what is meant",
        )


def _warn_of_loop(program: Program, instruction: Instruction) -> None:
    _warn(
        program,
        instruction,
        "accumulate=None in a dynamic loop, on a tile from outside: whether it adds is decided "
        "once for all iterations",
        "Give accumulate=True or False, or allocate the PSUM tile in the loop's body",
    )


# --- operands as matrices ---------------------------------------------------------------------


def plane(tensor: NkiTensor) -> NkiTensor:
    """The tensor with its free dimensions merged, where a view can do that; else itself."""
    if tensor.dynamic is not None or len(tensor.shape) == 2:
        return tensor
    shape = (tensor.shape[0], math.prod(tensor.shape[1:]))
    strides = reshaped_strides(tensor, shape, 1)
    if strides is None:
        return tensor
    return NkiTensor(tensor.storage, shape, strides, tensor.offset, tensor.dtype)


def scratch(slots: Slots, role: str, shape: tuple[int, ...]) -> Array:
    """An fp32 array to work in, one for each role, shape and worker."""
    arrays: dict[Any, Array] = slots.state("tensor engine", dict)
    array = arrays.get((role, shape))
    if array is None:
        array = arrays[role, shape] = np.empty(shape, np.float32)
    return array


def matrix(
    tensor: NkiTensor, shape: tuple[int, int], role: str, slots: Slots
) -> Callable[[Arrays], Array]:
    """A function (views) -> the operand as fp32[shape]; low precision goes through a scratch."""
    tensor = plane(tensor)
    slot = slots(tensor)
    converted = scratch(slots, role, shape)
    unfolded = converted.reshape(tensor.shape)
    turned = scratch(slots, f"{role} turned", shape[::-1])
    convert = round_tfloat32 if tensor.dtype is dtypes.tfloat32 else copy_float32
    direct = tensor.dtype is not dtypes.tfloat32
    holds: list[Any] = slots.state(f"{role} holds {shape}", lambda: [None])
    runs: list[int] = slots.state("runs", lambda: [0])
    constant = slots.is_constant(tensor)

    def read(views: Arrays) -> Array:
        view = views[slot]
        if direct and view.dtype == _F32:
            return view if view.shape == shape else view.reshape(shape)
        by_column = view.ndim == 2 and view.strides[0] < view.strides[1]
        result = turned.T if by_column else converted
        if constant and holds[0] == (slot, runs[0]):
            return result
        if by_column:
            convert(turned, view.T)
        else:
            convert(unfolded, view)
        holds[0] = (slot, runs[0])
        return result

    return read


def write_product(
    instruction: Instruction, shape: tuple[int, int], product: Product, slots: Slots
) -> Run:
    """Put a product into PSUM, or add it to what is there; sums are fp32, rounded once."""
    dst, accumulate = plane(instruction["dst"]), instruction["accumulate"]
    to = slots(dst)
    is_matrix = dst.shape == shape
    if not accumulate and is_matrix and dst.dtype is dtypes.float32:
        return lambda views: product(views, views[to])
    result = scratch(slots, "product", shape)
    values = result.reshape(dst.shape)
    write = store(dst.dtype)
    if not accumulate:

        def overwrite(views: Arrays) -> None:
            product(views, result)
            write(views[to], values)

        return overwrite
    if accumulate is True:

        def add(views: Arrays) -> None:
            product(views, result)
            view = views[to]
            if view.dtype == _F32:
                np.add(view, values, out=view)
            else:
                np.add(as_float32(view), values, out=values)
                write(view, values)

        return add
    where = accumulate.mask.reshape(dst.shape)

    def add_where_started(views: Arrays) -> None:
        product(views, result)
        view = views[to]
        np.add(as_float32(view), values, out=values, where=where)
        write(view, values)

    return add_where_started


# --- nc_matmul --------------------------------------------------------------------------------


def dimensions(instruction: Instruction) -> tuple[int, int, int]:
    """Contraction, rows and columns: K, M, N."""
    stationary, moving = instruction["stationary"], instruction["moving"]
    split = 2 if instruction["perf_mode"] is matmul_perf_mode.double_row else 1
    return (
        stationary.shape[0] * split,
        stationary.free_size // split,
        moving.free_size // split,
    )


def _product(instruction: Instruction, slots: Slots) -> tuple[tuple[int, int], Product]:
    contraction, rows, columns = dimensions(instruction)
    left = matrix(instruction["stationary"], (contraction, rows), "stationary", slots)
    right = matrix(instruction["moving"], (contraction, columns), "moving", slots)
    multiply = np.multiply if contraction == 1 else np.matmul  # BLAS is slow at outer products

    def product(views: Arrays, out: Array) -> None:
        multiply(left(views).T, right(views), out=out)

    return (rows, columns), product


def _matmul(instruction: Instruction, slots: Slots) -> Run:
    shape, product = _product(instruction, slots)
    by_product = write_product(instruction, shape, product, slots)
    if not instruction["is_transpose"]:
        return by_product
    transpose = _transpose_bits(instruction["dst"], instruction["stationary"], True, slots)
    moving = slots(instruction["moving"])
    identity = _Identity(shape[1])

    def run(views: Arrays) -> None:
        if identity.equals(views[moving]):
            transpose(views)
        else:
            by_product(views)

    return run


class _Identity:
    """Recognises an identity matrix by its bits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._dtype: Any = None
        self._bits: Any = None

    def equals(self, array: Array) -> bool:
        """Whether an array of any float dtype is the identity."""
        if array.dtype != self._dtype:
            self._dtype = array.dtype
            self._bits = np.eye(self._size).astype(array.dtype).view(f"u{array.itemsize}")
        if array.ndim != 2:
            array = array.reshape(len(array), -1)
        if np.array_equal(array.view(self._bits.dtype), self._bits):
            return True
        return np.array_equal(as_float32(array), np.eye(self._size))  # with zeros below zero


def _transpose_bits(dst: NkiTensor, data: NkiTensor, on_tensor: bool, slots: Slots) -> Run:
    """dst = data.T, bit for bit; of a byte the Tensor engine writes 16 bits."""
    data, dst = plane(data), plane(dst)
    frm, to = slots(data), slots(dst)
    flat, shape = (data.shape[0], data.free_size), dst.shape

    def run(views: Arrays) -> None:
        source = views[frm]
        if source.shape != flat:
            source = source.reshape(flat)
        values = source.T
        views[to][...] = values if values.shape == shape else values.reshape(shape)

    if not (on_tensor and in_one_byte(data)):
        return run
    above = slots(NkiTensor(dst.storage, shape, dst.strides, dst.offset + 1, dst.dtype))

    def with_upper_bytes(views: Arrays) -> None:
        run(views)
        views[above][...] = 0

    return with_upper_bytes


def _macs(instruction: Instruction) -> int:
    """K·M·N; a transpose computes nothing."""
    return 0 if instruction["is_transpose"] else math.prod(dimensions(instruction))


@instruction(
    operands={
        "dst": Operand("write", "free", PSUM),
        "stationary": Operand("read", "free", SBUF, dtypes=MATMUL_DTYPES),
        "moving": Operand("read", "free", SBUF, dtypes=MATMUL_DTYPES),
    },
    engines=("tensor",),
    lower=_matmul,
    cost="max(min(64, M), N); 4 times that for fp32",
    source="nki_facts.md §2.5",
    extra_check=check_matmul,
    macs=_macs,
    resolve=resolve_accumulate,
)
def nc_matmul(
    dst: Any,
    stationary: Any,
    moving: Any,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: Any = (),
    tile_size: Any = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst[M, N] (+)= stationary[K, M].T @ moving[K, N], in fp32.

    Args:
        dst: PSUM, fp32 (gen4 also bf16), in one bank on gen2 and gen3.
        stationary: SBUF, K <= 128 partitions, M <= 128 free elements.
        moving: SBUF, N <= 512 free elements (gen4: what PSUM holds).
        is_stationary_onezero: a hint that has no effect on values.
        is_moving_onezero: a hint that has no effect on values.
        is_transpose: with the identity as `moving`, transpose `stationary` bit for bit.
        accumulate: False overwrites, True adds to a matmul's result; None overwrites the first
            time and adds later, location by location.
        tile_position: (row, column) of the processing elements to use, with `tile_size`.
        tile_size: (rows, columns) of them.
        perf_mode: double_row contracts over the partitions and a first free dimension of 2; its
            name as a string is accepted, as public kernels write it.
        name: a label.
    """
    mode: Any = perf_mode
    if isinstance(mode, str):
        mode = matmul_perf_mode.__members__.get(mode, mode)
    return (
        dst, stationary, moving, is_stationary_onezero, is_moving_onezero, is_transpose,
        accumulate, tile_position, tile_size, mode, name,
    )  # fmt: skip


# --- nc_transpose -----------------------------------------------------------------------------


def _choose_transpose_engine(program: Program, instruction: Instruction) -> None:
    """SBUF to PSUM goes to the Tensor engine, all else to the Vector engine."""
    dst, data = instruction["dst"], instruction["data"]
    through = dst.buffer is MemoryRegion.psum and data.buffer is MemoryRegion.sbuf
    instruction.engine = "tensor" if through else "vector"


def _transpose(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    return _transpose_bits(dst, data, instruction.engine == "tensor", slots)


@instruction(
    operands={"dst": Operand("write", "free", ON_CHIP), "data": Operand("read", "free", ON_CHIP)},
    engines=("tensor", "vector"),
    lower=_transpose,
    cost="Tensor: max(P, min(64, F)); Vector: max(64, N)",
    source="nki_facts.md §2.4",
    extra_check=all_of(check_transpose),
    resolve=_choose_transpose_engine,
)
def nc_transpose(
    dst: Any, data: Any, engine: engine = engine.unknown, name: str | None = None
) -> tuple[Any, ...]:
    """dst = data.T, bit for bit, with all free dimensions of `data` taken as one.

    Args:
        dst: (F, P), of data's dtype; in PSUM on the Tensor engine.
        data: (P, F): up to 128 by 128 from SBUF on the Tensor engine, up to 32 by 32 from
            SBUF or PSUM on the Vector engine.
        engine: default: Tensor for SBUF to PSUM, else Vector.
        name: a label.
    """
    return dst, data, engine, name
