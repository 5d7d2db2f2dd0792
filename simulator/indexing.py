"""`tensor[…]`: integers, slices, `...`, `nl.ds`, registers. Nothing is clamped.

Source: nki_facts.md §2.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.context import feature
from simulator.errors import refuse

if TYPE_CHECKING:
    from simulator.tensor import Dynamic, NkiTensor


class DynamicSlice:
    """`nl.ds(start, size)`: `size` elements from `start`, an int or a register."""

    __slots__ = ("size", "start")

    def __init__(self, start: Any, size: int) -> None:
        self.start = start
        self.size = size


_ALL = slice(None)


def index(tensor: NkiTensor, key: tuple[Any, ...]) -> NkiTensor:
    """The view `tensor[key]`.

    On chip an integer on dimension 0 keeps it as 1; an integer elsewhere drops the
    dimension, unless the rank would fall below 2 (HBM: 1), where a last dimension of 1 stays.

    Raises:
        NkiValidationError: out of bounds, too many indices, or no index at all.
    """
    shape, strides = tensor.shape, tensor.strides
    on_chip = tensor.storage.buffer.on_chip
    offset = tensor.offset
    new_shape: list[int] = []
    new_strides: list[int] = []
    dynamic = tensor.dynamic
    dropped = False
    for axis, item in enumerate(_expand(tensor, key)):
        stride = strides[axis]
        if item.__class__ is slice:
            if item == _ALL:
                new_shape.append(shape[axis])
                new_strides.append(stride)
                continue
        elif _is_register(getattr(item, "start", item)):
            dynamic, count = _dynamic_start(tensor, axis, item, dynamic)
            if item.__class__ is not DynamicSlice and not (axis == 0 and on_chip):
                dropped = True
                continue
            new_shape.append(count)
            new_strides.append(stride)
            continue
        start, count, step = _bounds(tensor, axis, item)
        if dynamic is not None and axis == 0 and dynamic.rows is not None:
            _check_all_rows(tensor, item, count)
        offset += start * stride
        if item.__class__ is int and not (axis == 0 and on_chip):
            dropped = True
            continue
        new_shape.append(count)
        new_strides.append(stride * step)
    if dropped and len(new_shape) < (2 if on_chip else 1):
        new_shape.append(1)
        new_strides.append(1)
    kind = _empty_view(tensor, key) if 0 in new_shape else tensor.__class__
    return kind(tensor.storage, tuple(new_shape), tuple(new_strides), offset, tensor.dtype, dynamic)


def _empty_view(tensor: NkiTensor, key: tuple[Any, ...]) -> type[NkiTensor]:
    """The class of a view without elements, such as a core's part where there is nothing to do.

    Kernels may make it; no instruction takes it.
    """
    from simulator.tensor import OutsideTensor

    for axis, item in enumerate(_expand(tensor, key)):
        if item != _ALL and not _is_register(getattr(item, "start", item)):
            start, count, step = _bounds(tensor, axis, item)
            if count == 0:
                return OutsideTensor.of(
                    out_of_bounds(tensor, axis, f"[{start}, {start - 1}] step {step}")
                )
    return tensor.__class__  # a view of a view without elements


def _is_register(value: Any) -> bool:
    from simulator.registers import VirtualRegister

    return isinstance(value, VirtualRegister)


def _check_all_rows(tensor: NkiTensor, item: Any, count: int) -> None:
    """The gathered rows of a view can only be taken all together."""
    if item.__class__ is int or count != tensor.shape[0]:
        raise refuse(
            "dynamic-offset",
            f"a slice of the gathered rows of `{tensor.name}`",
            "Slice the index tile, then gather",
            limit="all rows",
            value=repr(item),
        )


def _dynamic_start(
    tensor: NkiTensor, axis: int, item: Any, dynamic: Dynamic | None
) -> tuple[Dynamic | None, int]:
    """An address whose start along `axis` is a register, and how many elements it takes."""
    from simulator.patterns import with_scalar

    feature("index by a register", since="0.5")
    count = item.size if isinstance(item, DynamicSlice) else 1
    register = item.start if isinstance(item, DynamicSlice) else item
    if count > tensor.shape[axis] or count < 1:
        raise out_of_bounds(tensor, axis, f"{count} elements")
    view = tensor.__class__(
        tensor.storage, tensor.shape, tensor.strides, tensor.offset, tensor.dtype, dynamic
    )
    limit = tensor.shape[axis] - count + 1
    return with_scalar(view, axis, register, tensor.strides[axis], limit).dynamic, count


def _expand(tensor: NkiTensor, key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace `...` and missing trailing dimensions by full slices."""
    rank = len(tensor.shape)
    dots = 0
    for item in key:
        if item is Ellipsis:
            dots += 1
    if len(key) == rank and not dots:
        return key
    if dots > 1 or len(key) - dots > rank:
        raise refuse(
            "index",
            f"too many indices for tensor `{tensor.name}`",
            "Index at most each dimension once",
            limit=str(rank),
            value=str(len(key)),
        )
    fill = (_ALL,) * (rank - len(key) + dots)
    if not dots:
        return (*key, *fill)
    at = next(i for i, item in enumerate(key) if item is Ellipsis)
    return (*key[:at], *fill, *key[at + 1 :])


def out_of_bounds(tensor: NkiTensor, axis: int, value: str) -> Exception:
    """The error for an index range that a dimension does not have."""
    return refuse(
        "out-of-bounds",
        f"Out-of-bound access for tensor `{tensor.name}` on dimension {axis}: "
        f"index range {value} exceed dimension size of {tensor.shape[axis]}",
        "Slices are not clamped as in NumPy: bound the end with min(), or pad the tensor",
        limit=str(tensor.shape[axis]),
        value=value,
    )


def _bounds(tensor: NkiTensor, axis: int, item: Any) -> tuple[int, int, int]:
    """Start, count and step of one index."""
    size = tensor.shape[axis]
    if item.__class__ is slice:
        start, stop, step = item.start, item.stop, item.step
        start = 0 if start is None else start
        stop = size if stop is None else stop
        step = 1 if step is None else step
    elif item.__class__ is int:
        start = item + size if item < 0 else item
        if not 0 <= start < size:
            raise out_of_bounds(tensor, axis, f"[{item}, {item}]")
        return start, 1, 1
    else:
        start, stop, step = _unusual(tensor, item)
    if not (isinstance(start, int) and isinstance(stop, int) and isinstance(step, int)):
        raise _no_index(tensor, item)
    start = start + size if start < 0 else start
    stop = stop + size if stop < 0 else stop
    if step < 1 or start < 0 or stop > size or stop < start:
        raise out_of_bounds(tensor, axis, f"[{start}, {stop - 1}] step {step}")
    return start, (stop - start + step - 1) // step, step


def _unusual(tensor: NkiTensor, item: Any) -> tuple[Any, Any, Any]:
    """Start, stop and step of `nl.ds`, and of integers that are no `int`."""
    if isinstance(item, DynamicSlice):
        if not isinstance(item.start, int) or not isinstance(item.size, int):
            raise _no_index(tensor, item)
        return item.start, item.start + item.size, 1
    raise _no_index(tensor, item)


def _no_index(tensor: NkiTensor, item: Any) -> Exception:
    return refuse(
        "index",
        f"index {item!r} of tensor `{tensor.name}` is a {type(item).__name__}",
        "Index with integers, slices, `...` or nl.ds(start, size)",
        limit="int, slice, ..., nl.ds",
        value=type(item).__name__,
    )
