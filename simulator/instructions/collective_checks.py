"""What is refused of collectives. Source: nki_facts.md §2.11 (nki.collectives)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator import dtypes
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

PRIORITIES = (0, 1, 2, 3)
GATHER_V_RANKS = 4
"""all_gather_v works within one chip: rank lists of 4 (documented limit of 0.6)."""
CHANNELS = 4
"""Of a ring inside a node; 2 for others."""


def _sources(instruction: Instruction) -> list[NkiTensor]:
    return [tensor for name, tensor in instruction.reads() if name.startswith("srcs")]


def _group(program: Program, instruction: Instruction) -> int | None:
    """Check the replica group; returns the number of ranks in each list."""
    group = instruction["replica_group"]
    lists = getattr(group, "groups", None)
    problem = ""
    if not isinstance(lists, list | tuple) or not lists:
        problem = f"replica_group must be a ReplicaGroup, got {type(group).__name__}"
    elif not all(isinstance(ranks, list | tuple) and ranks for ranks in lists):
        problem = "a replica group is a list of rank lists"
    else:
        ranks = [rank for members in lists for rank in members]
        if not all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in ranks):
            problem = "ranks are integers from 0"
        elif len(set(ranks)) < len(ranks):
            problem = "a rank is in two places of the replica group"
        elif len({len(members) for members in lists}) > 1:
            problem = "the rank lists have different lengths"
    if not problem:
        return len(group.groups[0])
    program.report(
        instruction,
        "replica-group",
        problem,
        "Write ReplicaGroup([[0, 1, …], …]): each rank once, all lists of one length",
        operand="replica_group",
        limit="lists of distinct ranks",
        value=repr(lists if lists is not None else group),
    )
    return None


def _check_common(program: Program, instruction: Instruction, sbuf: bool, many: bool) -> bool:
    """Priority, numbers of tensors, their buffers and dtypes; whether shapes can be compared."""
    priority = instruction["priority"]
    if priority is not None and program.target.generation < 4:
        _report(program, instruction, "gen4-only", "priority", "trn3", program.target.name,
                "priority is only supported for NeuronCore-v4 or newer",
                "Leave it out on trn2")  # fmt: skip
    elif priority is not None and (isinstance(priority, bool) or priority not in PRIORITIES):
        _report(program, instruction, "collective-priority", "priority", "0 to 3", repr(priority),
                "priority is a level from 0 to 3", "0 is the highest")  # fmt: skip
    sources, results = _sources(instruction), [t for _, t in _results(instruction)]
    pairs = len(results)
    lists = [name for name in instruction.spec.operands if name.startswith("srcs")]
    if not pairs or len(sources) != pairs * len(lists):
        _report(program, instruction, "collective-tensors", "dsts", f"{len(sources)} tensors",
                f"{pairs} tensors", "srcs and dsts differ in number",
                "Give each src its dst")  # fmt: skip
        return False
    if pairs > 1 and not many:
        _report(program, instruction, "collective-tensors", "dsts", "1 tensor",
                f"{pairs} tensors", "takes one tensor at a time",
                "Call it once for each tensor")  # fmt: skip
    return _check_buffers(program, instruction, sources, results, sbuf)


def _results(instruction: Instruction) -> list[tuple[str, NkiTensor]]:
    return [(name, tensor) for name, tensor in instruction.writes() if name == "dsts"]


def _check_buffers(
    program: Program,
    instruction: Instruction,
    sources: list[NkiTensor],
    results: list[NkiTensor],
    sbuf: bool,
) -> bool:
    on_chip = {tensor.buffer.on_chip for tensor in (*sources, *results)}
    by_channel = instruction.get("channel_ids") is not None
    if len(on_chip) > 1:
        _report(program, instruction, "collective-buffer", "dsts", "all in HBM or all in SBUF",
                "both", "tensors in HBM and in SBUF",
                "Move them to one memory by nisa.dma_copy")  # fmt: skip
    elif on_chip == {True} and not sbuf:
        _report(program, instruction, "collective-buffer", "srcs", "HBM", "sbuf",
                "works on HBM only", "Copy to HBM with nisa.dma_copy")  # fmt: skip
    elif on_chip == {True} and len(results) > 1 and not by_channel:
        _report(program, instruction, "collective-buffer", "srcs", "1 tensor",
                f"{len(results)} tensors", "several tensors at once only work in HBM",
                "Call it once for each tile")  # fmt: skip
    for src, dst in zip(sources, results * (len(sources) // len(results)), strict=True):
        if src.dtype is not dst.dtype:
            _report(program, instruction, "collective-dtype", "dsts", str(src.dtype),
                    str(dst.dtype), f"src is {src.dtype} and dst {dst.dtype}",
                    "Give both the same dtype")  # fmt: skip
            return False
    for tensor in (*sources, *results):
        if tensor.storage.role == "argument":
            program.warn(
                instruction,
                "collective-argument",
                f"`{tensor.name}` is an argument of the kernel; public kernels note that the "
                "compiler refuses those in collectives",
                "Copy it to a tensor of the kernel's own by nisa.dma_copy",
                limit="tensors the kernel allocates",
                value=tensor.name,
            )
    return True


def _report(
    program: Program, instruction: Instruction, rule: str, operand: str, limit: str, value: str,
    message: str, mend: str,
) -> None:  # fmt: skip
    program.report(
        instruction, rule, f"{instruction.spec.name}: {message}", mend, operand=operand,
        limit=limit, value=value,
    )  # fmt: skip


def _check_dim(program: Program, instruction: Instruction, sbuf_dims: tuple[int, ...]) -> bool:
    """collective_dim: 0, in SBUF also others."""
    dim = instruction["collective_dim"]
    tensor = instruction["srcs"][0]
    allowed = sbuf_dims if tensor.buffer.on_chip else (0,)
    if tensor.buffer.on_chip and tensor.ndim != 2:
        _report(program, instruction, "collective-shape", "srcs", "2 dimensions",
                f"{tensor.ndim} dimensions", "SBUF collectives take 2-D tiles",
                "Reshape the tile to (P, N)")  # fmt: skip
        return False
    if isinstance(dim, bool) or dim not in allowed:
        names = " or ".join(map(str, allowed))
        _report(program, instruction, "collective-dim", "collective_dim", names, repr(dim),
                f"collective_dim must be {names} for {tensor.buffer.value}",
                "Move that dimension to the front")  # fmt: skip
        return False
    return True


def _check_shapes(program: Program, instruction: Instruction, wanted: Any) -> None:
    """Each dst must have the shape `wanted(src.shape)`; None if the src cannot be split so."""
    results = [tensor for _, tensor in _results(instruction)]
    sources = _sources(instruction)
    for position, src in enumerate(sources):
        dst = results[position % len(results)]
        shape = wanted(src.shape)
        if shape is None:
            _report(program, instruction, "collective-shape", "srcs", "a multiple of the ranks",
                    str(src.shape[0]), "dimension 0 cannot be split between the ranks",
                    "Pad it to a multiple of the group's size")  # fmt: skip
        elif dst.shape != shape:
            _report(program, instruction, "collective-shape", "dsts", str(shape), str(dst.shape),
                    f"a src of {src.shape} needs a dst of {shape}",
                    "Allocate dst in that shape")  # fmt: skip


def check_all_reduce(program: Program, instruction: Instruction) -> None:
    """dst has src's shape."""
    _group(program, instruction)
    if _check_common(program, instruction, sbuf=True, many=True):
        _check_shapes(program, instruction, lambda shape: shape)


