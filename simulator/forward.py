"""Copies that a replay need not make.

On the chip, data must be copied into SBUF, out of PSUM and back to HBM; on a CPU a copy that
nobody could tell from its source is a waste. A tile that is nothing but a copy of another
tensor, which does not change while the tile lives, becomes a view of it (an alias), and the copy
is left out. The same holds for a tile whose only fate is to be stored: it is computed in place.
Values are the same bit for bit; the Program itself, and all checks on it, are untouched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulator.tensor import MemoryRegion, NkiTensor, Storage
from simulator.views import reshaped_strides

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


@dataclass(frozen=True)
class Alias:
    """Element (row, column) of a storage is an element of another tensor."""

    storage: Storage
    """The storage that becomes a view."""
    root: NkiTensor
    row_stride: int
    column_stride: int

    def map(self, tensor: NkiTensor) -> NkiTensor:
        """A view of the storage as a view of the root's."""
        width = self.storage.size // self.storage.shape[0]

        def moved(elements: int) -> int:
            row, column = divmod(elements, width)
            return row * self.row_stride + column * self.column_stride

        return NkiTensor(
            self.root.storage,
            tensor.shape,
            tuple(moved(stride) for stride in tensor.strides),
            self.root.offset + moved(tensor.offset),
            tensor.dtype,
        )


@dataclass
class _Uses:
    """Where a storage is read and written, by position."""

    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    written_elements: int = 0
    plain: bool = True
    """Every view has the storage's dtype, a static address, and stands outside of loops."""
    matmul_only: bool = True
    """Only the Tensor engine and plain copies read it."""
    copies_only: bool = True
    """Only dma_copy writes it."""


@dataclass
class Forwarding:
    """Aliases by storage index, and the positions of the copies that are left out."""

    aliases: dict[int, Alias] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    replaced: dict[int, Instruction] = field(default_factory=dict)
    """Instructions that do the work of several (`contract.contract`), by position."""
    disjoint_outputs: set[int] = field(default_factory=set)
    """Outputs that are only copied to, each element once, and never read."""

    def root(self, tensor: NkiTensor) -> NkiTensor:
        """Where a view's elements really are."""
        while True:
            alias = self.aliases.get(tensor.storage.index)
            if alias is None:
                return tensor
            tensor = alias.map(tensor)


def forward(program: Program) -> Forwarding:
    """Find the copies that can be left out."""
    found = Forwarding()
    uses = _uses(program)
    stores = []
    for position, instruction in enumerate(program.instructions):
        name = instruction.spec.name
        if name not in ("dma_copy", "tensor_copy", "nc_transpose"):
            continue
        dst, src = instruction["dst"], _source(instruction)
        if not (uses[dst.storage.index].plain and uses[src.storage.index].plain):
            continue
        if dst.dtype is not src.dtype:
            continue
        if dst.storage.role == "output":
            stores.append((position, dst, src))
        elif _is_copy(dst, src, position, uses, found):
            alias = _alias(dst.storage, src, name == "nc_transpose")
            if alias is not None and (
                alias.column_stride == 1 or uses[dst.storage.index].matmul_only
            ):
                _keep_alive(alias, uses)
                found.aliases[dst.storage.index] = alias
                found.skipped.add(position)
    found.disjoint_outputs = {
        storage.index
        for storage, use in zip(program.storages, uses, strict=True)
        if storage.role == "output" and _is_disjoint(storage, use)
    }
    for position, dst, src in stores:
        if _computes_in_place(dst, src, position, uses, found):
            alias = _alias(src.storage, dst, False)
            if alias is not None and alias.column_stride == 1:
                found.aliases[src.storage.index] = alias
                found.skipped.add(position)
    return found


def _source(instruction: Instruction) -> NkiTensor:
    source: NkiTensor = instruction["data" if instruction.spec.name == "nc_transpose" else "src"]
    return source


_MATMUL = ("nc_matmul", "tensor_copy", "nc_transpose")


