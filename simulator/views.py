"""The methods of tensors that give views: reshape, ap, permute, select, rearrange, …

Each function is a method of `NkiTensor` and gives a new view of the same storage. Source:
nki_facts.md §2.3. All but reshape, view, ap and get_pattern exist since 0.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from simulator.context import feature
from simulator.dtypes import DType, as_dtype
from simulator.errors import NkiValidationError, refuse

if TYPE_CHECKING:
    from simulator.tensor import NkiTensor

MAXIMUM_RANK_ON_CHIP = 5
"""Entries of an on-chip access pattern: the partitions and 4 free dimensions (§3.2)."""


def _view(
    tensor: NkiTensor,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int | None = None,
    dtype: DType | None = None,
) -> NkiTensor:
    start = tensor.offset if offset is None else offset
    return tensor.__class__(
        tensor.storage, shape, strides, start, dtype or tensor.dtype, tensor.dynamic
    )


def _axis(tensor: NkiTensor, dim: Any, least: int = 0) -> int:
    """`dim` as a non-negative axis of at least `least`."""
    rank = len(tensor.shape)
    if isinstance(dim, bool) or not isinstance(dim, int) or not -rank <= dim < rank:
        raise refuse(
            "view",
            f"dimension {dim!r} of `{tensor.name}`",
            "Name one of its dimensions",
            limit=f"0 to {rank - 1}",
            value=repr(dim),
        )
    axis = dim % rank
    if axis < least:
        raise refuse(
            "view",
            f"the partition dimension of `{tensor.name}` cannot be changed by a view",
            "Move partitions by DMA or a transpose",
            limit=f"dimension {least} or later",
            value=str(axis),
        )
    return axis


def _least(tensor: NkiTensor) -> int:
    """The first dimension that views may change: not partitions, not gathered rows."""
    by_rows = tensor.dynamic is not None and tensor.dynamic.rows is not None
    return 1 if tensor.buffer.on_chip or by_rows else 0


# --- reshape and its relatives --------------------------------------------------------------


def reshape(tensor: NkiTensor, *shape: Any, new_shape: Any = None) -> NkiTensor:
    """The same elements under another shape; on chip the partition dimension stays.

    Args:
        tensor: must be contiguous, or the change must split and merge dimensions that follow
            each other in memory.
        shape: one tuple, or one integer per dimension; one of them may be -1.
        new_shape: 0.4's name of the argument.
    """
    if new_shape is not None:
        feature("reshape(new_shape=)", since="0.4", until="0.4")
        shape = (new_shape,)
    wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    sizes = _infer(tensor, tuple(wanted))
    if _least(tensor) and (not sizes or sizes[0] != tensor.shape[0]):
        raise refuse(
            "reshape",
            "Partition dim size must be preserved",
            "Reshape only the free dimensions; move partitions with a DMA or a transpose",
            limit=str(tensor.shape[0]),
            value=str(sizes[0]) if sizes else "()",
        )
    strides = reshaped_strides(tensor, sizes, _least(tensor))
    if strides is None:
        raise refuse(
            "reshape",
            f"reshape of {tensor.name}, whose elements do not follow each other",
            "Use .ap() or copy it first",
            limit="contiguous",
            value=f"strides {tensor.strides}",
        )
    return _view(tensor, sizes, strides)


def _infer(tensor: NkiTensor, shape: tuple[Any, ...]) -> tuple[int, ...]:
    """`shape` with its -1 replaced; the element counts must agree."""
    good = all(isinstance(n, int) and not isinstance(n, bool) and (n > 0 or n == -1) for n in shape)
    known = math.prod(n for n in shape if n != -1) if good else 0
    if good and shape.count(-1) == 1 and known and tensor.size % known == 0:
        shape = tuple(tensor.size // known if n == -1 else n for n in shape)
    if not good or -1 in shape or math.prod(shape) != tensor.size:
        raise refuse(
            "reshape",
            f"reshape of {tensor.name} changes the number of elements",
            "Give a shape with as many elements",
            limit=f"{tensor.size} elements",
            value=f"{shape}",
        )
    return shape


def reshaped_strides(
    tensor: NkiTensor, shape: tuple[int, ...], fixed: int
) -> tuple[int, ...] | None:
    """Strides of `shape` over the same memory, None if there are none.

    Args:
        tensor: with as many elements.
        shape: the new shape.
        fixed: leading dimensions that stay as they are.
    """
    groups: list[list[int]] = []  # maximal runs of dimensions that follow each other
    for axis in range(fixed, len(tensor.shape)):
        count, stride = tensor.shape[axis], tensor.strides[axis]
        if count == 1:
            continue
        if groups and groups[-1][1] == stride * count:
            groups[-1] = [groups[-1][0] * count, stride]
        else:
            groups.append([count, stride])
    strides = list(tensor.strides[:fixed])
    at = 0
    left = groups[0][0] if groups else 1
    for position, size in enumerate(shape[fixed:], fixed):
        if size == 1:
            strides.append(1)
            continue
        if left == 1:
            at += 1
            left = groups[at][0]
        if left % size:
            return None
        left //= size
        strides.append(left * groups[at][1])
        if position == len(shape) - 1 and left != 1:
            return None
    return tuple(strides)


def reshape_dim(tensor: NkiTensor, dim: int, shape: Any) -> NkiTensor:
    """Split one dimension into several; one size may be -1."""
    feature("NkiTensor.reshape_dim", since="0.5")
    axis = _axis(tensor, dim)
    sizes = list(shape)
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) == 1 and known and tensor.shape[axis] % known == 0:
        sizes[sizes.index(-1)] = tensor.shape[axis] // known
    if axis < _least(tensor) and tuple(sizes) != (tensor.shape[axis],):
        raise refuse("reshape", "partition dim cannot be reshaped", "Reshape free dimensions only")
    if math.prod(sizes) != tensor.shape[axis] or any(n <= 0 for n in sizes):
        raise refuse(
            "reshape",
            f"dimension {axis} of {tensor.name} cannot be split so",
            "Give sizes whose product is the dimension's",
            limit=str(tensor.shape[axis]),
            value=str(tuple(shape)),
        )
    strides: list[int] = []
    step = tensor.strides[axis]
    for size in reversed(sizes):
        strides.insert(0, step)
        step *= size
    return _view(
        tensor,
        (*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :]),
        (*tensor.strides[:axis], *strides, *tensor.strides[axis + 1 :]),
    )


def flatten_dims(tensor: NkiTensor, start_dim: int, end_dim: int) -> NkiTensor:
    """Merge the dimensions from `start_dim` to `end_dim`, both included."""
    feature("NkiTensor.flatten_dims", since="0.5")
    first, last = _axis(tensor, start_dim), _axis(tensor, end_dim)
    if first > last or (first < _least(tensor) and last > first):
        raise refuse(
            "view",
            f"dimensions {first} to {last} of {tensor.name} cannot be merged",
            "Merge free dimensions, the first before the last",
        )
    innermost = expected = None
    for axis in range(last, first - 1, -1):
        if tensor.shape[axis] == 1:  # its stride does not matter
            continue
        if innermost is None:
            innermost = expected = tensor.strides[axis]
        if tensor.strides[axis] != expected:
            raise refuse(
                "view",
                f"dimensions {first} to {last} of {tensor.name} do not follow each other",
                "Use .ap() or copy it first",
                limit=f"stride {expected} of dimension {axis}",
                value=str(tensor.strides[axis]),
            )
        expected *= tensor.shape[axis]
    size = math.prod(tensor.shape[first : last + 1])
    return _view(
        tensor,
        (*tensor.shape[:first], size, *tensor.shape[last + 1 :]),
        (
            *tensor.strides[:first],
            1 if innermost is None else innermost,
            *tensor.strides[last + 1 :],
        ),
    )


def expand_dim(tensor: NkiTensor, dim: int) -> NkiTensor:
    """Insert a dimension of 1 at `dim`."""
    feature("NkiTensor.expand_dim", since="0.5")
    rank = len(tensor.shape)
    is_integer = isinstance(dim, int) and not isinstance(dim, bool)
    axis = -1 if not is_integer else dim + rank + 1 if dim < 0 else dim
    if not _least(tensor) <= axis <= rank:
        raise refuse(
            "view",
            f"a dimension cannot be inserted at {dim} in {tensor.name}",
            "On chip the partitions stay first",
            limit=f"{_least(tensor)} to {rank}",
            value=repr(dim),
        )
    return _view(
        tensor,
        (*tensor.shape[:axis], 1, *tensor.shape[axis:]),
        (*tensor.strides[:axis], 1, *tensor.strides[axis:]),
    )


def squeeze_dim(tensor: NkiTensor, dim: int) -> NkiTensor:
    """Drop a dimension of 1."""
    feature("NkiTensor.squeeze_dim", since="0.5")
    axis = _axis(tensor, dim, _least(tensor))
    if tensor.shape[axis] != 1:
        raise refuse(
            "view",
            f"dimension {axis} of {tensor.name} is no 1",
            "Squeeze dimensions of size 1",
            limit="1",
            value=str(tensor.shape[axis]),
        )
    return _view(
        tensor,
        (*tensor.shape[:axis], *tensor.shape[axis + 1 :]),
        (*tensor.strides[:axis], *tensor.strides[axis + 1 :]),
    )


def permute(tensor: NkiTensor, dims: Any) -> NkiTensor:
    """The dimensions in another order; on chip the partitions stay first."""
    feature("NkiTensor.permute", since="0.5")
    order = tuple(dims)
    if set(order) != set(range(len(tensor.shape))) or len(order) != len(tensor.shape):
        raise refuse(
            "view",
            f"{order} is no order of the dimensions of {tensor.name}",
            "Name each dimension once",
            limit=str(tuple(range(len(tensor.shape)))),
            value=str(order),
        )
    if _least(tensor) and order[0] != 0:
        raise refuse(
            "view",
            "Partition dimension stay the outermost dimension",
            "Permute free dimensions only; nisa.nc_transpose moves partitions",
            limit="0 first",
            value=str(order),
        )
    return _view(
        tensor, tuple(tensor.shape[d] for d in order), tuple(tensor.strides[d] for d in order)
    )


def broadcast(tensor: NkiTensor, dim: int, size: int) -> NkiTensor:
    """Repeat a dimension of 1 `size` times (a stride of 0); on chip not the partitions."""
    feature("NkiTensor.broadcast", since="0.5")
    axis = _axis(tensor, dim, _least(tensor))
    if tensor.shape[axis] != 1 or not isinstance(size, int) or size < 1:
        raise refuse(
            "view",
            f"dimension {axis} of {tensor.name} cannot be broadcast to {size!r}",
            "Broadcast a dimension of size 1 to a positive size",
            limit="1",
            value=str(tensor.shape[axis]),
        )
    shape, strides = list(tensor.shape), list(tensor.strides)
    shape[axis], strides[axis] = size, 0
    return _view(tensor, tuple(shape), tuple(strides))


def slice_dim(tensor: NkiTensor, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
    """Elements `start` to `end` (excluded) of one dimension: 0 <= start < end <= size."""
    feature("NkiTensor.slice", since="0.5")
    axis = _axis(tensor, dim)
    if start < 0 or end < 0:
        raise refuse(
            "out-of-bounds",
            f"slice({dim}, {start}, {end}) of `{tensor.name}`",
            "Count from the start of the dimension",
            limit=f"0 to {tensor.shape[axis]}",
            value=f"{start} to {end}",
        )
    return tensor[(slice(None),) * axis + (slice(start, end, step),)]


def select(tensor: NkiTensor, dim: int, index: Any) -> NkiTensor:
    """One element of a dimension, which is dropped; the index may be known on the device only.

    Args:
        tensor: any tensor.
        dim: the dimension; on chip, the partition dimension is kept as 1.
        index: an int, a register, or a (1, 1) integer tile in SBUF.
    """
    from simulator.registers import VirtualRegister

    feature("NkiTensor.select", since="0.5")
    axis = _axis(tensor, dim)
    if isinstance(index, int):
        return tensor[(slice(None),) * axis + (index,)]
    if not isinstance(index, VirtualRegister):
        _check_index_tile(index, "index", single=True)
    view = with_scalar(tensor, axis, index, tensor.strides[axis], tensor.shape[axis])
    return view[(slice(None),) * axis + (0,)]


def rearrange(
    tensor: NkiTensor, src_pattern: Any, dst_pattern: Any, fixed_sizes: Any = None
) -> NkiTensor:
    """Split, permute and merge dimensions by name.

    Args:
        tensor: any tensor.
        src_pattern: a name per dimension, a tuple of names where one is to be split; as a
            tuple or as a string such as "p (a b)".
        dst_pattern: the same names in their new order and grouping.
        fixed_sizes: sizes of split dimensions by name; one of each group may be missing.
    """
    feature("NkiTensor.rearrange", since="0.5")
    source, target = _names(src_pattern), _names(dst_pattern)
    sizes = dict(fixed_sizes or {})
    named, again = ([n for group in groups for n in group] for groups in (source, target))
    fits = len(source) == len(tensor.shape) and len(set(named)) == len(named)
    if not fits or sorted(named) != sorted(again) or not set(sizes) <= set(named):
        raise refuse(
            "view",
            f"rearrange({src_pattern!r}, {dst_pattern!r}) does not fit {tensor.name}",
            "Name every dimension once on both sides",
            limit=f"{len(tensor.shape)} dimensions",
            value=str(len(source)),
        )
    view = tensor
    order: list[str] = []
    for group in source:
        axis = len(order)
        if len(group) > 1 or group[0] in sizes:
            view = reshape_dim(view, axis, [sizes.get(name, -1) for name in group])
        order += group
    flat = [name for group in target for name in group]
    view = permute(view, [order.index(name) for name in flat])
    for axis, group in enumerate(target):
        if len(group) > 1:
            view = flatten_dims(view, axis, axis + len(group) - 1)
    return view


def _names(pattern: Any) -> list[list[str]]:
    """A pattern as groups of names."""
    if not isinstance(pattern, str):
        return [[p] if isinstance(p, str) else list(p) for p in pattern]
    groups: list[list[str]] = []
    inside = False
    for token in pattern.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            groups.append([])
            inside = True
        elif token == ")":
            inside = False
        elif inside:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def view(tensor: NkiTensor, dtype: Any) -> NkiTensor:
    """The same bytes as another dtype; the last dimension is rescaled."""
    new = as_dtype(dtype)
    if tensor.dynamic is not None:
        raise refuse(
            "view",
            f"{tensor.name} has a dynamic address",
            "View it as another dtype first, then select",
            limit="a static view",
            value="a dynamic view",
        )
    old_bytes = tensor.shape[-1] * tensor.dtype.itemsize
    counted = zip(tensor.strides[:-1], tensor.shape[:-1], strict=True)
    scaled = [tensor.offset, *(0 if count == 1 else stride for stride, count in counted)]
    whole = all(s * tensor.dtype.itemsize % new.itemsize == 0 for s in scaled)
    if (tensor.strides[-1] != 1 and tensor.shape[-1] != 1) or old_bytes % new.itemsize or not whole:
        raise refuse(
            "view",
            f"{tensor.name} cannot be viewed as {new}",
            "The last dimension must be contiguous and a whole number of the new elements",
            limit=f"multiple of {new.itemsize} bytes",
            value=f"{old_bytes} bytes, stride {tensor.strides[-1]}",
        )
    offset, *strides = (s * tensor.dtype.itemsize // new.itemsize for s in scaled)
    shape = (*tensor.shape[:-1], old_bytes // new.itemsize)
    return _view(tensor, shape, (*strides, 1), offset, new)


# --- access patterns ------------------------------------------------------------------------


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
    _axis(tensor, indirect_dim)
    start = _start(tensor, element) if offset is None else offset
    try:
        steps = tuple(int(step) for step, _ in pattern)
        counts = tuple(int(count) for _, count in pattern)
    except (TypeError, ValueError):
        raise _bad_pattern(tensor, pattern) from None
    if scalar_offset is not None and vector_offset is not None:
        raise refuse(
            "access-pattern",
            f"ap() of {tensor.name} with both scalar_offset and vector_offset",
            "Give at most one of the two",
            limit="1",
            value="2",
        )
    row = math.prod(tensor.shape[indirect_dim + 1 :]) * tensor.dtype.itemsize // element.itemsize
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
        return with_scalar(view, _axis(tensor, indirect_dim), scalar_offset, row, None)
    if vector_offset is not None:
        return _with_rows(view, vector_offset, row, indirect_dim, None)
    return view


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

    view = OutsideTensor(tensor.storage, shape, strides, offset, dtype)
    view.fault = fault
    return view


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
        _check_partition_end(tensor, start, steps, counts, free)
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
) -> None:
    """The free part of a pattern must stay in its partition: behind it lies another tensor."""
    span = list(zip(steps, counts, strict=True))[1:]
    last = start % free + sum(step * (count - 1) for step, count in span if step > 0)
    least = start % free + sum(step * (count - 1) for step, count in span if step < 0)
    if least < 0 or last >= free:
        raise refuse(
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
