"""Which source files a stage or a kernel depends on, found by reading their imports.

Snakemake re-runs a job when a declared input changes, but it does not look into the modules a
script imports. These functions do, without importing anything.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import kernels
from model.configuration import ConfigurationError, KernelConfiguration

PACKAGES = ("evaluation", "kernels", "model")
SIMULATOR = ("nki", "simulator")
"""Importing one of these means the whole of simulator/: its tables hang together."""

LIST_OF_KERNELS = Path("kernels/__init__.py")


def stage_sources(module: str) -> list[str]:
    """The project's files behind a stage, e.g. `model.compile`, except kernels.

    The kernels of kernels.KERNELS are loaded by name; which of them a configuration
    depends on is `kernel_sources`.
    """
    path = _find(module)
    found = _closure([path] if path else [], without=_kernel_files())
    return _names(found)


def kernel_sources(configuration: KernelConfiguration, file: Path) -> list[str]:
    """The files of a configuration's kernels, and what they import from this project.

    Raises:
        ConfigurationError: a kernel's file is missing or lacks the function.
    """
    entries = []
    for op, filled in configuration.ops.items():
        info = kernels.KERNELS.get(filled.kernel)
        name, _, function = filled.kernel.rpartition(":")
        path = Path(*info.module.split(".")).with_suffix(".py") if info else Path(name)
        _check_function(path, function, f"{file}: ops.{op}.kernel")
        entries.append(path)
    return _names(_closure(entries, without={LIST_OF_KERNELS}))


def files_under(folder: Path) -> list[str]:
    """Every file in a folder and its subfolders, sorted; caches and hidden files left out."""
    return _names(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and "__pycache__" not in path.parts
    )


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted({path.as_posix() for path in paths})


def _kernel_files() -> set[Path]:
    """The kernels, and the list of them: a kernel that is added there changes nothing else."""
    found = (_find(info.module) for info in kernels.KERNELS.values())
    return {LIST_OF_KERNELS, *(path for path in found if path)}


def _closure(entries: list[Path], without: set[Path]) -> set[Path]:
    """`entries` and the project's files they import, directly or not."""
    found: set[Path] = set()
    todo = list(entries)
    while todo:
        path = todo.pop()
        if path in found or path in without:
            continue
        found.add(path)
        for module in _imports(path):
            if module.split(".")[0] in SIMULATOR:
                found.update(map(Path, _simulator()))
            elif target := _find(module):
                todo.append(target)
    return found


@cache
def _simulator() -> list[str]:
    return [name for name in files_under(Path("simulator")) if not name.endswith(".md")]


@cache
def _find(module: str) -> Path | None:
    """The file of one of the project's modules, relative to its root."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path) -> list[str]:
    """The modules a file imports anywhere, with the packages they are in."""
    package = ".".join(path.parent.parts)
    modules: set[str] = set()
    for module in _imported(_parse(path), package):
        parts = module.split(".")
        modules.update(".".join(parts[: end + 1]) for end in range(len(parts)))
    return sorted(modules)


def _parse(path: Path) -> ast.Module:
    """A file's syntax tree; an empty one if it is not valid Python.

    A broken kernel must fail its own configuration's compile job, where it is reported and
    the other configurations go on, and not the reading of the workflow.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package) if node.level else relative
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _check_function(path: Path, function: str, where: str) -> None:
    """See that a kernel's file is there and, if it is valid Python, defines the kernel."""
    if not path.is_file():
        raise ConfigurationError(f"{where}: {path}: no such file")
    tree = _parse(path)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if tree.body and function not in functions:
        listed = ", ".join(functions) or "none"
        raise ConfigurationError(
            f"{where}: {path} has no function {function!r}; functions: {listed}"
        )
