"""What one instruction costs on its engine: the laws, applied to one operand signature.

Two times per instruction: the *interval* after which its engine takes the next instruction,
and the *latency* after which its result can be read. docs/timing.md derives the laws.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from simulator.instructions.control import LOOPS
from simulator.tensor import MemoryRegion, NkiTensor
from simulator.timing import collectives, dma
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction

PLAIN, BRANCH, TENSOR, TABLE, PORT, BANK, DMA, MEET = range(8)
"""How an instruction is played; from PORT on it needs something that queues share (play.py)."""

QUEUES = ("tensor", "vector", "scalar", "gpsimd", "sync", "loads", "stores")
"""The queues of one core. `loads` and `stores` are the hardware DMA rings of the two DGE blocks:
the Sync engine starts the first's transfers; the Scalar engine's sequencer the second's, hidden
behind its compute (SDK guide of descriptor generation). Software descriptor generation is fed
from the GpSimd queue."""
ENGINES = QUEUES[:5]

FREE_TABLE = 0
_TABLE_SETS = (
    ("sqrt", "rsqrt", "reciprocal"),
    ("exp",),
    ("sigmoid",),
    ("silu", "silu_dx"),
    ("softplus",),
    ("gelu", "gelu_dx", "erf", "erf_dx"),
    ("gelu_apprx_tanh", "tanh"),
    ("gelu_apprx_sigmoid", "gelu_apprx_sigmoid_dx"),
    ("log",),
    ("sin",),
    ("arctan",),
    ("mish",),
)
"""Functions that one table holds (nki_facts.md §2.7). Those not named (copy, square, relu,
abs, sign, …) are in every table: ten public trn2 profiles mix EXP, COPY and CAST with a single
ACT_TABLE_LOAD (trn2_instruction_timings.csv)."""
TABLES = {name: n for n, names in enumerate(_TABLE_SETS, 1) for name in names}

SIXTEEN_BIT = frozenset({"bfloat16", "float16"})
EIGHT_BIT = frozenset({"float8_e4m3", "float8_e4m3fn", "float8_e5m2"})
FP32 = frozenset({"float32", "tfloat32"})


class Cost(NamedTuple):
    """An instruction's cost on one machine. Times in ns."""

    kind: int
    queue: int
    """Index in QUEUES."""
    interval: float
    latency: float
    cold_interval: float = 0.0
    """With the Tensor engine's clock not yet warm."""
    cold_latency: float = 0.0
    lead: float = 0.0
    """Loading weights into the Tensor engine, hidden if it is busy with what came before."""
    table: int = FREE_TABLE
    """The activation table that must be loaded."""
    transfer: dma.Transfer | None = None
    macs: int = 0
    peak_passes: float = 1.0
    """Passes of the Tensor engine: 4 for fp32."""
    peak_rows: int = 1
    """2 if two contraction rows are worked on at once (fp8 double_row), 4 for packed dtypes."""
    note: str = ""
    """A pattern hints.py looks for."""


def cost(instruction: Instruction, machine: Machine) -> Cost:
    """The cost of an instruction; depends on its operand signature only."""
    name = instruction.spec.name
    if instruction.engine == "control":
        return _control(name, machine)
    if name in collectives.NAMES:
        duration = collectives.duration_ns(instruction, machine)
        return Cost(PLAIN, QUEUES.index("sync"), machine.static_issue_ns, duration)
    if name in ("core_barrier", "sendrecv"):
        return _meeting(instruction, machine)
    if instruction.engine == "dma":
        return _dma(instruction, machine)
    if name in ("nc_matmul", "nc_matmul_mx"):
        return _matmul(instruction, machine)
    if instruction.engine == "tensor":
        return _transpose(instruction, machine)
    if instruction.engine == "scalar":
        return _scalar(instruction, machine)
    if instruction.engine == "gpsimd":
        return _gpsimd(instruction, machine)
    if instruction.engine == "vector":
        return _vector(instruction, machine)
    register = machine.register_ns if name != "register_move" else machine.branch_ns
    return Cost(PLAIN, QUEUES.index("sync"), register, register)


def _control(name: str, machine: Machine) -> Cost:
    """A loop's end is a branch in every engine's queue; its begin costs nothing."""
    interval = machine.branch_ns if name in LOOPS.values() else 0.0
    return Cost(BRANCH, QUEUES.index("sync"), interval, interval)


