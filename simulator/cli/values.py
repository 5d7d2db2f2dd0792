"""The syntax of a kernel's arguments: `x=bf16[256,2048]:uniform`, `eps=1e-6`, `op=nl.exp`."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from simulator import dtypes
from simulator.cli.problems import BadInput
from simulator.dtypes import DTYPES, DType
from simulator.specialise import TensorSpec

SYNTAX = (
    "A tensor is DTYPE[SHAPE], DTYPE[SHAPE]:FILL or @FILE.npy; anything else is a Python literal, "
    "a name such as nl.exp or nl.bfloat16, or a constant or class of the kernel's file"
)
_SHORT = {
    "bf16": "bfloat16", "f16": "float16", "fp16": "float16", "f32": "float32", "fp32": "float32",
    "tf32": "tfloat32", "i8": "int8", "i16": "int16", "i32": "int32", "u8": "uint8",
    "u16": "uint16", "u32": "uint32", "bool": "bool_", "f8e4m3": "float8_e4m3",
    "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip
_MODULES = {"nl": "nki.language", "nisa": "nki.isa", "nki": "nki"}
_FILLED = re.compile(r"(?P<tensor>.*\])\s*:\s*(?P<fill>\w+)\s*(\((?P<numbers>.*)\))?\s*", re.S)
FILLS: dict[str, tuple[int, int]] = {
    "normal": (0, 2), "uniform": (0, 2), "zeros": (0, 0), "ones": (0, 0), "arange": (0, 0),
    "ints": (1, 2),
}  # fmt: skip
"""Ways to fill a tensor -> fewest and most numbers it takes."""


@dataclass(frozen=True)
class TensorInput:
    """A tensor argument: what it is, and where its data come from."""

    spec: TensorSpec
    fill: str = ""
    """A key of FILLS; empty for the dtype's default."""
    numbers: tuple[float, ...] = ()
    array: np.ndarray[Any, Any] | None = field(default=None, compare=False)
    source: str = ""

    def __str__(self) -> str:
        return f"{self.spec}{f' from {self.source}' if self.source else ''}"


