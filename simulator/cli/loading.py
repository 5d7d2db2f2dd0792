"""Find a kernel or a function by FILE:NAME, as Python would import it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from simulator.cli.problems import BadInput, import_failure
from simulator.kernel import Kernel
from simulator.subset.source import underlying


def load_kernel(reference: str) -> tuple[Kernel, ModuleType]:
    """The kernel named FILE:KERNEL, or FILE alone if it holds one, and its module.

    Args:
        reference: a path or a dotted module, a colon, and a name (of a jitted kernel, of a
            plain function, or of either inside a class).

    Raises:
        BadInput: no such file or kernel, or the file cannot be imported.
    """
    file, name = _split(reference)
    module = load_module(file)
    kernels, functions = _listed(module)
    if not name:
        if len(kernels) != 1:
            raise BadInput(f"{file} holds {len(kernels) or 'no'} kernels", _choice(file, kernels))
        name = kernels[0]
    value = _find(module, name)
    if value is None:
        raise BadInput(f"{file} has no kernel {name}", _choice(file, kernels or functions))
    function = underlying(value)
    if function is None or isinstance(value, type):
        raise BadInput(
            f"{name} in {file} is a {type(value).__name__}, not a kernel",
            _choice(file, kernels or functions),
        )
    return value if isinstance(value, Kernel) else Kernel(function), module


def load_function(reference: str) -> Any:
    """The function named FILE:FUNCTION.

    Raises:
        BadInput: no such file or function, or the file cannot be imported.
    """
    file, name = _split(reference)
    if not name:
        raise BadInput(f"{reference} names no function", "Write FILE:FUNCTION")
    module = load_module(file)
    value = _find(module, name)
    if not callable(value):
        raise BadInput(f"{file} has no function {name}", _choice(file, _listed(module)[1]))
    return value


def load_module(file: str) -> ModuleType:
    """Import a file or a dotted module.

    A file's folder goes on `sys.path`, as when Python runs it; a file in a package is
    imported as its submodule, so that relative imports work.

    Raises:
        BadInput: it is not there, or fails.
    """
    path = Path(file)
    if not path.is_file():
        if os.sep in file or file.endswith(".py"):
            raise BadInput(f"there is no file {file}", "Name a Python file or a dotted module")
        return _imported(file, file, str(Path.cwd()))
    if path.suffix != ".py":
        raise BadInput(f"{file} is not a Python file", "Name a file that ends in .py")
    path = path.resolve()
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) > 1:
        return _imported(".".join(p for p in parts if p != "__init__"), file, str(folder))
    return _executed(path, file)


def _imported(name: str, file: str, folder: str) -> ModuleType:
    """Import a module by its dotted name, looked for in `folder` first."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (error.name == name or name.startswith(error.name + ".")):
            raise BadInput(
                f"there is no file or module {file}",
                "Give a path, or a module that Python finds from here",
            ) from None
        raise import_failure(file, error) from None
    except (Exception, SystemExit) as error:
        raise import_failure(file, error) from None


def _executed(path: Path, file: str) -> ModuleType:
    """Import a file that is in no package, under a name that hides no other module."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    taken = known is not None or path.stem in sys.stdlib_module_names
    name = f"{path.stem}_of_{path.parent.name}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise import_failure(file, error) from None
    return module


def _split(reference: str) -> tuple[str, str]:
    file, colon, name = reference.rpartition(":")
    return (file, name) if colon else (reference, "")


def _find(module: ModuleType, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _listed(module: ModuleType) -> tuple[list[str], list[str]]:
    """Names of the kernels and of the functions that a module defines."""
    kernels: list[str] = []
    functions: list[str] = []
    for name, value in vars(module).items():
        function = underlying(value) if isinstance(value, Kernel) else value
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            (kernels if isinstance(value, Kernel) else functions).append(name)
    return kernels, functions


def _choice(file: str, names: list[str]) -> str:
    if not names:
        return "Decorate the kernel's entry function with @nki.jit"
    return f"It holds: {', '.join(f'{file}:{name}' for name in sorted(names))}"