def _meeting(instruction: Instruction, machine: Machine) -> Cost:
    if instruction.spec.name == "core_barrier":
        queue = instruction.engine if instruction.engine in QUEUES else "gpsimd"
        return Cost(MEET, QUEUES.index(queue), machine.barrier_ns, machine.barrier_ns)
    size = instruction["dst"].size * instruction["dst"].dtype.itemsize
    if instruction["dma_engine"].name == "gpsimd_dma":
        duration = machine.sendrecv_ns + size / machine.sendrecv_bytes_per_ns
        return Cost(MEET, QUEUES.index("gpsimd"), duration, duration)
    moved = dma.transfer(instruction["dst"], instruction["src"], machine)
    duration = machine.dma_start_ns + moved.busy_ns + machine.dma_done_ns + machine.barrier_ns
    return Cost(MEET, QUEUES.index("gpsimd"), machine.swdge_issue_ns, duration, transfer=moved)


def _dma(instruction: Instruction, machine: Machine) -> Cost:
    if instruction.spec.name == "device_print":
        return Cost(PLAIN, QUEUES.index("sync"), 0.0, 0.0)
    moved, queue = dma.of_instruction(instruction, machine)
    return Cost(
        DMA,
        QUEUES.index(queue),
        moved.issue_ns,
        moved.issue_ns + moved.start_ns + moved.busy_ns + machine.dma_done_ns,
        transfer=moved,
        note=moved.note,
    )


# --- Tensor engine ----------------------------------------------------------------------------


def _matmul(instruction: Instruction, machine: Machine) -> Cost:
    stationary: NkiTensor = instruction["stationary"]
    moving: NkiTensor = instruction["moving"]
    mode = instruction.get("perf_mode")
    double = mode is not None and mode.name != "none"
    rows = 2 if double else 1
    columns = moving.free_size // rows
    outputs = stationary.free_size // rows
    at_once = rows * (4 if stationary.dtype.packed else 1)
    contraction = stationary.shape[0] * at_once
    fp32 = stationary.dtype in FP32 and stationary.dtype != "tfloat32"
    transposes = bool(instruction.get("is_transpose"))
    passes = _passes(machine, fp32, transposes)
    macs = 0 if transposes else contraction * outputs * columns
    load = load_cycles(machine, outputs, fp32, transposes)
    price = _tensor_cost(machine, columns, passes, load, fp32, macs)
    return price._replace(peak_rows=at_once)


def _transpose(instruction: Instruction, machine: Machine) -> Cost:
    """A transpose: the data is the stationary operand, an identity moves."""
    data: NkiTensor = instruction["data"]
    fp32 = data.dtype.itemsize == 4
    passes = _passes(machine, fp32, True)
    load = load_cycles(machine, data.free_size, fp32, True)
    return _tensor_cost(machine, data.shape[0], passes, load, fp32, 0)


def _passes(machine: Machine, fp32: bool, transposes: bool) -> float:
    if not fp32:
        return 1.0
    return machine.tensor_fp32_transpose_passes if transposes else machine.tensor_fp32_passes


def _tensor_cost(
    machine: Machine, columns: int, passes: float, load: float, fp32: bool, macs: int
) -> Cost:
    """Streaming of the moving columns; weights load behind the instruction before."""
    streamed = passes * max(columns, machine.tensor_min_cycles)
    fast = 1.0 if fp32 else machine.tensor_fast_load_factor
    interval = max(streamed, load / fast)

    def times(clock: float) -> tuple[float, float, float]:
        fixed = machine.tensor_fixed_ns + machine.tensor_fixed_cycles / clock
        lead = machine.tensor_load_fixed_ns + load / clock
        return interval / clock, passes * columns / clock + fixed, lead

    warm, latency, lead = times(machine.tensor_clock_ghz)
    cold, cold_latency, _ = times(machine.tensor_cold_clock_ghz)
    return Cost(
        TENSOR, QUEUES.index("tensor"), warm, latency, cold, cold_latency, lead,
        macs=macs, peak_passes=passes, note="fp32-matmul" if fp32 and macs else "",
    )  # fmt: skip