def short_dtype(name: str) -> DType | None:
    """The dtype of a short or full name, None if there is none."""
    return DTYPES.get(_SHORT.get(name, name))


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, TensorInput]]:
    """Every TensorInput in a value, with its name: `x`, `x.0` in a tuple, `x.key`."""
    if isinstance(value, TensorInput):
        yield name, value
    elif type(value) is tuple:
        for i, item in enumerate(value):
            yield from tensors_in(f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(f"{name}.{key}", item)


def tensors_to(value: Any, convert: Callable[[TensorInput], Any]) -> Any:
    """`value` with every TensorInput in it converted, in the order of `tensors_in`."""
    if isinstance(value, TensorInput):
        return convert(value)
    if type(value) is tuple:
        return tuple(tensors_to(item, convert) for item in value)
    if isinstance(value, dict):
        return {key: tensors_to(item, convert) for key, item in value.items()}
    return value


class ArgumentParser:
    """Reads the values of arguments."""

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        """Names of `namespace` (the kernel's module) may be used in values."""
        self.namespace = namespace
        self.text = ""

    def assignment(self, text: str) -> tuple[str, Any]:
        """NAME=VALUE as a name and a value.

        Raises:
            BadInput: the syntax is wrong; the message says where.
        """
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BadInput(f"--arg {text!r} is no NAME=VALUE", "Write for example x=bf16[256,2048]")
        return name.strip(), self.value(name.strip(), value.strip())

    def value(self, name: str, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            BadInput: the syntax is wrong; the message says where.
        """
        self.text = f"{name}={text}"
        if text.startswith("@"):
            return self._file(text[1:])
        filled = _FILLED.fullmatch(text)
        if filled is not None and self._tree(filled["tensor"]) is not None:
            return self._filled(filled)
        tree = self._tree(text)
        if tree is None:
            raise self._bad(f"{text!r} is no value", SYNTAX)
        return self._value(tree)

    def _tree(self, text: str) -> ast.expr | None:
        try:
            return ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            return None

    def _bad(self, message: str, mend: str, node: ast.AST | None = None) -> BadInput:
        at = f" at `{ast.unparse(node)}`" if node is not None else ""
        return BadInput(f"argument {self.text}{at}: {message}", mend)

    # --- tensors ----------------------------------------------------------------------

    def _filled(self, match: re.Match[str]) -> TensorInput:
        tree = self._tree(match["tensor"])
        tensor = self._value(tree) if tree is not None else None
        if not isinstance(tensor, TensorInput):
            raise self._bad(f"{match['tensor']} is no tensor", SYNTAX)
        fill, numbers = match["fill"], self._numbers(match["numbers"] or "")
        if fill not in FILLS:
            raise self._bad(f"cannot fill a tensor with {fill!r}", f"Known: {', '.join(FILLS)}")
        fewest, most = FILLS[fill]
        if not fewest <= len(numbers) <= most or (fill == "uniform" and len(numbers) == 1):
            raise self._bad(
                f"{fill} takes {fewest or 'no'}{f' to {most}' if most > fewest else ''} numbers",
                "Write for example :normal(0,0.02), :uniform(-1,1), :ints(0,100), :ones",
            )
        return TensorInput(tensor.spec, fill, numbers)

    def _numbers(self, text: str) -> tuple[float, ...]:
        if not text.strip():
            return ()
        tree = self._tree(f"({text},)")
        value = None if tree is None else self._value(tree)
        if not isinstance(value, tuple) or not all(type(n) in (int, float) for n in value):
            raise self._bad(f"({text}) are no numbers", "Write numbers, separated by commas")
        return value

    def _file(self, text: str) -> TensorInput:
        path, _, wanted = text.partition(":")
        if not Path(path).is_file():
            raise self._bad(f"there is no file {path}", "Write @FILE.npy or @FILE.npy:DTYPE")
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise self._bad(f"{path} is no .npy file: {error}", "Save it with np.save") from None
        if not isinstance(array, np.ndarray):
            raise self._bad(f"{path} is no .npy file", "Save one array with np.save")
        dtype = short_dtype(wanted) if wanted else dtypes.from_numpy(array.dtype)
        if dtype is None:
            raise self._bad(
                f"NKI has no dtype {wanted or array.dtype}",
                f"Write @{path}:DTYPE to convert it, with one of: {', '.join((*_SHORT, *DTYPES))}",
            )
        same_bits = array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize
        array = array.view(dtype.numpy) if same_bits else array.astype(dtype.numpy)
        return TensorInput(TensorSpec(array.shape, dtype), array=array, source=path)

    def _tensor(self, node: ast.Subscript) -> TensorInput:
        name = ast.unparse(node.value).removeprefix("nl.")
        dtype = short_dtype(name)
        if dtype is None:
            raise self._bad(
                f"{name} is no dtype", f"Known: {', '.join((*_SHORT, *DTYPES))}", node.value
            )
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        shape = []
        for part in parts:
            size = part.value if isinstance(part, ast.Constant) else None
            if type(size) is not int or size < 1:
                raise self._bad("a dimension is a positive integer", "Mend the shape", part)
            shape.append(size)
        return TensorInput(TensorSpec(tuple(shape), dtype))

    # --- other values -----------------------------------------------------------------

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Subscript):
            return self._tensor(node)
        if isinstance(node, ast.Tuple):
            return tuple(map(self._value, node.elts))
        if isinstance(node, ast.Dict) and None not in node.keys:
            keys = [self._value(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self._value, node.values), strict=True))
        if isinstance(node, ast.List):
            raise self._bad("kernels take no lists since nki 0.3", "Write a tuple: (1, 2)", node)
        if isinstance(node, ast.Name | ast.Attribute):
            return self._named(node)
        if isinstance(node, ast.Call):
            return self._made(node)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError):
            raise self._bad("this is no value", SYNTAX, node) from None

    def _named(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Attribute):
            base = self._named(node.value)
            if node.attr.startswith("_") or not hasattr(base, node.attr):
                raise self._bad(f"there is no {node.attr}", "Mend the name", node)
            return getattr(base, node.attr)
        if not isinstance(node, ast.Name):
            raise self._bad("this is no name", SYNTAX, node)
        if node.id in _MODULES:
            return importlib.import_module(_MODULES[node.id])
        if node.id in self.namespace and not isinstance(self.namespace[node.id], ModuleType):
            return self.namespace[node.id]
        dtype = short_dtype(node.id)
        if dtype is None:
            raise self._bad(
                f"{node.id} is no known name", f"A string is written in quotes: '{node.id}'", node
            )
        return dtype

    def _made(self, node: ast.Call) -> Any:
        """An instance of a class of the kernel's file, such as Config(rows=4)."""
        kind = self._named(node.func)
        if not isinstance(kind, type):
            raise self._bad("only a class may be called here", SYNTAX, node)
        arguments = [self._value(argument) for argument in node.args]
        named = {k.arg: self._value(k.value) for k in node.keywords if k.arg is not None}
        try:
            return kind(*arguments, **named)
        except Exception as error:
            raise self._bad(
                f"{type(error).__name__}: {error}", "Mend the arguments", node
            ) from None
