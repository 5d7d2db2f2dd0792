"""Matrix products that a replay may do at once.

The Tensor engine contracts at most 128 rows at a time, so a kernel's product over a long dimension
is a chain of matmuls into one PSUM tile. Where the tiles of a chain are neighbours in memory,
the whole chain is one matrix product for this CPU. fp32 accumulation over the contraction has no
specified order on the chip (nki_facts.md §5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.enums import matmul_perf_mode
from simulator.program import Instruction
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.forward import Forwarding
    from simulator.program import Program


def contract(program: Program, forwarding: Forwarding) -> None:
    """Replace chains of neighbouring matmuls by their first, made longer."""
    chain: list[int] = []
    longer: Instruction | None = None
    for position, instruction in enumerate(program.instructions):
        if position in forwarding.skipped:
            continue
        extended = _extend(longer, instruction, forwarding) if longer is not None else None
        if extended is not None:
            chain.append(position)
            longer = extended
            continue
        _replace(chain, longer, forwarding)
        chain, longer = ([position], instruction) if _is_plain(instruction) else ([], None)
    _replace(chain, longer, forwarding)


def _replace(chain: list[int], longer: Instruction | None, forwarding: Forwarding) -> None:
    if longer is not None and len(chain) > 1:
        forwarding.replaced[chain[0]] = longer
        forwarding.skipped.update(chain[1:])


def _is_plain(instruction: Instruction) -> bool:
    """A matmul with nothing special about it."""
    return (
        instruction.spec.name == "nc_matmul"
        and instruction["perf_mode"] is matmul_perf_mode.none
        and not instruction["is_transpose"]
        and not instruction["tile_position"]
        and isinstance(instruction["accumulate"], bool)
        and all(instruction[name].dynamic is None for name in ("dst", "stationary", "moving"))
    )


def _extend(longer: Instruction, following: Instruction, forwarding: Forwarding) -> Any:
    """`longer` with the next matmul's rows added, None if they do not follow its own."""
    if not _is_plain(following) or not following["accumulate"]:
        return None
    if not _same(longer["dst"], following["dst"]) or longer.core != following.core:
        return None
    operands = {}
    for name in ("stationary", "moving"):
        joined = _join(forwarding.root(longer[name]), forwarding.root(following[name]))
        if joined is None:
            return None
        operands[name] = joined
    extended = Instruction(longer.spec, longer.operands, longer.engine, longer.file, longer.line)
    extended.core = longer.core
    for name, tensor in operands.items():
        extended.set(name, tensor)
    return extended


def _same(a: NkiTensor, b: NkiTensor) -> bool:
    return (
        a.storage is b.storage
        and (a.offset, a.shape, a.strides) == (b.offset, b.shape, b.strides)
        and a.dtype is b.dtype
    )


def _join(a: NkiTensor, b: NkiTensor) -> NkiTensor | None:
    """The rows of a and then of b as one view."""
    if a.storage is not b.storage or a.dtype is not b.dtype:
        return None
    if a.shape[1:] != b.shape[1:] or a.strides != b.strides:
        return None
    if b.offset != a.offset + a.shape[0] * a.strides[0]:
        return None
    shape = (a.shape[0] + b.shape[0], *a.shape[1:])
    return NkiTensor(a.storage, shape, a.strides, a.offset, a.dtype)