def load_cycles(machine: Machine, outputs: int, fp32: bool, transposes: bool) -> float:
    """Tensor cycles to load the weights of a call, `outputs` columns, one column at a time.

    A product of fp32 loads the high and the low half of the mantissas one after the other.
    """
    if not fp32:
        full = machine.tensor_load_cycles
    elif transposes:
        full = machine.tensor_load_cycles_transpose
    else:
        full = 2 * machine.tensor_load_cycles_fp32
    return full * outputs / 128


# --- Vector, Scalar, GpSimd -------------------------------------------------------------------


def tensors_of(instruction: Instruction) -> list[NkiTensor]:
    """All tensor operands."""
    return [tensor for _, tensor in (*instruction.reads(), *instruction.writes())]


def _in_psum(instruction: Instruction) -> bool:
    return any(t.buffer is MemoryRegion.psum for t in tensors_of(instruction))


def _elements(instruction: Instruction) -> int:
    """N: the most elements per partition of any operand."""
    return max((t.free_size for t in tensors_of(instruction)), default=1)


def _strided(tensor: NkiTensor, machine: Machine) -> bool:
    """Whether the innermost free dimension steps over more than the documented 16 bytes."""
    for count, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.strides[1:]), strict=True):
        if count > 1:
            return abs(stride) * tensor.dtype.itemsize > machine.strided_bytes
    return False


def _contiguous(tensor: NkiTensor) -> bool:
    for count, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.strides[1:]), strict=True):
        if count > 1:
            return stride == 1
    return True


def _columns(instruction: Instruction) -> bool:
    """Whether a (P, 1) operand column is read beside the data."""
    sizes = [t.free_size for _, t in instruction.reads()]
    return len(sizes) > 1 and max(sizes) > 1 and min(sizes) == 1


_TWO_INPUTS = frozenset(
    {"tensor_tensor", "scalar_tensor_tensor", "select_reduce", "tensor_copy_predicated"}
)
_FULL_RATE_ONE = frozenset({"tensor_copy", "tensor_scalar", "memset"})
"""Instructions that the perf modes of one input speed up (nki_facts.md §2.12)."""


def vector_cycles(instruction: Instruction, machine: Machine) -> tuple[float, bool]:
    """Cycles in which the Vector engine streams, and whether it does so in a perf mode."""
    name = instruction.spec.name
    n = float(_elements(instruction))
    if name == "reciprocal":
        return machine.vector_reciprocal_cycles * n, False
    if name == "bn_aggr":
        return 13 * n / 3, False
    if name in ("exponential", "quantize_mx"):
        return n / 4, True
    if name == "tensor_tensor_scan":
        return 2 * n, False
    tensors = [t for t in tensors_of(instruction) if t.free_size > 1]
    if name == "tensor_reduce":
        fast = _all_short(tensors, machine) and _all_short([instruction["dst"]], machine)
        rate = machine.vector_rate_reduce_16bit if fast else 1.0
    elif name in _TWO_INPUTS:
        rate = _rate_two(instruction, tensors, machine)
    elif name in _FULL_RATE_ONE:
        rate = _rate_one(tensors, machine)
    else:
        rate = 1.0
    cycles = n / rate
    if any(_strided(t, machine) for t in tensors):
        cycles = max(cycles, n) if rate > 1 else cycles * machine.strided_slowdown
        rate = min(rate, 1.0)
    return cycles, rate > 1


def _all_short(tensors: list[NkiTensor], machine: Machine) -> bool:
    allowed = SIXTEEN_BIT | EIGHT_BIT if machine.vector_fast_8bit else SIXTEEN_BIT
    return all(t.dtype in allowed for t in tensors)


def _rate_one(tensors: list[NkiTensor], machine: Machine) -> float:
    in_psum = sum(t.buffer is MemoryRegion.psum for t in tensors)
    contiguous = all(_contiguous(t) for t in tensors)
    short = _all_short(tensors, machine)
    if in_psum:
        return machine.vector_rate_psum_16bit if short and contiguous and in_psum == 1 else 1.0
    if not short:
        return machine.vector_rate_sbuf if contiguous else 1.0
    return machine.vector_rate_sbuf_16bit if contiguous else machine.vector_rate_sbuf_16bit_strided


