"""Where a function's or class's syntax tree is, and what the names in it mean."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Origin = Literal["nki", "user", "foreign", "neuronxcc"]

MISSING: Any = object()
"""What a name or expression means is not known before the kernel runs."""

_SIMULATOR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.join(sysconfig.get_paths()["stdlib"], "")
_FOREIGN = frozenset({"numpy", "torch", "jax", "ml_dtypes", "scipy", "builtins"})


@dataclass(frozen=True)
class Definition:
    """A function or class, and its source."""

    owner: Any
    node: FunctionNode | ast.ClassDef
    file: str
    name: str


def underlying(value: Any) -> FunctionType | None:
    """The plain function inside kernels, wrappers, partials, methods and callable objects."""
    for _ in range(100):
        if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):
            return value
        if hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif is_kernel(value):
            value = value.function
        elif callable(value) and not isinstance(value, type):
            value = getattr(type(value), "__call__")  # noqa: B004, B009
        else:
            return None
    return None


def is_kernel(value: Any) -> bool:
    """Whether it is what `nki.jit` makes of a function."""
    kind = type(value)
    return kind.__name__ == "Kernel" and kind.__module__.split(".")[0] in ("nki", "simulator")


def origin(value: Any) -> Origin:
    """Whose code a function, class or object is."""
    plain = underlying(value)
    if plain is not None:
        module, file = plain.__module__, plain.__code__.co_filename
        if file.startswith(_SIMULATOR):
            return "nki"
        if file.startswith(_STDLIB) and "site-packages" not in file:
            return "foreign"
    else:
        owner = value if isinstance(value, type) or inspect.isbuiltin(value) else type(value)
        module = getattr(value, "__module__", None) or owner.__module__
        if isinstance(owner, type) and _in_stdlib(owner):
            return "foreign"
    root = (module or "builtins").split(".")[0]
    if root in ("nki", "simulator"):
        return "nki"
    if root == "neuronxcc":
        return "neuronxcc"
    return "foreign" if root in _FOREIGN or inspect.isbuiltin(value) else "user"


def _in_stdlib(owner: type) -> bool:
    file = getattr(sys.modules.get(owner.__module__), "__file__", None) or ""
    return file.startswith(_STDLIB) and "site-packages" not in file


@functools.lru_cache(maxsize=64)
def _index(source: str) -> dict[tuple[str, int] | str, FunctionNode | ast.ClassDef]:
    """Functions by name and first line, classes by qualified name."""
    found: dict[tuple[str, int] | str, FunctionNode | ast.ClassDef] = {}

    def walk(body: Iterator[ast.AST], prefix: str) -> None:
        for node in body:
            inner = prefix
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = node
                inner = f"{prefix}{node.name}."
            elif isinstance(node, FunctionNode):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found[node.name, first] = node
                inner = f"{prefix}{node.name}.<locals>."
            walk(ast.iter_child_nodes(node), inner)

    try:
        walk(ast.iter_child_nodes(ast.parse(source)), "")
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return found


def definition(owner: Any) -> Definition | None:
    """The source of a plain function or a class; None if there is none."""
    if isinstance(owner, FunctionType):
        file = owner.__code__.co_filename
        key: tuple[str, int] | str = (owner.__code__.co_name, owner.__code__.co_firstlineno)
        scope: dict[str, Any] | None = owner.__globals__
    else:
        file = getattr(sys.modules.get(owner.__module__), "__file__", None) or ""
        key, scope = owner.__qualname__, None
    linecache.checkcache(file)
    node = _index("".join(linecache.getlines(file, scope))).get(key)
    return None if node is None else Definition(owner, node, file, owner.__qualname__)


class Names:
    """What names mean inside one function, as far as that is known without running it."""

    def __init__(self, function: FunctionType, node: FunctionNode) -> None:
        """Names of `function`, whose syntax tree is `node`."""
        self.locals = frozenset(_bound(node))
        self.globals = function.__globals__
        self.closure = {}
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                self.closure[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                self.closure[name] = MISSING

    def lookup(self, name: str) -> Any:
        """The value of a name of the closure or the module; a built-in; or MISSING."""
        if name in self.locals:
            return MISSING
        for scope in (self.closure, self.globals, vars(builtins)):
            if name in scope:
                return scope[name]
        return MISSING

    def is_builtin(self, name: str) -> bool:
        """Whether the name means Python's own built-in."""
        known = name in self.locals or name in self.closure or name in self.globals
        return not known and hasattr(builtins, name)

    def resolve(self, node: ast.AST) -> Any:
        """The value of a name or of a path through modules and classes; or MISSING."""
        if isinstance(node, ast.Name):
            return self.lookup(node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            if isinstance(base, ModuleType | type):
                return getattr(base, node.attr, MISSING)
        return MISSING


@functools.lru_cache(maxsize=1024)
def nodes(node: FunctionNode) -> tuple[ast.AST, ...]:
    """Every node of a function's syntax tree."""
    return tuple(ast.walk(node))


def _bound(node: FunctionNode) -> Iterator[str]:
    """Every name the function binds, inner scopes included."""
    for child in nodes(node):
        if isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
            yield child.id
        elif isinstance(child, ast.arg):
            yield child.arg
        elif child is not node and isinstance(child, FunctionNode | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.alias):
            yield (child.asname or child.name).split(".")[0]
        elif isinstance(child, ast.ExceptHandler) and child.name:
            yield child.name


@functools.cache
def _members() -> dict[int, tuple[str, str]]:
    return {
        id(value): (short, name)
        for short in ("language", "isa")
        for name, value in vars(sys.modules.get(f"nki.{short}", ModuleType("none"))).items()
        if not name.startswith("_") and not isinstance(value, ModuleType | int | float | str)
    }


def nki_member(names: Names, node: ast.AST) -> tuple[str, str] | None:
    """("isa" or "language", name) if the expression is a member of one of those modules."""
    if isinstance(node, ast.Attribute):
        base = names.resolve(node.value)
        module = base.__name__ if isinstance(base, ModuleType) else ""
        if module in ("nki.language", "nki.isa"):
            return module.removeprefix("nki."), node.attr
    value = names.resolve(node)
    return None if value is MISSING else _members().get(id(value))
