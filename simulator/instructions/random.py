"""Random numbers: rng, rand2, dropout and the engines' seeds. Source: nki_facts.md §2.6.

Each engine of a core has a generator with one stream for each of the 128 lanes. The bits are
not the chip's, whose generators (XORWOW among them) are not documented to the bit: here a lane's
n-th number is a hash (the finaliser of SplitMix64) of its seed words and n. What is documented
holds: a seed decides the sequence, rand_get_state and rand_set_state save and restore it, and
the state lives on from one instruction, and from one call of a kernel, to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.enums import engine
from simulator.instructions.datapath import reader
from simulator.instructions.limits import (
    Check,
    all_of,
    elements,
    is_number,
    refuse_immediate,
    same_dtype,
)
from simulator.instructions.table import SBUF, Array, Arrays, Operand, Run, Slots, instruction
from simulator.instructions.vector import FLOATS
from simulator.numerics import store
from simulator.targets import PARTITIONS
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["dropout", "rand2", "rand_get_state", "rand_set_state", "rng", "set_rng_seed"]

WORDS = {"gpsimd": 6, "vector": 24}
"""32-bit words of an engine's state in each lane."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST, _HALF = np.uint64(31), np.uint64(32)


def _hash(x: Array, memory: Array) -> Array:
    """SplitMix64's finaliser, on uint64, in place; `memory` is as large as x."""
    for bits, factor in _MIX:
        np.right_shift(x, bits, out=memory)
        np.bitwise_xor(x, memory, out=x)
        np.multiply(x, factor, out=x)
    np.right_shift(x, _LAST, out=memory)
    return np.bitwise_xor(x, memory, out=x)


class Generator:
    """One engine's generator. The last word of a lane's state counts what was drawn."""

    def __init__(self, words: int, seed: int) -> None:
        """Seed all lanes.

        Args:
            words: 32-bit words of state in each lane.
            seed: any integer of at most 32 bits.
        """
        self.state = np.zeros((PARTITIONS, words), np.uint32)
        self._memory = np.empty((2, 0), np.uint64)
        self.seed(seed)

    def _room(self, size: int) -> Array:
        """Two arrays of `size` numbers, the same memory at each call."""
        if self._memory.shape[1] < size:
            self._memory = np.empty((2, size), np.uint64)
        return self._memory[:, :size]

    def seed(self, seed: int) -> None:
        """Begin a sequence in all lanes, another one in each."""
        mixed, memory = self._room(self.state.size)
        mixed[...] = np.arange(self.state.size, dtype=np.uint64) * _STEP
        mixed += np.uint64(seed & 0xFFFFFFFF) << _HALF
        self.state[...] = (_hash(mixed, memory) >> _HALF).reshape(self.state.shape)
        self.state[:, -1] = 0

    def _keys(self, state: Array) -> Array:
        """One number for each lane, made of its seed words."""
        keys, memory = np.zeros((2, len(state)), np.uint64)
        for word in state[:, :-1].T:
            keys *= _STEP
            keys += word
            _hash(keys, memory)
        return keys

    def draw(self, lanes: slice, count: int) -> Array:
        """The next `count` numbers of some lanes, uint32[lanes, count]."""
        state = self.state[lanes]
        first = state[:, -1].astype(np.uint64) * _STEP + self._keys(state)
        bits, memory = self._room(len(state) * count).reshape(2, len(state), count)
        steps = np.arange(1, count + 1, dtype=np.uint64) * _STEP
        np.add(first[:, None], steps, out=bits)
        state[:, -1] += np.uint32(count)
        np.right_shift(_hash(bits, memory), _HALF, out=bits)
        return bits.astype(np.uint32)


def generator(instruction: Instruction, slots: Slots) -> Generator:
    """The generator of an instruction's engine and core."""
    name = instruction.engine
    seed = 2 * list(WORDS).index(name) + instruction.core
    made: Generator = slots.state(f"random {name}", lambda: Generator(WORDS[name], seed))
    return made


def _lanes(tensor: NkiTensor) -> slice:
    return slice(tensor.start_partition, tensor.start_partition + tensor.shape[0])


def _uniform(bits: Array) -> Array:
    """Random bits as fp32 numbers in [0, 1), of which fp32 holds 24 bits exactly."""
    numbers = (bits >> np.uint32(8)).astype(np.float32)
    numbers *= np.float32(2**-24)
    return numbers