def _rate_two(instruction: Instruction, tensors: list[NkiTensor], machine: Machine) -> float:
    inputs = [t for _, t in instruction.reads() if t.free_size > 1]
    if any(t.buffer is MemoryRegion.psum for t in inputs) or len(inputs) < 2:
        return 1.0  # one operand comes through PSUM's own port
    if _all_short(tensors, machine):
        return machine.vector_rate_two_inputs_16bit
    return machine.vector_rate_two_inputs


def _vector(instruction: Instruction, machine: Machine) -> Cost:
    clock = machine.vector_clock_ghz
    cycles, fast = vector_cycles(instruction, machine)
    if any(t.dynamic is not None for t in tensors_of(instruction)):
        cycles = max(cycles, machine.dynamic_address_cycles)
    column = machine.vector_column_ns if _columns(instruction) else 0.0
    if instruction.get("reduce_res") is not None:
        column += 64 / clock
    interval = (cycles + machine.vector_interval_cycles) / clock + column
    latency = cycles / clock + machine.vector_fixed_ns + column
    kind = PORT if fast or machine.vector_port_shared else PLAIN
    if _in_psum(instruction):
        kind = BANK
    note = "copy" if instruction.spec.name == "tensor_copy" else ""
    return Cost(kind, QUEUES.index("vector"), interval, latency, note=note)


def _scalar(instruction: Instruction, machine: Machine) -> Cost:
    clock = machine.scalar_clock_ghz
    name = instruction.spec.name
    tensors = [t for t in tensors_of(instruction) if t.free_size > 1]
    rate = 1.0
    if name in ("tensor_copy", "tensor_scalar") and all(t.dtype.itemsize <= 2 for t in tensors):
        rate = machine.scalar_rate_16bit
    stream = _elements(instruction) / rate / clock
    slow = machine.strided_slowdown if any(_strided(t, machine) for t in tensors) else 1.0
    operator = instruction.get("op")
    function = "copy" if operator is None else getattr(operator, "name", "copy")
    if name == "tensor_copy" or (function == "copy" and not _columns(instruction)):
        fixed, between = machine.scalar_copy_fixed_ns, machine.scalar_copy_interval_ns
    elif any(t.buffer is MemoryRegion.psum for _, t in instruction.reads()):
        fixed, between = machine.scalar_psum_fixed_ns, machine.scalar_psum_interval_ns
    else:
        fixed, between = machine.scalar_sbuf_fixed_ns, machine.scalar_sbuf_interval_ns
    if instruction.get("reduce_res") is not None:
        fixed += machine.scalar_reduce_cycles / clock
        between += machine.scalar_reduce_cycles / clock
    if any(t.dynamic is not None for t in tensors_of(instruction)):
        stream = max(stream, machine.dynamic_address_cycles / clock)
    table = TABLES.get(function, FREE_TABLE) if name != "tensor_copy" else FREE_TABLE
    queue = QUEUES.index("scalar")
    kind = BANK if _in_psum(instruction) else TABLE
    return Cost(kind, queue, stream * slow + between, stream * slow + fixed, table=table)


def _gpsimd(instruction: Instruction, machine: Machine) -> Cost:
    cycles = machine.gpsimd_fixed_cycles + _gpsimd_cycles(instruction, machine)
    time = cycles / machine.gpsimd_clock_ghz
    return Cost(PORT, QUEUES.index("gpsimd"), time, time)


def _gpsimd_cycles(instruction: Instruction, machine: Machine) -> float:
    name = instruction.spec.name
    n = float(_elements(instruction))
    if name == "local_gather":
        per = instruction["num_elem_per_idx"] or 1
        valid = instruction["num_valid_indices"] or instruction["index"].free_size * 16
        size = instruction["dst"].dtype.itemsize
        return float(valid * per / ((28 + 4 * per) / (4 * per) / min(4 / size, per)))
    if name == "nc_n_gather":
        return float(instruction["dst"].free_size * math.ceil(n / 512))
    if name == "topk":
        return 4.0 * float(instruction["n"]) + n
    if name == "tensor_partition_reduce":
        return 110_000 * machine.gpsimd_clock_ghz + n  # nki_facts.md §2.6: +110 us seen [U]
    return 2 * n if name in _TWO_INPUTS else n