def check_all_gather(program: Program, instruction: Instruction) -> None:
    """dst has as many times src's extent along collective_dim as there are ranks."""
    ranks = _group(program, instruction)
    good = _check_common(program, instruction, sbuf=True, many=True)
    if good and ranks is not None and _check_dim(program, instruction, (0, 1)):
        dim = instruction["collective_dim"]
        _check_shapes(
            program,
            instruction,
            lambda shape: (*shape[:dim], shape[dim] * ranks, *shape[dim + 1 :]),
        )


def check_reduce_scatter(program: Program, instruction: Instruction) -> None:
    """dst has one rank's part of src's rows."""
    ranks = _group(program, instruction)
    good = _check_common(program, instruction, sbuf=True, many=True)
    if good and ranks is not None and _check_dim(program, instruction, (0,)):
        _check_shapes(
            program,
            instruction,
            lambda shape: None if shape[0] % ranks else (shape[0] // ranks, *shape[1:]),
        )


def check_all_to_all(program: Program, instruction: Instruction) -> None:
    """dst has src's shape, whose rows the ranks share equally."""
    ranks = _group(program, instruction)
    good = _check_common(program, instruction, sbuf=False, many=True)
    if good and ranks is not None and _check_dim(program, instruction, (0,)):
        _check_shapes(program, instruction, lambda shape: None if shape[0] % ranks else shape)


def check_permute(program: Program, instruction: Instruction) -> None:
    """Pairs of ranks: each source once, each target once."""
    pairs = instruction["source_target_pairs"]
    good = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in pair)
        for pair in pairs
    )
    if not good or any(len(set(side)) < len(side) for side in zip(*pairs, strict=True)):
        _report(program, instruction, "replica-group", "source_target_pairs",
                "pairs of ranks, each source and each target once", repr(pairs),
                "source_target_pairs are (source, target) ranks",
                "Write [(0, 1), (1, 0)]")  # fmt: skip
    if _check_common(program, instruction, sbuf=False, many=False):
        _check_shapes(program, instruction, lambda shape: shape)


