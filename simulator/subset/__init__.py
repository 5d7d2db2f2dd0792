"""The Python subset: which versions of `nki` can compile a kernel's Python.

`check_subset` reads the source of a kernel and of every function and class it reaches, and
reports the constructs that some version does not accept. What 0.7 alone accepts is no error: it
narrows the versions the kernel is valid for. Rules and sources: `simulator.subset.rules`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from simulator.context import VERSIONS
from simulator.errors import Violation
from simulator.subset.grammar import Grammar
from simulator.subset.meaning import Meaning, loop_bodies, supported_bases
from simulator.subset.rules import PARSER, RULES, Rule, SubsetFinding
from simulator.subset.source import (
    MISSING,
    Definition,
    FunctionNode,
    Names,
    definition,
    nodes,
    origin,
    underlying,
)

__all__ = [
    "RULES",
    "Rule",
    "SubsetFinding",
    "accepted_versions",
    "check_subset",
    "subset_violations",
    "subset_warnings",
]

_CACHE: WeakKeyDictionary[FunctionType, list[SubsetFinding]] = WeakKeyDictionary()


def check_subset(
    function: Any, name: str = "", arguments: Iterable[Any] = ()
) -> list[SubsetFinding]:
    """Check the source of a kernel and of everything it reaches.

    Reached are the user's own functions and classes that its names refer to, transitively;
    nki, NumPy, torch and the standard library are not looked into.

    Args:
        function: a kernel, decorated or not, a partial, a method or another callable.
        name: what to call it where it has no name of its own.
        arguments: values the kernel is specialised for; their classes are checked too.

    Returns:
        Findings in order of discovery: the kernel's own first. Kept per function.
    """
    entry = underlying(function)
    if entry is None:
        name = name or getattr(function, "__name__", "") or repr(function)
        return [_finding(RULES["subset-no-source"], PARSER, "", 0, name, name)]
    classes = [type(value) for value in arguments if _is_object(value)]
    if not classes and entry in _CACHE:
        return _CACHE[entry]
    checker = _Checker(entry, name)
    for owner in classes:
        checker.reach(owner)
    findings = checker.run()
    if not classes:
        _CACHE[entry] = findings
    return findings


def accepted_versions(findings: Iterable[SubsetFinding]) -> tuple[str, ...]:
    """The versions of `nki` that accept everything found."""
    refused = {version for finding in findings for version in finding.refused}
    return tuple(version for version in VERSIONS if version not in refused)


def subset_violations(
    findings: Iterable[SubsetFinding], demanded: Iterable[str] = ()
) -> list[Violation]:
    """What no version accepts, or one of the `demanded` versions does not."""
    wanted = set(demanded)
    return [
        finding.violation()
        for finding in findings
        if finding.refused == VERSIONS or wanted & set(finding.refused)
    ]


def subset_warnings(findings: Iterable[SubsetFinding]) -> list[Violation]:
    """The lints: what every version accepts and is better written in another way."""
    return [finding.violation() for finding in findings if finding.severity == "warning"]


def _is_object(value: Any) -> bool:
    plain = (int, float, str, tuple, list, dict, type(None), type)
    return not isinstance(value, plain) and origin(value) == "user"


def _finding(
    rule: Rule, refused: tuple[str, ...], file: str, line: int, function: str, construct: str
) -> SubsetFinding:
    return SubsetFinding(
        rule.id,
        "error" if refused else "warning",
        rule.message.format(construct),
        rule.mend.format(construct),
        file,
        line,
        refused,
        function,
        construct,
    )


class _Checker:
    """The functions and classes reached so far, and what was found in them."""

    def __init__(self, entry: FunctionType, name: str) -> None:
        self.entry = entry
        self.name = name
        self.todo: list[Any] = [entry]
        self.seen = {id(entry)}
        self.methods: dict[str, list[tuple[FunctionType, Definition]]] = {}
        """Methods of reached classes that nothing reached calls yet, by name."""
        self.attributes = {"__init__", "__post_init__"}
        """Names of attributes that reached code reads."""
        self.found: dict[SubsetFinding, None] = {}
        self.current: Definition | None = None

    def run(self) -> list[SubsetFinding]:
        """Check the kernel and what it reaches."""
        while self.todo or self._called_methods():
            while self.todo:
                owner = self.todo.pop(0)
                self.current = definition(owner)
                if self.current is None:
                    self._no_source(owner)
                elif isinstance(self.current.node, ast.ClassDef):
                    self._class(owner, self.current.node)
                else:
                    self._function(owner, self.current.node)
        return list(self.found)

    def _called_methods(self) -> bool:
        """Check what the methods mean that reached code calls; whether there were any."""
        called = [name for name in self.methods if name in self.attributes]
        for name in called:
            for owner, method in self.methods.pop(name):
                self.current = method
                assert not isinstance(method.node, ast.ClassDef)
                self._meaning(Names(owner, method.node), method.node)
        return bool(called)

    def reach(self, value: Any) -> None:
        """Check `value` too, if it is a function or class of the user's."""
        owner = value if isinstance(value, type) else underlying(value)
        if owner is None or id(owner) in self.seen or origin(owner) != "user":
            return
        if isinstance(owner, type) and issubclass(owner, BaseException):
            return
        self.seen.add(id(owner))
        self.todo.append(owner)

    def report(self, rule: str, node: ast.AST, construct: str, refused: Any = None) -> None:
        """Note a finding at `node` of the current definition."""
        assert self.current is not None
        row = RULES[rule]
        versions = row.refused if refused is None else PARSER
        if rule in ("subset-async", "subset-generator") and self._in_entry(node):
            versions = VERSIONS  # a coroutine or a generator returns no tensors
        line = getattr(node, "lineno", self.current.node.lineno)
        self.found[
            _finding(row, versions, self.current.file, line, self.current.name, construct)
        ] = None

    def _in_entry(self, node: ast.AST) -> bool:
        """Whether the node makes the kernel itself a coroutine or a generator."""
        assert self.current is not None
        flags = self.entry.__code__.co_flags
        special = 0x20 | 0x80 | 0x200  # generator, coroutine, asynchronous generator
        return self.current.owner is self.entry and bool(flags & special)

    def _no_source(self, owner: Any) -> None:
        if isinstance(owner, type):
            return  # made by a call, such as namedtuple(): nothing to parse
        code = owner.__code__
        name = (self.name if owner is self.entry else "") or owner.__qualname__
        rule = "subset-lambda" if code.co_name == "<lambda>" else "subset-no-source"
        finding = _finding(
            RULES[rule], PARSER, code.co_filename, code.co_firstlineno, name, owner.__qualname__
        )
        self.found[finding] = None

    def _function(self, owner: FunctionType, node: FunctionNode) -> None:
        names = Names(owner, node)
        for decorator in node.decorator_list:
            self._decorator(names, decorator)
        Grammar(self.report, owner is self.entry, loop_bodies(names, node)).check(node)
        self._meaning(names, node)

    def _meaning(self, names: Names, node: FunctionNode) -> None:
        Meaning(self.report, self.reach, names, node).check(node)
        self.attributes |= {n.attr for n in nodes(node) if isinstance(n, ast.Attribute)}

    def _method(self, owner: FunctionType) -> None:
        """The parser reads every method of a class, but looks names up only in those called."""
        outer, self.current = self.current, definition(owner)
        if self.current is not None and isinstance(self.current.node, FunctionNode):
            node = self.current.node
            names = Names(owner, node)
            for decorator in node.decorator_list:
                self._decorator(names, decorator)
            Grammar(self.report, False, loop_bodies(names, node)).check(node)
            self.methods.setdefault(node.name, []).append((owner, self.current))
        self.current = outer

    def _decorator(self, names: Names, node: ast.expr) -> None:
        called = node.func if isinstance(node, ast.Call) else node
        value = names.resolve(called)
        text = ast.unparse(called)
        plain = getattr(value, "__module__", "") or ""
        if value is not MISSING and plain.split(".")[0] in ("nki", "simulator"):
            return
        if text.split(".")[-1] not in ("jit", "staticmethod", "dataclass"):
            self.report("subset-decorator", node, text)

    def _class(self, owner: type, node: ast.ClassDef) -> None:
        if not supported_bases(owner):
            bases = ", ".join(base.__name__ for base in owner.__bases__)
            self.report("subset-class", node, f"{owner.__name__}, which inherits from {bases}")
            return
        if node.keywords:
            self.report("subset-class", node, f"{owner.__name__} with keywords")
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(called).split(".")[-1] != "dataclass":
                self.report("subset-decorator", decorator, ast.unparse(called))
        for statement in node.body:
            self._member(owner, statement)

    def _member(self, owner: type, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef):
            function = underlying(vars(owner).get(statement.name))
            if function is not None and id(function) not in self.seen:
                self.seen.add(id(function))
                self._method(function)
            return
        text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not text and not isinstance(statement, ast.Assign | ast.AnnAssign | ast.Pass):
            what = type(statement).__name__.lower()
            self.report("subset-class", statement, f"{owner.__name__} with a statement ({what})")
