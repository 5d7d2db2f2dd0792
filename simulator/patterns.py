"""The methods of tensors that take an access pattern, or an index that only the device knows.

`ap`, `select`, `vector_select` and `indirect`; each is a method of `NkiTensor`. Source:
nki_facts.md §2.3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from simulator.context import feature, note_lax
from simulator.dtypes import DType, as_dtype
from simulator.errors import NkiValidationError, refuse
from simulator.views import axis_of, reshape

if TYPE_CHECKING:
    from simulator.tensor import NkiTensor

MAXIMUM_RANK_ON_CHIP = 5
"""Entries of an on-chip access pattern: the partitions and 4 free dimensions (§3.2)."""


def ap(
    tensor: NkiTensor,
    pattern: Any,
    offset: Any = None,
    scalar_offset: Any = None,
    vector_offset: Any = None,
    indirect_dim: int = 0,
    dtype: Any = None,
) -> NkiTensor:
    """An access pattern [[step, count], …] over the whole storage, from `offset`.

    Steps and offset count elements of `dtype` (default: the tensor's own). A step of 0
    repeats. On chip the first entry is the partitions: its step must be the storage's free
    size.

    Args:
        tensor: whose storage is addressed, and whose shape gives the dynamic stride.
        pattern: [[step, count], …].
        offset: elements; None inherits the view's offset (nki_facts.md A5).
        scalar_offset: a register or (1, 1) integer tile; moves the address by its value
            times the elements behind `indirect_dim` of the tensor's shape.
        vector_offset: a (P, 1) int32 or uint32 tile, the row number of each output row; HBM only.
            For dma_transpose also (128, N), read column by column.
        indirect_dim: the dimension the dynamic offset counts in.
        dtype: reinterprets the elements.

    Raises:
        NkiValidationError: out of bounds, a wrong partition step, or both dynamic offsets.
    """
    element = tensor.dtype if dtype is None else as_dtype(dtype)
    axis = axis_of(tensor, indirect_dim)
    start = _start(tensor, element) if offset is None else offset
    steps, counts = _steps_and_counts(tensor, pattern)
    if scalar_offset is not None and vector_offset is not None:
        raise refuse(
            "access-pattern",
            f"ap() of {tensor.name} with both scalar_offset and vector_offset",
            "Give at most one of the two",
            limit="1",
            value="2",
        )
    row = math.prod(tensor.shape[axis + 1 :]) * tensor.dtype.itemsize // element.itemsize
    start, steps = _of_a_slice(tensor, element, start, steps, offset is None)
    fault = _check_pattern(tensor, element, start, steps, counts, vector_offset is not None)
    if fault is not None:
        return outside_view(tensor, counts, steps, start, element, fault)
    view = tensor.__class__(tensor.storage, counts, steps, start, element)
    if scalar_offset is not None:
        from simulator.registers import VirtualRegister

        if isinstance(scalar_offset, int):
            return ap(tensor, pattern, start + scalar_offset * row, dtype=dtype)
        if not isinstance(scalar_offset, VirtualRegister):
            _check_index_tile(scalar_offset, "scalar_offset", single=True)
        return with_scalar(view, axis, scalar_offset, row, None)
    if vector_offset is not None:
        return _with_rows(view, vector_offset, row, axis, None)
    return view


def _steps_and_counts(tensor: NkiTensor, pattern: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two columns of a pattern."""
    try:
        pairs = [(int(step), int(count)) for step, count in pattern]
    except (TypeError, ValueError):
        raise _bad_pattern(tensor, pattern) from None
    return tuple(step for step, _ in pairs), tuple(count for _, count in pairs)


def _of_a_slice(
    tensor: NkiTensor, element: DType, start: Any, steps: tuple[int, ...], inherited: bool
) -> tuple[Any, tuple[int, ...]]:
    """Start and steps of a pattern that takes a slice for a tensor of its own, in the storage.

    Its partition step is the free size of the slice, and its offset counts from the slice's
    start. Partitions have no distance in a chip's addresses, so that this means something.
    """
    if not tensor.buffer.on_chip or not steps or not isinstance(start, int):
        return start, steps
    free = tensor.storage.bytes_per_partition // element.itemsize
    mine = tensor.free_bytes // element.itemsize
    if steps[0] in (free, 0) or steps[0] != mine or not tensor.is_contiguous():
        return start, steps
    begin = _start(tensor, element)
    if not isinstance(begin, int):
        return start, steps
    note_lax(
        "access-pattern",
        "ap() pattern has invalid partition stride: it is the slice's free size",
        "Partition step must equal the storage's free size",
        limit=str(free),
        value=str(mine),
    )
    if not inherited:
        start = begin + start // mine * free + start % mine
    return start, (free, *steps[1:])


def _start(tensor: NkiTensor, element: DType) -> Any:
    """A view's own offset in elements of another dtype; a fraction is no offset."""
    start, rest = divmod(tensor.offset * tensor.dtype.itemsize, element.itemsize)
    return start if rest == 0 else f"{tensor.offset} of {tensor.dtype}"


def outside_view(
    tensor: NkiTensor,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    dtype: DType,
    fault: NkiValidationError,
) -> NkiTensor:
    """A view that leaves its storage: kernels may make it, but no instruction takes it."""
    from simulator.tensor import OutsideTensor

    return OutsideTensor.of(fault)(tensor.storage, shape, strides, offset, dtype)


def _bad_pattern(tensor: NkiTensor, pattern: Any) -> NkiValidationError:
    return refuse(
        "access-pattern",
        f"ap() of {tensor.name} needs a pattern of [step, count] pairs with positive counts",
        "Give [[step, count], …] with counts of at least 1",
        limit=">= 1",
        value=repr(pattern),
    )


def _check_pattern(
    tensor: NkiTensor,
    element: DType,
    start: Any,
    steps: tuple[int, ...],
    counts: tuple[int, ...],
    by_rows: bool,
) -> NkiValidationError | None:
    """Refuse what is no pattern; return what leaves the storage, which only its use makes wrong."""
    if not counts or any(count <= 0 for count in counts) or not isinstance(start, int):
        pairs = [list(pair) for pair in zip(steps, counts, strict=True)]
        raise _bad_pattern(tensor, pairs if isinstance(start, int) else f"offset {start!r}")
    storage = tensor.storage
    if tensor.buffer.on_chip:
        free = storage.bytes_per_partition // element.itemsize
        if steps[0] != free and counts[0] > 1:
            raise refuse(
                "access-pattern",
                "ap() pattern has invalid partition stride",
                "Partition step must equal the storage's free size",
                limit=str(free),
                value=str(steps[0]),
            )
        if len(counts) > MAXIMUM_RANK_ON_CHIP:
            raise refuse(
                "access-pattern",
                "an on-chip access pattern has too many dimensions",
                "Merge dimensions, or use several instructions",
                limit=f"partitions and {MAXIMUM_RANK_ON_CHIP - 1} free dimensions",
                value=f"{len(counts)} entries",
            )
        fault = _check_partition_end(tensor, start, steps, counts, free)
        if fault is not None:
            return fault
    span = list(zip(steps, counts, strict=True))[1 if by_rows else 0 :]
    last = start + sum(step * (count - 1) for step, count in span if step > 0)
    least = start + sum(step * (count - 1) for step, count in span if step < 0)
    elements = storage.bytes // element.itemsize
    if least < 0 or last >= elements:
        return refuse(
            "out-of-bounds",
            f"Out-of-bound access pattern for tensor `{tensor.name}`",
            "Make offset and pattern fit the storage",
            limit=f"elements 0 to {elements - 1}",
            value=f"elements {least} to {last}",
        )
    return None


def _check_partition_end(
    tensor: NkiTensor, start: int, steps: tuple[int, ...], counts: tuple[int, ...], free: int
) -> NkiValidationError | None:
    """The free part of a pattern must stay in its partition: behind it lies another tensor."""
    span = list(zip(steps, counts, strict=True))[1:]
    last = start % free + sum(step * (count - 1) for step, count in span if step > 0)
    least = start % free + sum(step * (count - 1) for step, count in span if step < 0)
    if least >= 0 and last < free:
        return None
    return refuse(
        "out-of-bounds",
        f"Out-of-bound access pattern for tensor `{tensor.name}`: it leaves the partition",
        "Make offset and free pattern fit the storage's free size",
        limit=f"elements 0 to {free - 1} of a partition",
        value=f"elements {least} to {last}",
    )


def _check_index_tile(tensor: Any, operand: str, single: bool | None) -> None:
    """An index tile lies in SBUF and holds integers.

    One of them (`single`), one per partition (not `single`), or any number (None).
    """
    from simulator.tensor import MemoryRegion, NkiTensor

    if not isinstance(tensor, NkiTensor):
        raise refuse(
            "dynamic-offset",
            f"{operand} is a {type(tensor).__name__}",
            "Give a register or an integer tile in SBUF",
            operand=operand,
            limit="register or tile",
            value=type(tensor).__name__,
        )
    problem = ""
    if tensor.buffer is not MemoryRegion.sbuf:
        problem, limit, value = "must be in SBUF", "sbuf", tensor.buffer.value
    elif tensor.dtype.kind not in ("int", "uint") or (
        single is False and tensor.dtype.itemsize != 4
    ):
        wanted = "an integer dtype" if single is not False else "int32 or uint32"
        problem, limit, value = f"must be {wanted}", wanted, str(tensor.dtype)
    elif (single and tensor.size != 1) or (not single and tensor.ndim != 2):
        shape = "(1, 1)" if single else "(P, 1), for dma_transpose also (P, N)"
        problem, limit, value = f"must have shape {shape}", shape, str(tensor.shape)
    if problem:
        raise refuse(
            "dynamic-offset",
            f"{operand} {problem}",
            "Load the index into an integer tile of that shape in SBUF",
            operand=operand,
            limit=limit,
            value=value,
        )


def _check_static(tensor: NkiTensor) -> None:
    """A view takes one thing from the device: there is no chaining (nki_facts.md §2.3)."""
    if tensor.dynamic is not None:
        raise refuse(
            "dynamic-offset",
            f"`{tensor.name}` has a dynamic address already",
            "Add the indices up in a tile, and use their sum",
            limit="1 dynamic index",
            value="2 dynamic indices",
        )


def with_scalar(
    tensor: NkiTensor, axis: int, index: Any, step: int, limit: int | None
) -> NkiTensor:
    """The view whose address moves by `step` for each unit of `index`.

    `axis` is the dimension, of this view or of its base, along which it moves.
    """
    from simulator.tensor import Dynamic, ScalarOffset

    _check_static(tensor)
    if tensor.buffer.on_chip and axis == 0:
        raise refuse(
            "dynamic-offset",
            f"a dynamic index of the partitions of `{tensor.name}`",
            "Engines start at fixed partitions: index a free dimension, or a tensor in HBM",
            limit="a free dimension",
            value="dimension 0",
        )
    dynamic = Dynamic((ScalarOffset(index, step, limit),))
    return tensor.__class__(
        tensor.storage, tensor.shape, tensor.strides, tensor.offset, tensor.dtype, dynamic
    )


def _with_rows(
    tensor: NkiTensor, rows: Any, row: int, indirect_dim: int, limit: int | None
) -> NkiTensor:
    from simulator.tensor import Dynamic

    _check_static(tensor)
    _check_index_tile(rows, "vector_offset", single=False)
    if tensor.buffer.on_chip:
        raise refuse(
            "dynamic-offset",
            f"vector_offset into {tensor.buffer.value}",
            "Only tensors in HBM can be gathered by rows; on chip use nisa.nc_n_gather",
            operand="vector_offset",
            limit="HBM",
            value=tensor.buffer.value,
        )
    if indirect_dim != 0:
        raise refuse(
            "dynamic-offset",
            "indirect_dim must be 0 with vector_offset",
            "Put the gathered dimension first",
            operand="indirect_dim",
            limit="0",
            value=str(indirect_dim),
        )
    several_columns = rows.shape[1] > 1 and rows.size >= tensor.shape[0]  # for dma_transpose
    if rows.shape[0] != tensor.shape[0] and not several_columns:
        raise refuse(
            "dynamic-offset",
            f"vector_offset has {rows.size} row numbers, the pattern {tensor.shape[0]} rows",
            "Give one row number per row of the pattern",
            operand="vector_offset",
            limit=str(tensor.shape[0]),
            value=str(rows.size),
        )
    return tensor.__class__(
        tensor.storage, tensor.shape, tensor.strides, tensor.offset, tensor.dtype,
        Dynamic(rows=rows, row_stride=row, row_limit=limit),
    )  # fmt: skip


def select(tensor: NkiTensor, dim: int, index: Any) -> NkiTensor:
    """One element of a dimension, which is dropped; the index may be known on the device only.

    Args:
        tensor: any tensor.
        dim: the dimension; on chip, the partition dimension is kept as 1.
        index: an int, a register, or a (1, 1) integer tile in SBUF.
    """
    from simulator.registers import VirtualRegister

    feature("NkiTensor.select", since="0.5")
    axis = axis_of(tensor, dim)
    if isinstance(index, int):
        return tensor[(slice(None),) * axis + (index,)]
    if not isinstance(index, VirtualRegister):
        _check_index_tile(index, "index", single=True)
    view = with_scalar(tensor, axis, index, tensor.strides[axis], tensor.shape[axis])
    return view[(slice(None),) * axis + (0,)]


def vector_select(tensor: NkiTensor, dim: int, index: NkiTensor) -> NkiTensor:
    """Rows of an HBM tensor by a (P, 1) tile of row numbers; `dim` must be 0."""
    feature("NkiTensor.vector_select", since="0.5")
    if dim != 0:
        raise refuse(
            "dynamic-offset",
            "vector_select works on dimension 0",
            "Put the gathered dimension first",
            operand="dim",
            limit="0",
            value=str(dim),
        )
    _check_static(tensor)
    _check_index_tile(index, "index", single=False)
    wanted = (index.shape[0], *tensor.shape[1:])
    rows = tensor.__class__(tensor.storage, wanted, tensor.strides, tensor.offset, tensor.dtype)
    return _with_rows(rows, index, tensor.strides[0], 0, tensor.shape[0])


def indirect(tensor: NkiTensor, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
    """Free elements by number (gen4): element i of the view is free element index[i % G, i // G].

    G is 16 for Vector, Scalar and GpSimd instructions and 32 for the Tensor engine. An index
    tile of more than G partitions holds one list for each group of G partitions.

    Args:
        tensor: an on-chip tile.
        index: integer tile in SBUF that starts on a multiple of 32 partitions.
        num_elem: elements per partition of the view; default all of the index.
    """
    from simulator.context import current_program
    from simulator.tensor import Dynamic

    feature("NkiTensor.indirect", since="0.5")
    program = current_program()
    if program.target.generation < 4:
        raise refuse(
            "gen4-only",
            ".indirect is only supported for NeuronCore-v4 or newer",
            "On trn2 use nisa.local_gather or nisa.nc_n_gather",
            limit="trn3",
            value=program.target.name,
        )
    _check_static(tensor)
    _check_index_tile(index, "index", single=None)
    if not tensor.buffer.on_chip or index.start_partition % 32:
        raise refuse(
            "dynamic-offset",
            "an indirect view needs an on-chip tile, and indices that start on a multiple of 32 "
            "partitions",
            "Move the index tile to partition 0, 32, 64 or 96",
            operand="index",
            limit="on chip; start partition 0, 32, 64 or 96",
            value=f"{tensor.buffer.value}; {index.start_partition}",
        )
    count = 16 * index.free_size if num_elem is None else num_elem
    flat = reshape(tensor, (tensor.shape[0], tensor.free_size))
    return tensor.__class__(
        tensor.storage, (tensor.shape[0], count), flat.strides, tensor.offset, tensor.dtype,
        Dynamic(elements=index, free_size=tensor.free_size),
    )  # fmt: skip