def _uses(program: Program) -> list[_Uses]:
    uses = [_Uses() for _ in program.storages]
    depth = 0
    for position, instruction in enumerate(program.instructions):
        name = instruction.spec.name
        if instruction.engine == "control":
            depth += {"loop": 1, "while_begin": 1}.get(name, -1)
        for _, tensor in instruction.reads():
            use = uses[tensor.storage.index]
            use.reads.append(position)
            use.matmul_only = use.matmul_only and name in _MATMUL
            use.plain = use.plain and not depth and _plain(tensor)
        for _, tensor in instruction.writes():
            use = uses[tensor.storage.index]
            use.writes.append(position)
            use.written_elements += tensor.size
            use.copies_only = use.copies_only and name == "dma_copy"
            use.plain = use.plain and not depth and _plain(tensor)
    for index in program.uncertain:
        uses[index].plain = False
    return uses


def _plain(tensor: NkiTensor) -> bool:
    return tensor.dynamic is None and tensor.dtype is tensor.storage.dtype


def _covers(tensor: NkiTensor) -> bool:
    """Whether a view is its whole storage, in order."""
    return tensor.size == tensor.storage.size and tensor.offset == 0 and tensor.is_contiguous()


def _is_copy(
    dst: NkiTensor, src: NkiTensor, position: int, uses: list[_Uses], found: Forwarding
) -> bool:
    """Whether dst is a tile that is written once, as a copy of what stays as it is."""
    use = uses[dst.storage.index]
    if dst.storage.role != "temporary" or not dst.buffer.on_chip or not _covers(dst):
        return False
    if len(use.writes) != 1 or dst.storage.address is not None:
        return False
    last = max(use.reads, default=position)
    root = found.root(src).storage
    for storage in (src.storage, root):
        if any(position < write <= last for write in uses[storage.index].writes):
            return False
    return True


def _alias(storage: Storage, tensor: NkiTensor, transposed: bool) -> Alias | None:
    """`storage` as a view of `tensor`, if rows and columns have one stride each."""
    rows = storage.shape[0]
    columns = storage.size // rows
    shape = (columns, rows) if transposed else (rows, columns)
    strides = _two_strides(tensor, shape)
    if strides is None:
        return None
    if transposed:
        strides = (strides[1], strides[0])
    return Alias(storage, tensor, *strides)


def _two_strides(tensor: NkiTensor, shape: tuple[int, int]) -> tuple[int, int] | None:
    """Strides of a tensor seen as a matrix of this shape, None if it has no such strides."""
    if tensor.shape == shape:
        first, second = tensor.strides
        return first, 1 if shape[1] == 1 else second
    if tensor.shape[0] == shape[0]:  # repeated rows (stride 0) would not pass a reshape
        row = NkiTensor(tensor.storage, (1, *tensor.shape[1:]), tensor.strides, tensor.offset)
        inner = reshaped_strides(row, (1, shape[1]), 1)
        return None if inner is None else (tensor.strides[0], inner[1])
    strides = reshaped_strides(tensor, shape, 0)
    return None if strides is None else (strides[0], strides[1])


def _keep_alive(alias: Alias, uses: list[_Uses]) -> None:
    """Reads of the alias are reads of its root."""
    root = uses[alias.root.storage.index]
    root.reads += uses[alias.storage.index].reads


def _is_disjoint(storage: Storage, use: _Uses) -> bool:
    """All elements are written (the check says so), as many as there are: no overlap."""
    return not use.reads and use.plain and use.copies_only and use.written_elements == storage.size


def _computes_in_place(
    dst: NkiTensor, src: NkiTensor, position: int, uses: list[_Uses], found: Forwarding
) -> bool:
    """Whether a tile can be computed where it would be stored."""
    tile = uses[src.storage.index]
    return (
        dst.storage.index in found.disjoint_outputs
        and src.storage.role == "temporary"
        and src.buffer is MemoryRegion.sbuf
        and src.storage.address is None
        and src.storage.index not in found.aliases
        and _covers(src)
        and max(tile.writes, default=position) < position
    )
