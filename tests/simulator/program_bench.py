"""Random kernels, and two ways to carry them out: the simulator, and naive NumPy.

A `Maker` makes random choices from a seed and calls a machine. `NkiMachine` makes nki calls of
them, `NumpyMachine` does them at once on plain arrays, one after the other, with a leading axis
for the cores. Choices depend on shapes and dtypes only, so both see the same kernel.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import nki.isa as nisa
import nki.language as nl
import numpy as np

Array = np.ndarray[Any, Any]
FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3")
INTEGERS = ("int8", "uint8", "int16")
PHYSICAL: dict[str, Any] = {
    "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16,
    "float8_e4m3": ml_dtypes.float8_e4m3, "int8": np.int8, "uint8": np.uint8, "int16": np.int16,
    "int32": np.int32,
}  # fmt: skip
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum,
    "minimum": np.minimum, "greater": lambda x, y: (x > y).astype(np.float32),
    "less_equal": lambda x, y: (x <= y).astype(np.float32),
}  # fmt: skip
UNARY: dict[str, Callable[[Array], Array]] = {
    "copy": lambda x: x, "relu": lambda x: np.maximum(x, np.float32(0)), "square": np.square,
    "abs": np.abs,
}  # fmt: skip


@dataclass(eq=False)
class Tile:
    """A tile or tensor of the kernel: what the machine calls it, and its form."""

    handle: Any
    rows: int
    columns: int
    dtype: str


def rounded(values: Array, dtype: Any) -> Array:
    """fp32 values as another dtype: to nearest even; integers saturate, NaN is 0."""
    if np.dtype(dtype).kind not in "iu":
        return values.astype(dtype)
    info = np.iinfo(dtype)
    whole = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0, posinf=1e9, neginf=-1e9)
    return np.clip(whole, info.min, info.max).astype(dtype)


class NumpyMachine:
    """Each operation on arrays (cores, rows, columns), in order."""

    def __init__(self, arguments: list[Array], cores: int, precise: bool = True) -> None:
        """Not precise: floats are fp32 whatever their dtype, until they are results."""
        self.cores = cores
        self.precise = precise
        self.arguments = [
            np.repeat(x[None], cores, 0).astype(self.held(x.dtype)) for x in arguments
        ]
        self.results: list[Array] = []

    def held(self, dtype: Any) -> Any:
        """The dtype that an array of `dtype` is held in."""
        integer = np.dtype(dtype).kind in "iu"
        return dtype if self.precise or integer else np.float32

    def argument(self, position: int) -> Array:
        return self.arguments[position]

    def new(self, rows: int, columns: int, dtype: str, memory: str) -> Array:
        return np.zeros((self.cores, rows, columns), self.held(PHYSICAL[dtype]))

    def view(self, tensor: Array, rows: slice, columns: slice) -> Array:
        return tensor[:, rows, columns]

    def folded(self, view: Array, a: int, b: int) -> Array:
        """(rows, a b) as (rows, b, a)."""
        return view.reshape(*view.shape[:2], a, b).swapaxes(2, 3)

    def spread(self, view: Array, count: int) -> Array:
        return np.broadcast_to(view, (*view.shape[:2], count))

    def at(self, tensor: Array, index: int, width: int) -> Array:
        return tensor[:, :, index : index + width]

    def rows_at(self, tensor: Array, index: int, count: int) -> Array:
        return tensor[:, index : index + count]

    def write(self, dst: Array, values: Array) -> None:
        dst[...] = rounded(values, dst.dtype).reshape(dst.shape)

    def f32(self, view: Any) -> Any:
        return view.astype(np.float32) if isinstance(view, np.ndarray) else np.float32(view)

    def copy(self, dst: Array, src: Array, by: str) -> None:
        if dst.dtype == src.dtype:
            dst[...] = src.reshape(dst.shape).copy()
        else:
            self.write(dst, self.f32(src))

    def fill(self, dst: Array, value: int) -> None:
        for core in range(self.cores):
            dst[core] = value + core

    def binary(self, dst: Array, x: Array, y: Array, op: str) -> None:
        self.write(dst, BINARY[op](self.f32(x), self.f32(y)))

    def scalar(self, dst: Array, x: Array, steps: list[tuple[str, Any, bool]]) -> None:
        value = self.f32(x)
        for op, operand, reverse in steps:
            other = self.f32(operand)
            value = BINARY[op](other, value) if reverse else BINARY[op](value, other)
        self.write(dst, value)

    def unary(self, dst: Array, x: Array, op: str, scale: float, bias: Any) -> None:
        value = self.f32(x) * np.float32(scale)
        self.write(dst, UNARY[op](value if bias is None else value + bias))

    def reduce(self, dst: Array, x: Array, op: str, negate: bool) -> None:
        value = {"maximum": np.max, "minimum": np.min, "add": np.sum}[op](
            self.f32(x), axis=2, keepdims=True
        )
        self.write(dst, -value if negate else value)

    def multiply(self, dst: Array, pairs: list[tuple[Array, Array]]) -> None:
        total = np.zeros(dst.shape, np.float32)
        for stationary, moving in pairs:
            total += np.einsum("ckm,ckn->cmn", self.f32(stationary), self.f32(moving))
        self.write(dst, total)

    def exchange(self, dst: Array, src: Array) -> None:
        dst[...] = src[::-1].copy()

    def meet(self, dst: Array, src: Array) -> None:
        self.exchange(dst, src)

    def loop(self, count: int, body: Callable[[Any], None], spelling: str) -> None:
        for index in range(count):
            body(index)

    def result(self, tensor: Array) -> None:
        self.results.append(tensor.copy())


class NkiMachine:
    """Each operation as a call of nki."""

    def __init__(self, arguments: list[Any]) -> None:
        self.arguments = arguments
        self.me = nl.program_id(0)
        self.cores = nl.num_programs()
        self.results: list[Any] = []

    def argument(self, position: int) -> Any:
        return self.arguments[position]

    def new(self, rows: int, columns: int, dtype: str, memory: str) -> Any:
        buffer = getattr(nl, memory)
        return nl.ndarray((rows, columns), dtype=getattr(nl, dtype), buffer=buffer)

    def view(self, tensor: Any, rows: slice, columns: slice) -> Any:
        return tensor[rows, columns]

    def folded(self, view: Any, a: int, b: int) -> Any:
        return view.reshape_dim(1, (a, b)).permute((0, 2, 1))

    def spread(self, view: Any, count: int) -> Any:
        return view.broadcast(1, count)

    def at(self, tensor: Any, index: Any, width: int) -> Any:
        return tensor[:, nl.ds(index, width)]

    def rows_at(self, tensor: Any, index: Any, count: int) -> Any:
        return tensor[nl.ds(index, count), :]

    def copy(self, dst: Any, src: Any, by: str) -> None:
        if by == "dma":
            nisa.dma_copy(dst=dst, src=src)
        else:
            nisa.tensor_copy(dst=dst, src=src, engine=getattr(nisa.engine, by))

    def fill(self, dst: Any, value: int) -> None:
        number = value + self.me
        nisa.memset(dst=dst, value=float(number) if dst.dtype in FLOATS else number)

    def binary(self, dst: Any, x: Any, y: Any, op: str) -> None:
        nisa.tensor_tensor(dst=dst, data1=x, data2=y, op=getattr(nl, op))

    def scalar(self, dst: Any, x: Any, steps: list[tuple[str, Any, bool]]) -> None:
        more: dict[str, Any] = {}
        if len(steps) == 2:
            op, operand, reverse = steps[1]
            more = {"op1": getattr(nl, op), "operand1": operand, "reverse1": reverse}
        op, operand, reverse = steps[0]
        nisa.tensor_scalar(
            dst=dst, data=x, op0=getattr(nl, op), operand0=operand, reverse0=reverse, **more
        )

    def unary(self, dst: Any, x: Any, op: str, scale: float, bias: Any) -> None:
        nisa.activation(dst=dst, op=getattr(nl, op), data=x, scale=scale, bias=bias)

    def reduce(self, dst: Any, x: Any, op: str, negate: bool) -> None:
        axis = tuple(range(1, len(x.shape)))
        nisa.tensor_reduce(dst=dst, op=getattr(nl, op), data=x, axis=axis, negate=negate)

    def multiply(self, dst: Any, pairs: list[tuple[Any, Any]]) -> None:
        bank = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.psum)
        for position, (stationary, moving) in enumerate(pairs):
            nisa.nc_matmul(dst=bank, stationary=stationary, moving=moving, accumulate=position > 0)
        nisa.tensor_copy(dst=dst, src=bank)

    def exchange(self, dst: Any, src: Any) -> None:
        other = 1 - self.me
        nisa.sendrecv(src=src, dst=dst, send_to_rank=other, recv_from_rank=other, pipe_id=0)

    def meet(self, dst: Any, src: Any) -> None:
        """The same exchange through shared HBM."""
        rows, columns = src.shape
        between = nl.ndarray((2, rows, columns), dtype=src.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=between[self.me], src=src)
        nisa.core_barrier(between, (0, 1))
        nisa.dma_copy(dst=dst, src=between[1 - self.me])
        nisa.core_barrier(between, (0, 1))

    def loop(self, count: int, body: Callable[[Any], None], spelling: str) -> None:
        if spelling == "fori":
            nl.fori_loop(0, count, body)
            return
        bound = count
        if spelling == "register":
            bound = nisa.register_alloc(count)  # type: ignore[assignment]
        for index in nl.dynamic_range(bound):
            body(index)

    def result(self, tensor: Any) -> None:
        rows, columns = tensor.shape
        out = nl.ndarray((self.cores, rows, columns), dtype=tensor.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out[self.me], src=tensor)
        self.results.append(out)


class Maker:
    """A random kernel, made again by the same seed."""

    def __init__(self, seed: int, machine: Any, shapes: list[tuple[int, int, str]]) -> None:
        self.random = random.Random(seed)
        self.machine = machine
        self.arguments = [
            Tile(machine.argument(i), rows, columns, dtype)
            for i, (rows, columns, dtype) in enumerate(shapes)
        ]
        self.tiles: list[Tile] = []
        self.depth = 0
        self.index: Any = None
        self.limit = 0

    # --- choices ----------------------------------------------------------------------------

    def pick(self, *values: Any) -> Any:
        return self.random.choice(values)

    def tile(self, **wanted: Any) -> Tile | None:
        """A random tile, most often a recent one."""
        good = [t for t in self.tiles if all(getattr(t, k) == v for k, v in wanted.items())]
        if not good:
            return None
        return good[-1 - min(int(self.random.expovariate(0.4)), len(good) - 1)]

    def rows_of(self, tile: Tile, count: int, anywhere: bool) -> slice:
        """`count` rows where an engine (or a DMA: anywhere) may begin."""
        starts = range(tile.rows) if anywhere else (0, 32, 64, 96) if count <= 32 else (0, 64)
        start = self.random.choice([s for s in starts if s + count <= tile.rows])
        return slice(start, start + count)

    def columns_of(self, tile: Tile, count: int) -> slice:
        steps = [s for s in (1, 1, 2, 3) if (count - 1) * s + 1 <= tile.columns]
        step = self.random.choice(steps)
        reach = (count - 1) * step + 1
        start = self.random.randint(0, tile.columns - reach)
        return slice(start, start + reach, step)

    def view(self, tile: Tile, rows: int, columns: int, anywhere: bool = False) -> Any:
        return self.machine.view(
            tile.handle, self.rows_of(tile, rows, anywhere), self.columns_of(tile, columns)
        )

    def common(self, *tiles: Tile) -> tuple[int, int]:
        """A number of rows and columns that all tiles have."""
        rows, columns = min(t.rows for t in tiles), min(t.columns for t in tiles)
        count = self.random.choice([n for n in (1, 5, 31, 32, 33, 64, 100, 128) if n <= rows])
        return self.pick(rows, count), self.pick(columns, self.random.randint(1, columns))

    # --- operations -------------------------------------------------------------------------

    def fresh(self, rows: int, columns: int, dtype: str, fill: bool = True) -> Tile:
        tile = Tile(self.machine.new(rows, columns, dtype, "sbuf"), rows, columns, dtype)
        if fill:
            self.machine.fill(tile.handle, self.random.randint(0, 5))
        self.tiles.append(tile)
        return tile

    def load(self) -> None:
        """A new tile by one or two DMAs, often with a cast."""
        source = self.random.choice(self.arguments)
        rows = min(source.rows, self.pick(1, 32, 64, 100, 128))
        columns = self.random.randint(1, source.columns)
        tile = self.fresh(rows, columns, self.pick(source.dtype, *FLOATS), fill=False)
        parts = [slice(0, columns)]
        if columns > 1 and self.pick(True, False):
            middle = self.random.randint(1, columns - 1)
            parts = [slice(0, middle), slice(middle, columns)]
        for part in parts:
            view = self.machine.view(tile.handle, slice(0, rows), part)
            src = self.view(source, rows, part.stop - part.start, anywhere=True)
            self.machine.copy(view, src, "dma")

    def duplicate(self) -> None:
        """A whole new tile that is a copy: what a replay may leave out."""
        source = self.tile()
        if source is None:
            return
        same = self.pick(True, True, False)
        dtype = source.dtype if same else self.pick(*FLOATS, *INTEGERS)
        tile = self.fresh(source.rows, source.columns, dtype, fill=False)
        whole = slice(0, source.rows), slice(0, source.columns)
        self.machine.copy(
            self.machine.view(tile.handle, *whole), self.machine.view(source.handle, *whole),
            self.pick("dma", "vector", "scalar", "gpsimd"),
        )  # fmt: skip

    def copy(self) -> None:
        dst, src = self.tile(), self.tile()
        if dst is None or src is None or dst is src:
            return
        rows, columns = self.common(dst, src)
        by = self.pick("dma", "vector", "scalar", "gpsimd")
        target = self.view(dst, rows, columns, by == "dma")
        source = self.view(src, rows, columns, by == "dma")
        if columns % 2 == 0 and columns > 2 and self.pick(True, False):
            target = self.machine.folded(target, 2, columns // 2)
            source = self.machine.folded(source, 2, columns // 2)
        self.machine.copy(target, source, by)

    def fill(self) -> None:
        tile = self.tile()
        if tile is not None:
            self.machine.fill(self.view(tile, *self.common(tile)), self.random.randint(0, 5))

    def operands(self, count: int) -> tuple[Any, list[Any]] | None:
        """A destination view and `count` source views; in place only where they are the same."""
        tiles = [self.tile() for _ in range(count)]
        if any(tile is None for tile in tiles):
            return None
        sources = [tile for tile in tiles if tile is not None]
        into = self.pick("new", "other", "in place")
        if into == "new":
            rows, columns = self.common(*sources)
            views = [self.view(tile, rows, columns) for tile in sources]
            return self.fresh(rows, columns, self.pick(*FLOATS), fill=False).handle, views
        dst = sources[0] if into == "in place" else self.tile()
        assert dst is not None
        if into == "other" and dst in sources:
            return None
        rows, columns = self.common(dst, *sources)
        target = self.view(dst, rows, columns)
        views = [target if tile is dst else self.view(tile, rows, columns) for tile in sources]
        return target, views

    def binary(self) -> None:
        found = self.operands(2)
        if found is not None:
            self.machine.binary(found[0], *found[1], self.random.choice(sorted(BINARY)))

    def scalar(self) -> None:
        columns = [self.tile(dtype="float32", columns=1) for _ in range(self.pick(1, 2))]
        found = self.operands(1)
        if found is None:
            return
        rows = found[0].shape[-2]
        steps = []
        for column in columns:
            operand: Any = float(self.random.randint(-4, 4))
            if column is not None and column.rows >= rows and self.pick(True, False):
                operand = self.view(column, rows, 1)
            steps.append((self.random.choice(sorted(BINARY)), operand, self.pick(True, False)))
        self.machine.scalar(found[0], found[1][0], steps)

    def unary(self) -> None:
        column = self.tile(dtype="float32", columns=1)
        found = self.operands(1)
        if found is None:
            return
        rows = found[0].shape[-2]
        scale, bias = self.pick(1.0, 2.0, 0.5), None
        if column is not None and column.rows >= rows and self.pick(True, False):
            scale, bias = 1.0, self.view(column, rows, 1)
        self.machine.unary(found[0], found[1][0], self.random.choice(sorted(UNARY)), scale, bias)

    def reduce(self) -> None:
        """Maxima of anything; sums of 8-bit integers, which are exact in any order."""
        source = self.tile()
        if source is None:
            return
        rows, columns = self.common(source)
        ops = ["maximum", "minimum"] + ["add"] * (source.dtype in ("int8", "uint8"))
        column = self.fresh(rows, 1, "float32", fill=False)
        self.machine.reduce(
            column.handle, self.view(source, rows, columns), self.random.choice(ops),
            self.pick(True, False),
        )  # fmt: skip

    def spread(self) -> None:
        """A column over a row, by a stride of 0."""
        column, dst = self.tile(columns=1), self.tile()
        if column is None or dst is None or column is dst:
            return
        rows, columns = self.common(dst, Tile(None, column.rows, dst.columns, ""))
        source = self.machine.spread(self.view(column, rows, 1), columns)
        self.machine.copy(self.view(dst, rows, columns), source, "vector")

    def matmul(self) -> None:
        """Products of small integers: exact in any order."""
        depth, height, width = self.pick(1, 32, 128), self.pick(1, 16, 64), self.pick(1, 24, 50)
        source = self.tile(rows=depth)
        if source is None:
            return
        small = self.fresh(depth, source.columns, "int8", fill=False)
        whole = slice(0, depth), slice(0, source.columns)
        self.machine.scalar(
            self.machine.view(small.handle, *whole), self.machine.view(source.handle, *whole),
            [("minimum", 4.0, False), ("maximum", -4.0, False)],
        )  # fmt: skip
        dtype = self.pick("float32", "bfloat16")
        pairs = []
        for _ in range(self.pick(1, 2)):
            both = []
            for columns in (height, width):
                wide = self.fresh(depth, columns, dtype)
                part = min(columns, small.columns)
                self.machine.copy(
                    self.machine.view(wide.handle, slice(0, depth), slice(0, part)),
                    self.view(small, depth, part), "vector",
                )  # fmt: skip
                both.append(wide.handle)
            pairs.append((both[0], both[1]))
        self.machine.multiply(self.fresh(height, width, "float32", fill=False).handle, pairs)

    def spill(self) -> None:
        """A tile to HBM and back into a new one."""
        source = self.tile()
        if source is None:
            return
        scratch = self.machine.new(source.rows, source.columns, source.dtype, "private_hbm")
        self.machine.copy(scratch, source.handle, "dma")
        back = self.fresh(source.rows, source.columns, source.dtype, fill=False)
        self.machine.copy(back.handle, scratch, "dma")

    def forget(self) -> None:
        """Drop a tile: its memory may be used again."""
        if len(self.tiles) > 4 and not self.depth:
            self.tiles.remove(self.random.choice(self.tiles))

    def indexed(self) -> None:
        """In a loop: columns or rows whose place is the loop's variable."""
        tile, source = self.tile(), self.random.choice(self.arguments)
        if self.index is None or tile is None or tile.columns < self.limit:
            return
        width = self.random.randint(1, tile.columns - self.limit + 1)
        part = self.machine.at(tile.handle, self.index, width)
        kind = self.pick("in place", "out", "in", "rows")
        if kind == "in place":
            self.machine.scalar(part, part, [("add", 1.0, False)])
            return
        if kind == "rows":
            count = min(tile.rows, source.rows - self.limit + 1)
            rows = self.machine.rows_at(source.handle, self.index, count)
            columns = min(tile.columns, source.columns)
            self.machine.copy(
                self.machine.view(tile.handle, slice(0, count), slice(0, columns)),
                self.machine.view(rows, slice(0, count), slice(0, columns)), "dma",
            )  # fmt: skip
            return
        other = self.fresh(tile.rows, width, self.pick(*FLOATS))
        dst, src = (other.handle, part) if kind == "out" else (part, other.handle)
        self.machine.copy(dst, src, self.pick("dma", "vector"))

    def loop(self) -> None:
        """A dynamic loop; what its body makes is gone after it."""
        if self.depth == 2:
            return
        count, seed, length = self.pick(1, 2, 3), self.random.random(), self.random.randint(1, 6)
        spelling = self.pick("fori", "range", "register")
        outer = (self.random, self.tiles, self.index, self.limit)

        def body(index: Any) -> None:
            self.random, self.tiles = random.Random(seed), list(outer[1])
            self.index, self.limit = index, count
            self.depth += 1
            self.statements(length)
            self.depth -= 1
            self.random, self.tiles, self.index, self.limit = outer

        self.machine.loop(count, body, spelling)

    def exchange(self) -> None:
        source = self.tile()
        if self.machine.cores == 1 or source is None:
            return
        into = self.fresh(source.rows, source.columns, source.dtype, fill=False)
        how = self.machine.exchange if self.pick(True, False) else self.machine.meet
        how(into.handle, source.handle)

    def statements(self, count: int) -> None:
        kinds = [
            *[self.load] * 3, *[self.duplicate] * 3, *[self.copy] * 2, self.fill,
            *[self.binary] * 4, *[self.scalar] * 4, *[self.unary] * 2, *[self.reduce] * 2,
            self.spread, self.matmul, self.spill, *[self.forget] * 2, *[self.indexed] * 3,
            self.loop, self.exchange,
        ]  # fmt: skip
        for _ in range(count):
            self.random.choice(kinds)()

    def make(self, length: int, updates: bool) -> None:
        """The whole kernel: statements, results, and an argument that is written."""
        for _ in range(3):
            self.load()
        self.statements(length)
        if updates:
            target = self.arguments[0]
            source = self.tile()
            assert source is not None
            rows, columns = self.common(source, target)
            self.machine.copy(
                self.view(target, rows, columns, True), self.view(source, rows, columns, True),
                "dma",
            )  # fmt: skip
        for tile in self.random.sample(self.tiles, min(3, len(self.tiles))):
            self.machine.result(tile.handle)
