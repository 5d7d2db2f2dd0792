"""Top-level definitions of the project's modules, and what each refers to, read from the source.

What `bundle` needs to put several modules into one file: nothing is imported or run.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernels", "model")


class SourceError(Exception):
    """A module cannot be put into one file with others; the message says which line and why."""


@dataclass(frozen=True)
class Target:
    """What a module-level name stands for."""

    module: str
    """Ours if `ours`, else one that is imported."""
    name: str | None
    """In the module; None for the module itself."""
    ours: bool


@dataclass
class Use:
    """One place where a definition refers to a module-level name."""

    line: int
    start: int
    """In bytes, as `ast` counts."""
    end: int
    target: Target
    alias: str


@dataclass
class Definition:
    """A function, class or constant."""

    module: str
    name: str
    first: int
    last: int
    """Lines of the file, decorators and a constant's docstring included, from 1."""
    uses: list[Use] = field(default_factory=list)


@dataclass
class Module:
    """A source file."""

    name: str
    lines: list[bytes]
    definitions: dict[str, Definition]
    imports: dict[str, Target]

    def resolve(self, name: str) -> Target | None:
        """What a module-level name stands for; None for builtins."""
        if name in self.definitions:
            return Target(self.name, name, ours=True)
        return self.imports.get(name)


def find(module: str) -> Path | None:
    """The file of one of our modules, or of a user's file named by its path."""
    if module.endswith(".py"):
        return Path(module)
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@cache
def read(module: str) -> Module:
    """Read one of our modules.

    Raises:
        SourceError: it has a statement other than imports, definitions and constants.
    """
    result, path, nodes = _outline(module)
    table = symtable.symtable(path.read_text(encoding="utf-8"), str(path), "exec")
    for name, definition in result.definitions.items():
        definition.uses = list(_Uses(result, path).of(nodes[name], table))
    return result


@cache
def _outline(module: str) -> tuple[Module, Path, dict[str, ast.stmt]]:
    """A module without its definitions' uses, its file, and the definitions' nodes."""
    path = find(module)
    assert path is not None
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    result = Module(module, [line.encode() for line in text.splitlines(keepends=True)], {}, {})
    nodes: dict[str, ast.stmt] = {}
    previous: Definition | None = None
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            result.imports |= _imports(node)
            previous = None
        elif _is_text(node):
            if previous is not None:
                previous.last = node.end_lineno or node.lineno
            previous = None
        elif _is_type_checking(node):
            continue
        else:
            name = _defined(node, path)
            previous = _definition(module, name, node)
            result.definitions[name] = previous
            nodes[name] = node
    return result, path, nodes


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
    if isinstance(node, ast.Import):
        # `import a.b` gives the name a; `import a.b as c` gives c.
        names = [(x.asname or x.name.partition(".")[0], x.asname, x.name) for x in node.names]
        return {
            alias: Target(name if asname else alias, None, ours=False)
            for alias, asname, name in names
        }
    found = {}
    for item in node.names:
        source = node.module or ""
        whole = f"{source}.{item.name}"
        if find(source) is not None and find(whole) is not None:
            target = Target(whole, None, ours=True)
        else:
            target = Target(source, item.name, ours=find(source) is not None)
        found[item.asname or item.name] = target
    return found


def _defined(node: ast.stmt, path: Path) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target: ast.expr = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    else:
        raise SourceError(
            f"{path}:{node.lineno}: a contest submission is one file of definitions; put this "
            "statement into a function"
        )
    if not isinstance(target, ast.Name):
        raise SourceError(f"{path}:{node.lineno}: assign to one name only")
    return target.id


def _definition(module: str, name: str, node: ast.stmt) -> Definition:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return Definition(module, name, first, node.end_lineno or node.lineno)


class _Uses:
    """Finds the module-level names that a definition refers to."""

    def __init__(self, module: Module, path: Path) -> None:
        self.module = module
        self.path = path

    def of(self, node: ast.AST, table: symtable.SymbolTable) -> Iterator[Use]:
        """All uses below `node`, whose names are looked up in `table`."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target = self._target(node.value.id, table)
            if target is not None and target.ours and target.name is None:  # reference.rmsnorm
                member = _outline(target.module)[0].resolve(node.attr)
                if member is not None:
                    yield self._use(node, member, node.attr)
                    return
        if isinstance(node, ast.Name):
            target = self._target(node.id, table)
            if target is not None:
                yield self._use(node, self._final(target), node.id)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            raise SourceError(f"{self.path}:{node.lineno}: import at the top of the file")
        for child in ast.iter_child_nodes(node):
            yield from self.of(child, self._inner(node, child, table))

    def _inner(
        self, node: ast.AST, child: ast.AST, table: symtable.SymbolTable
    ) -> symtable.SymbolTable:
        """The table for a child: a scope's own for its body and arguments' names."""
        scope = _scope_name(node)
        if scope is None:
            return table
        outside = [*getattr(node, "decorator_list", []), *getattr(node, "bases", [])]
        arguments = getattr(node, "args", None)
        if child in outside:
            return table
        if isinstance(arguments, ast.arguments) and child is arguments:
            return table  # defaults and annotations
        line = getattr(node, "lineno", 0)
        for inner in table.get_children():
            if inner.get_name() == scope and inner.get_lineno() == line:
                return inner
        return table

    def _target(self, name: str, table: symtable.SymbolTable) -> Target | None:
        if table.get_type() != "module":
            try:
                symbol = table.lookup(name)
            except KeyError:
                symbol = None
            if symbol is not None and not symbol.is_global():
                return None
        target = self.module.resolve(name)
        if target is None and not hasattr(builtins, name):
            return None  # a name of an enclosing scope, or an argument's
        return target

    def _final(self, target: Target) -> Target:
        """Where a name that is imported from one of our modules was defined or imported."""
        while target.ours and target.name is not None:
            module = _outline(target.module)[0]
            if target.name in module.definitions:
                return target
            target = module.imports[target.name]
        return target

    def _use(self, node: ast.Name | ast.Attribute, target: Target, alias: str) -> Use:
        line, end_line = node.lineno, node.end_lineno or node.lineno
        if line != end_line:
            raise SourceError(f"{self.path}:{line}: write this name on one line")
        return Use(line, node.col_offset, node.end_col_offset or 0, self._final(target), alias)


def _scope_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    names = {
        ast.Lambda: "lambda",
        ast.ListComp: "listcomp",
        ast.SetComp: "setcomp",
        ast.DictComp: "dictcomp",
        ast.GeneratorExp: "genexpr",
    }
    return names.get(type(node))