def _draws(instruction: Instruction, slots: Slots) -> Callable[[], Array]:
    """A function that gives the next 32 bits for every element of dst."""
    dst = instruction["dst"]
    source, lanes, size, shape = (
        generator(instruction, slots),
        _lanes(dst),
        dst.free_size,
        dst.shape,
    )
    return lambda: source.draw(lanes, size).reshape(shape)


# --- rng, rand2, dropout ------------------------------------------------------------------


def _rng(instruction: Instruction, slots: Slots) -> Run:
    to, draw = slots(instruction["dst"]), _draws(instruction, slots)

    def run(views: Arrays) -> None:
        view = views[to]
        view[...] = draw().astype(view.dtype)  # keeps the least significant bits

    return run


_INTEGERS = frozenset(
    {dtypes.int8, dtypes.int16, dtypes.int32, dtypes.uint8, dtypes.uint16, dtypes.uint32}
)


@instruction(
    operands={"dst": Operand("write", dtypes=_INTEGERS)},
    engines=("vector", "gpsimd"),
    lower=_rng,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(),
    serial=True,
)
def rng(dst: Any, engine: engine = engine.vector, name: str | None = None) -> tuple[Any, ...]:
    """32 random bits for each element, of which dst's dtype takes the least significant.

    Args:
        dst: integer tile, in SBUF for GpSimd.
        engine: vector or gpsimd; each has its own generator.
        name: for debugging.
    """
    return dst, engine, name


def _rand2(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, write, draw = slots(dst), store(dst.dtype), _draws(instruction, slots)
    lowest = reader(instruction["min"], dst.shape, slots)
    highest = reader(instruction["max"], dst.shape, slots)

    def run(views: Arrays) -> None:
        low, high = lowest(views), highest(views)
        write(views[to], np.minimum(_uniform(draw()) * (high - low) + low, high))

    return run


def _check_rand2(program: Program, instruction: Instruction) -> None:
    low, high = instruction["min"], instruction["max"]
    if is_number(low) and is_number(high) and not low < high:
        refuse_immediate(
            program, instruction, "max", f"above min={low!r}", "Give a range that is not empty"
        )


_NUMBER = Operand("read", "column", number=True, float32=True)


@instruction(
    operands={
        "dst": Operand("write", dtypes=(FLOATS - {dtypes.float8_e4m3fn}) | _INTEGERS),
        "min": _NUMBER,
        "max": _NUMBER,
    },
    engines=("vector",),
    lower=_rand2,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_rand2),
    serial=True,
    generation=4,
)
def rand2(dst: Any, min: Any, max: Any, name: str | None = None) -> tuple[Any, ...]:
    """Uniform random numbers in [min, max], made in fp32 and cast. trn3 only.

    Args:
        dst: tile.
        min: number or (P, 1) fp32 column.
        max: number or (P, 1) fp32 column, above min.
        name: for debugging.
    """
    return dst, min, max, name


def _dropout(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, frm, shape = slots(dst), slots(instruction["data"]), dst.shape
    draw, probability = _draws(instruction, slots), reader(instruction["prob"], shape, slots)

    def run(views: Arrays) -> None:
        view = views[to]
        dropped = _uniform(draw()) < probability(views)
        view[...] = views[frm].reshape(shape)
        np.copyto(view, view.dtype.type(0), where=dropped)

    return run


def _check_dropout(program: Program, instruction: Instruction) -> None:
    prob, data = instruction["prob"], instruction["data"]
    if is_number(prob) and not 0 <= prob <= 1:
        refuse_immediate(
            program,
            instruction,
            "prob",
            "0 to 1",
            "Give the probability that an element is dropped",
        )
    if isinstance(prob, NkiTensor):
        allowed = FLOATS if data.dtype.is_float else {dtypes.float32}
        if prob.dtype not in allowed:
            program.report(
                instruction,
                "dtype",
                f"prob of {data.dtype} data cannot be {prob.dtype}",
                "Give float32, or any floating-point dtype for floating-point data",
                operand="prob",
                limit=", ".join(sorted(allowed)),
                value=str(prob.dtype),
            )


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "prob": Operand("read", "column", number=True),
    },
    engines=("vector",),
    lower=_dropout,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(same_dtype("data", "dst"), _check_dropout),
    serial=True,
)
def dropout(dst: Any, data: Any, prob: Any, name: str | None = None) -> tuple[Any, ...]:
    """dst = data, with each element replaced by 0 with probability prob. Does not rescale.

    Args:
        dst: (P, N) tile of data's dtype.
        data: (P, N) tile.
        prob: number from 0 to 1, or a (P, 1) column: fp32, or any float for float data.
        name: for debugging.
    """
    return dst, data, prob, name


