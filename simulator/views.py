"""The methods of tensors that give views: reshape, permute, broadcast, rearrange, view, …

Each function is a method of `NkiTensor` and gives a new view of the same storage. Source:
nki_facts.md §2.3. All but reshape and view exist since 0.5. Access patterns and indices that only
the device knows are in `patterns.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from simulator.context import feature
from simulator.dtypes import DType, as_dtype
from simulator.errors import refuse

if TYPE_CHECKING:
    from simulator.tensor import NkiTensor


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


def axis_of(tensor: NkiTensor, dim: Any, least: int = 0) -> int:
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
    axis = axis_of(tensor, dim)
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
    first, last = axis_of(tensor, start_dim), axis_of(tensor, end_dim)
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
    axis = axis_of(tensor, dim, _least(tensor))
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
    axis = axis_of(tensor, dim, _least(tensor))
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
    axis = axis_of(tensor, dim)
    if start < 0 or end < 0:
        raise refuse(
            "out-of-bounds",
            f"slice({dim}, {start}, {end}) of `{tensor.name}`",
            "Count from the start of the dimension",
            limit=f"0 to {tensor.shape[axis]}",
            value=f"{start} to {end}",
        )
    return tensor[(slice(None),) * axis + (slice(start, end, step),)]


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
