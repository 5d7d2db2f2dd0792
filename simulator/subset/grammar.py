"""The rules that show in a function's syntax alone."""

from __future__ import annotations

import ast
from collections.abc import Callable

from simulator.subset.source import FunctionNode

Report = Callable[..., None]
"""report(rule, node, construct, refused=None): note a finding."""

INT_MAX = 2**31 - 1

_STATEMENTS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Delete: ("subset-del", "del"),
    ast.Match: ("subset-match", "match"),
    ast.Raise: ("subset-raise", "raise"),
    ast.Try: ("subset-try", "try"),
    ast.TryStar: ("subset-try", "try"),
    ast.Import: ("subset-import", "import"),
    ast.ImportFrom: ("subset-import", "import"),
    ast.Global: ("subset-global", "global"),
    ast.Nonlocal: ("subset-global", "nonlocal"),
    ast.ClassDef: ("subset-inner-class", "class"),
    ast.AsyncFor: ("subset-async", "async for"),
    ast.AsyncWith: ("subset-async", "async with"),
}
_EXPRESSIONS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lambda: ("subset-lambda", "lambda"),
    ast.ListComp: ("subset-comprehension", "list comprehension"),
    ast.SetComp: ("subset-comprehension", "set comprehension"),
    ast.DictComp: ("subset-comprehension", "dict comprehension"),
    ast.GeneratorExp: ("subset-comprehension", "generator expression"),
    ast.Set: ("subset-set", "set"),
    ast.NamedExpr: ("subset-walrus", ":="),
    ast.Await: ("subset-async", "await"),
    ast.Yield: ("subset-generator", "yield"),
    ast.YieldFrom: ("subset-generator", "yield from"),
}


class Grammar(ast.NodeVisitor):
    """Reports what the parser front end cannot read in one function."""

    def __init__(self, report: Report, entry: bool, loop_bodies: frozenset[str]) -> None:
        """Check a function.

        Args:
            report: takes the findings.
            entry: whether it is the kernel itself, not a helper.
            loop_bodies: names given to nl.fori_loop and nl.while_loop as bodies.
        """
        self.report = report
        self.entry = entry
        self.loop_bodies = loop_bodies

    def check(self, node: FunctionNode) -> None:
        """Check one function: signature and body. Decorators are another rule's."""
        if isinstance(node, ast.AsyncFunctionDef):
            self.report("subset-async", node, "async def")
        self._signature(node.args)
        for statement in node.body:
            self.visit(statement)

    def visit(self, node: ast.AST) -> None:
        """Report a construct that is refused as such, then look inside it."""
        found = _STATEMENTS.get(type(node)) or _EXPRESSIONS.get(type(node))
        if found is not None:
            self.report(found[0], node, found[1])
        super().visit(node)

    # --- signatures -------------------------------------------------------------------

    def _signature(self, arguments: ast.arguments) -> None:
        if arguments.vararg is not None:
            self.report("subset-star-args", arguments.vararg, f"*{arguments.vararg.arg}")
        if arguments.kwarg is not None:
            self.report("subset-kwargs", arguments.kwarg, arguments.kwarg.arg)
        if self.entry and arguments.posonlyargs:
            self.report("subset-keyword-only", arguments.posonlyargs[-1], "a positional-only /")
        if self.entry and arguments.kwonlyargs:
            self.report("subset-keyword-only", arguments.kwonlyargs[0], "a keyword-only *")
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """An inner function."""
        refused = None if node.name in self.loop_bodies else "parser"
        self.report("subset-inner-def", node, node.name, refused)
        Grammar(self.report, False, self.loop_bodies).check(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """An inner coroutine."""
        self.report("subset-async", node, "async def")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """An inner class: reported as such, its body is none of the kernel's."""

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A lambda: its parameters are those of no function."""
        self.visit(node.body)

    # --- statements -------------------------------------------------------------------

    def visit_For(self, node: ast.For) -> None:
        """A loop: one name as target, no else."""
        if not isinstance(node.target, ast.Name):
            self.report("subset-for-target", node.target, ast.unparse(node.target))
        self._no_else(node.orelse, "for")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A loop: no else."""
        self._no_else(node.orelse, "while")
        self.generic_visit(node)

    def _no_else(self, body: list[ast.stmt], loop: str) -> None:
        if body:
            self.report("subset-else-on-loop", body[0], loop)

    def visit_With(self, node: ast.With) -> None:
        """A context: one call without arguments and without `as`."""
        for item in node.items:
            call = item.context_expr
            simple = isinstance(call, ast.Call) and not call.args and not call.keywords
            named = simple and isinstance(call.func, ast.Name | ast.Attribute)  # type: ignore[attr-defined]
            if not named or item.optional_vars is not None or len(node.items) > 1:
                self.report("subset-with", node, ast.unparse(item))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """An assignment: names and tuples of names, or one attribute or subscript."""
        mutating = [t for t in node.targets if isinstance(t, ast.Attribute | ast.Subscript)]
        if len(mutating) > 1:
            self.report("subset-assignment-targets", node, "several attributes or subscripts")
        for target in node.targets:
            if target not in mutating and not _is_pattern(target):
                self._target(target)
        self.generic_visit(node)

    def _target(self, target: ast.expr) -> None:
        if any(isinstance(part, ast.Starred) for part in ast.walk(target)):
            return  # reported as such
        self.report("subset-assignment-targets", target, ast.unparse(target))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """An annotated assignment; the annotation is no value."""
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    # --- expressions ------------------------------------------------------------------

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Arithmetic."""
        if isinstance(node.op, ast.MatMult):
            self.report("subset-matmul-operator", node, "@")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Augmented assignment."""
        if isinstance(node.op, ast.MatMult):
            self.report("subset-matmul-operator", node, "@=")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """A comparison; identity is a warning."""
        for op in node.ops:
            if isinstance(op, ast.Is | ast.IsNot):
                self.report("subset-is", node, "is" if isinstance(op, ast.Is) else "is not")
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        """A tuple expansion, in a call, a list or a target."""
        self.report("subset-star-args", node, ast.unparse(node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call: no keyword expansion."""
        for keyword in node.keywords:
            if keyword.arg is None:
                self.report("subset-star-args", keyword, f"**{ast.unparse(keyword.value)}")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        """A dictionary: its keys are string literals."""
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self.report("subset-star-args", value, f"**{ast.unparse(value)}")
            elif not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                self.report("subset-dict-key", key, ast.unparse(key))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """An index: no lists or tuples in it."""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if isinstance(part, ast.List | ast.Tuple):
                self.report("subset-index", part, type(part).__name__.lower())
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        """A value in an f-string: no format specification."""
        if node.format_spec is not None:
            self.report("subset-fstring-format", node, ast.unparse(node.format_spec)[2:-1])
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A literal: no bytes, complex numbers or long integers."""
        value = node.value
        if isinstance(value, bytes | complex) or (isinstance(value, int) and value > INT_MAX):
            self.report("subset-literal", node, repr(value)[:40])


def _is_pattern(target: ast.expr) -> bool:
    """Whether it is a name or a (nested) tuple of names."""
    if isinstance(target, ast.Tuple):
        return all(map(_is_pattern, target.elts))
    return isinstance(target, ast.Name)
