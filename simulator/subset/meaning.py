"""The rules that need to know what names mean: built-ins, calls, globals; and the lints."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from simulator.subset.grammar import INT_MAX, Report
from simulator.subset.source import (
    MISSING,
    FunctionNode,
    Names,
    is_kernel,
    nki_member,
    nodes,
    origin,
    underlying,
)

BUILTINS = frozenset({
    "print", "len", "range", "min", "max", "abs", "int", "float", "bool", "str", "list", "tuple",
    "dict", "slice", "isinstance", "type", "divmod", "__debug__",
})  # fmt: skip
MATH = frozenset({"ceil", "floor", "gcd", "log2", "log10", "pow", "sqrt"})
METHODS: dict[str, frozenset[str]] = {
    "list": frozenset({
        "append", "extend", "pop", "remove", "reverse", "index", "count", "clear", "copy",
    }),
    "dict": frozenset({"get", "items", "keys", "values", "pop", "setdefault", "clear", "copy"}),
    "str": frozenset(),
}  # fmt: skip
_IMPURE = frozenset({"os", "random", "time", "datetime", "secrets", "uuid", "numpy.random"})
_ALLOCATORS = frozenset({"ndarray", "zeros", "ones", "full", "zeros_like", "empty_like", "load"})
_RANGES = frozenset({"affine_range", "sequential_range", "static_range"})
_DIVISIONS = frozenset({"divide", "mod", "fmod"})


def loop_bodies(names: Names, node: FunctionNode) -> frozenset[str]:
    """Names that the function gives to nl.fori_loop or nl.while_loop."""
    found = set()
    for call in nodes(node):
        if isinstance(call, ast.Call):
            member = nki_member(names, call.func)
            if member in (("language", "fori_loop"), ("language", "while_loop")):
                values = (*call.args, *(keyword.value for keyword in call.keywords))
                found |= {value.id for value in values if isinstance(value, ast.Name)}
    return frozenset(found)


class Meaning(ast.NodeVisitor):
    """Reports what a function's names mean that a version does not know, and the lints."""

    def __init__(
        self, report: Report, reach: Callable[[Any], None], names: Names, node: FunctionNode
    ) -> None:
        """Check a function.

        Args:
            report: takes the findings.
            reach: takes every function, class and object of the user's that it refers to.
            names: what its names mean.
            node: its syntax tree.
        """
        self.report = report
        self.reach = reach
        self.names = names
        self.kinds = _kinds(names, node)

    def check(self, node: FunctionNode) -> None:
        """Check the defaults and the body, and reach the classes of annotated parameters."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            value = self.names.resolve(_annotation(argument.annotation))
            if isinstance(value, type) and origin(value) == "user" and supported_bases(value):
                self.reach(value)

    # --- names ------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        """A name that is read."""
        if not isinstance(node.ctx, ast.Load):
            return
        if node.id in self.names.closure:
            self.report("subset-closure", node, node.id)
        if self.names.is_builtin(node.id):
            value = self.names.lookup(node.id)
            exception = isinstance(value, type) and issubclass(value, BaseException)
            if node.id not in BUILTINS and not exception:
                self.report("subset-builtin", node, node.id)
            return
        self._value(node, self.names.lookup(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A path through modules and classes, or an attribute of a value."""
        member = nki_member(self.names, node)
        if member is not None and member[0] == "language" and member[1] in _DIVISIONS:
            self.report("lint-divide", node, member[1])
        value = self.names.resolve(node)
        root = self.names.resolve(node.value)
        if isinstance(root, ModuleType):
            self._module(node, root)
        elif isinstance(root, type) and origin(root) == "user":
            self.reach(root)
        if value is MISSING or member is not None:
            if not isinstance(root, ModuleType):
                self.visit(node.value)
            return
        self._value(node, value)

    def _module(self, node: ast.AST, module: ModuleType) -> None:
        if module.__name__ in _IMPURE:
            self.report("lint-impure", node, module.__name__)
        if module.__name__.split(".")[0] == "neuronxcc":
            self.report("subset-neuronxcc", node, module.__name__)

    def _value(self, node: ast.expr, value: Any) -> None:
        """A value from the module or the closure."""
        if value is MISSING or value is None or isinstance(value, bool | float | str | range):
            return
        name = ast.unparse(node)
        if isinstance(value, ModuleType):
            self._module(node, value)
        elif isinstance(value, int):
            if not -INT_MAX - 1 <= value <= INT_MAX:
                self.report("subset-literal", node, f"{name} = {value}")
        elif isinstance(value, list | dict | bytearray):
            self.report("lint-mutable-global", node, name)
        elif isinstance(value, set | frozenset | bytes | complex) or _is_array(value):
            self.report("subset-global-value", node, name)
        elif isinstance(value, tuple):
            for item in value:
                if callable(item):
                    self.reach(item)
        elif origin(value) == "user":
            self.reach(value if underlying(value) or isinstance(value, type) else type(value))

    # --- calls ------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> None:
        """A call: who is called, and how."""
        member = nki_member(self.names, node.func)
        value = self.names.resolve(node.func)
        if member is not None:
            self._member_call(node, *member)
        elif is_kernel(value):
            self.report("subset-jit-in-jit", node, ast.unparse(node.func))
        elif value is MISSING:
            self._method_call(node)
        elif not (isinstance(node.func, ast.Name) and self.names.is_builtin(node.func.id)):
            self._foreign_call(node, value)
        self.generic_visit(node)

    def _method_call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Attribute):
            return
        kind = self._kind(node.func.value)
        if kind in METHODS and node.func.attr not in METHODS[kind]:
            self.report("subset-method", node, f"{kind}.{node.func.attr}")

    def _foreign_call(self, node: ast.Call, value: Any) -> None:
        name = getattr(value, "__name__", "")
        if getattr(math, name, None) is value and name in MATH:
            return
        whose = origin(value)
        if whose == "neuronxcc":
            self.report("subset-neuronxcc", node, ast.unparse(node.func))
        elif whose == "foreign" and not (
            isinstance(value, type) and issubclass(value, BaseException)
        ):
            self.report("subset-foreign-call", node, ast.unparse(node.func))

    def _member_call(self, node: ast.Call, module: str, name: str) -> None:
        if module == "isa":
            if len(node.args) > 1:
                self.report("lint-positional", node, f"nisa.{name}")
            if name == "memset":
                self._memset(node)
            return
        if name in _RANGES:
            self.report("lint-affine-range", node, name)
        elif name == "dynamic_range":
            self.report("lint-dynamic-loop", node, "nl.dynamic_range")
        elif name == "matmul":
            given = next((k.value for k in node.keywords if k.arg == "transpose_x"), None)
            given = given or (node.args[2] if len(node.args) > 2 else None)
            if given is None or (isinstance(given, ast.Constant) and not given.value):
                self.report("lint-matmul-transpose", node, "nl.matmul")

    def _memset(self, node: ast.Call) -> None:
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        dst = named.get("dst", node.args[0] if node.args else None)
        value = named.get("value", node.args[1] if len(node.args) > 1 else None)
        while isinstance(value, ast.UnaryOp):
            value = value.operand
        while isinstance(dst, ast.Subscript):
            dst = dst.value
        kind = self.kinds.get(dst.id, "") if isinstance(dst, ast.Name) else ""
        dtype = kind.removeprefix("tensor ")
        number = value.value if isinstance(value, ast.Constant) else None
        if isinstance(number, float) and dtype.startswith(("int", "uint")):
            self.report("lint-memset-float", node, dtype)

    # --- values -----------------------------------------------------------------------

    def _kind(self, node: ast.expr | None) -> str:
        while isinstance(node, ast.Subscript) and self._kind(node.value).startswith("tensor"):
            node = node.value
        if isinstance(node, ast.Name):
            return self.kinds.get(node.id, "")
        return _kind(self.names, node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Arithmetic: not on tensors."""
        for side in (node.left, node.right):
            if self._kind(side).startswith("tensor"):
                self.report("lint-tensor-operator", node, ast.unparse(side))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """A subscript: dictionaries have string keys."""
        key = node.slice
        constant = isinstance(key, ast.Constant) and not isinstance(key.value, str)
        if constant and self._kind(node.value) == "dict":
            self.report("subset-dict-key", key, ast.unparse(key))
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A loop on a register."""
        if isinstance(node.test, ast.Name) and self.kinds.get(node.test.id) == "register":
            self.report("lint-dynamic-loop", node, "while register")
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        """A context that is known not to be nl.no_reorder."""
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and not (call.args or call.keywords):
                value = self.names.resolve(call.func)
                if value is not MISSING and nki_member(self.names, call.func) is None:
                    self.report("subset-with", node, ast.unparse(call))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """An annotated assignment; the annotation is no value."""
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """An inner class: reported by its syntax."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """An inner function: its names are this one's too."""
        for statement in node.body:
            self.visit(statement)


def supported_bases(owner: type) -> bool:
    """Whether a class inherits from NKIObject or an enumeration alone, or is a NamedTuple."""
    if hasattr(owner, "_fields") and issubclass(owner, tuple):
        return True
    bases = [base.__name__ for base in owner.__bases__]
    return len(bases) == 1 and bases[0] in ("NKIObject", "Enum")


def _is_array(value: Any) -> bool:
    return type(value).__module__.split(".")[0] in ("numpy", "torch", "jax") and hasattr(
        value, "shape"
    )


def _annotation(node: ast.expr | None) -> ast.AST:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            pass
    return node or ast.Pass()


def _kind(names: Names, node: ast.expr | None) -> str:
    """list, dict, str, register, "tensor DTYPE", or "" for anything else."""
    if isinstance(node, ast.List | ast.ListComp):
        return "list"
    if isinstance(node, ast.Dict | ast.DictComp):
        return "dict"
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        return "str"
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Name) and names.is_builtin(node.func.id):
        return node.func.id if node.func.id in METHODS else ""
    module, name = nki_member(names, node.func) or ("", "")
    if (module, name) == ("isa", "register_alloc"):
        return "register"
    if module != "language" or name not in _ALLOCATORS:
        return ""
    dtype = next((k.value for k in node.keywords if k.arg == "dtype"), None)
    dtype = dtype or (node.args[1] if len(node.args) > 1 else None)
    known = nki_member(names, dtype) if dtype is not None else None
    return f"tensor {known[1] if known else ''}"


def _kinds(names: Names, node: FunctionNode) -> dict[str, str]:
    """What each local name holds, if every assignment to it agrees."""
    found: dict[str, str] = {}
    once = set()
    for child in nodes(node):
        if isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    once.add(id(target))
                    kind = _kind(names, child.value)
                    found[target.id] = kind if found.get(target.id, kind) == kind else ""
    for child in nodes(node):  # bound in another way: by a loop, an expansion, a parameter
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            if id(child) not in once:
                found[child.id] = ""
        elif isinstance(child, ast.arg):
            found[child.arg] = ""
    return found