# --- seeds and states ---------------------------------------------------------------------


def _set_seed(instruction: Instruction, slots: Slots) -> Run:
    frm, source = slots(instruction["src_seeds"]), generator(instruction, slots)
    return lambda views: source.seed(int(views[frm].reshape(1).view(np.uint32)[0]))


def _check_seed(program: Program, instruction: Instruction) -> None:
    shape = instruction["src_seeds"].shape
    if set(shape) != {1}:
        program.report(
            instruction,
            "shape",
            "src_seeds must be one element",
            "Slice it to [1, 1]",
            operand="src_seeds",
            limit="(1, 1)",
            value=str(shape),
        )


@instruction(
    operands={
        "src_seeds": Operand(
            "read", dtypes=frozenset({dtypes.int32, dtypes.uint32, dtypes.float32})
        )
    },
    engines=("vector",),
    lower=_set_seed,
    cost="64",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_seed),
    serial=True,
)
def set_rng_seed(src_seeds: Any, name: str | None = None) -> tuple[Any, ...]:
    """Seed the Vector engine's generator: the same seed gives the same sequence.

    Args:
        src_seeds: (1, 1) tile of a 32-bit dtype, whose bits are the seed.
        name: for debugging.
    """
    return src_seeds, name


def _state_words(name: str) -> Check:
    """An operand that holds an engine's state; Vector's can be had on trn3 only."""

    def check(program: Program, instruction: Instruction) -> None:
        if instruction.engine not in WORDS:
            return
        elements(name, WORDS[instruction.engine])(program, instruction)
        if instruction.engine == "vector" and program.target.generation < 4:
            program.report(
                instruction,
                "gen4-only",
                "the Vector engine's state is only accessible on NeuronCore-v4 or newer",
                "Use the GpSimd engine, or nisa.set_rng_seed",
                operand="engine",
                limit="trn3",
                value=program.target.name,
            )

    return check


def _set_state(instruction: Instruction, slots: Slots) -> Run:
    src = instruction["src_seeds"]
    frm, source, lanes = slots(src), generator(instruction, slots), _lanes(src)

    def run(views: Arrays) -> None:
        source.state[lanes] = views[frm].reshape(src.shape[0], -1)

    return run


_UINT32 = frozenset({dtypes.uint32})


@instruction(
    operands={"src_seeds": Operand("read", buffers=SBUF, dtypes=_UINT32)},
    engines=("gpsimd", "vector"),
    lower=_set_state,
    cost="64",
    source="nki_facts.md §2.6",
    extra_check=all_of(_state_words("src_seeds")),
    serial=True,
)
def rand_set_state(
    src_seeds: Any, engine: engine = engine.gpsimd, name: str | None = None
) -> tuple[Any, ...]:
    """Set an engine's generator, lane by lane.

    Args:
        src_seeds: (P, 6) uint32 tile in SBUF for GpSimd, (P, 24) for Vector.
        engine: gpsimd, or on trn3 vector.
        name: for debugging.
    """
    return src_seeds, engine, name


def _get_state(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, source, lanes = slots(dst), generator(instruction, slots), _lanes(dst)

    def run(views: Arrays) -> None:
        views[to][...] = source.state[lanes].reshape(dst.shape)

    return run


@instruction(
    operands={"dst": Operand("write", dtypes=_UINT32)},
    engines=("gpsimd", "vector"),
    lower=_get_state,
    cost="64",
    source="nki_facts.md §2.6",
    extra_check=all_of(_state_words("dst")),
    serial=True,
)
def rand_get_state(
    dst: Any, engine: engine = engine.gpsimd, name: str | None = None
) -> tuple[Any, ...]:
    """Store an engine's generator state, lane by lane; rand_set_state restores it.

    Args:
        dst: (P, 6) uint32 tile in SBUF for GpSimd, (P, 24) for Vector, which reaches PSUM too.
        engine: gpsimd, or on trn3 vector.
        name: for debugging.
    """
    return dst, engine, name