def _check_channels(program: Program, instruction: Instruction) -> None:
    ids = instruction["channel_ids"]
    count = len(_results(instruction))
    if not isinstance(ids, list | tuple) or list(ids) != list(range(count)) or count > CHANNELS:
        limit = f"{list(range(min(count, CHANNELS)))}"
        _report(program, instruction, "collective-channel", "channel_ids", limit, repr(ids),
                f"channel_ids are consecutive from 0, one per tensor, at most {CHANNELS}",
                "Write channel_ids=list(range(n))")  # fmt: skip


def check_implicit(program: Program, instruction: Instruction) -> None:
    """One tensor for each channel; dst has src's shape."""
    _group(program, instruction)
    _check_channels(program, instruction)
    if _check_common(program, instruction, sbuf=True, many=True):
        _check_shapes(program, instruction, lambda shape: shape)


def check_variable(program: Program, instruction: Instruction) -> None:
    """One flat tensor in HBM, and uint32 counts."""
    ranks = _group(program, instruction)
    _check_common(program, instruction, sbuf=False, many=False)
    metadata: NkiTensor = instruction["metadata"][0]
    if metadata.dtype is not dtypes.uint32:
        _report(program, instruction, "collective-dtype", "metadata_tensor", "uint32",
                str(metadata.dtype), "counts and displacements are uint32",
                "Allocate metadata_tensor as nl.uint32")  # fmt: skip
    if instruction.spec.name != "all_gather_v":
        return
    problems = []
    if instruction["has_rdispls"]:
        problems.append(("has_rdispls", "False", "True", "has_rdispls is not supported"))
    if program.lnc != 2:
        problems.append(("replica_group", "LNC2", "LNC1", "works with two cores per rank only"))
    if ranks not in (None, GATHER_V_RANKS):
        problems.append(("replica_group", str(GATHER_V_RANKS), str(ranks), "rank lists have 4"))
    for operand, limit, value, message in problems:
        _report(program, instruction, "collective-limit", operand, limit, value, message,
                "See the limits of all_gather_v")  # fmt: skip


def check_ring(program: Program, instruction: Instruction) -> None:
    """The iteration is an integer or a register, the channel an integer."""
    _group(program, instruction)
    iteration, channel = instruction["iteration_id"], instruction["channel_id"]
    if not isinstance(iteration, int | VirtualRegister) or isinstance(iteration, bool):
        _report(program, instruction, "operand", "iteration_id", "int or register",
                repr(iteration), "iteration_id must be an integer or a register",
                "Give the ring's step, from 0")  # fmt: skip
    if isinstance(channel, bool) or channel not in range(CHANNELS):
        _report(program, instruction, "collective-channel", "channel_id", f"0 to {CHANNELS - 1}",
                repr(channel), "channel_id must be a channel's number",
                "Number channels from 0")  # fmt: skip
