"""Compilations that are kept, so that the same one is not done twice.

A folder per key; the key is a fingerprint of all that a compilation depends on: the sources of
kernels, model and simulator, kernel parameters, the architecture, shapes, dtype, target, and the
versions of Python and of the packages that have a say. Weights have none.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from model.fingerprint import file_sha256, fingerprint
from model.records import GraphEntry, KernelEntry, ProgramEntry, Record, RecordError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MODEL = ("checkpoint", "compile", "custom_ops", "export", "op_calls", "ops", "qwen3_moe")
"""Modules of model/ whose code shapes a compilation."""
REFERENCES = ("comparison", "contracts", "layer_reference", "moe_reference", "reference")
"""The same of kernels/, beside the kernels themselves."""
PACKAGES = ("ml_dtypes", "numpy", "torch")
KEPT = 32
"""Compilations that are kept; the least recently used go first. One takes about 3 MB."""


class Compiled(Record):
    """What a compilation gave, without what is its configuration's alone."""

    FILE: ClassVar[str] = "compiled.json"

    programs: list[ProgramEntry]
    graphs: list[GraphEntry]


def environment_of(kernels: list[KernelEntry]) -> list[Any]:
    """Checksums of all sources behind a compilation, and versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return [
        sources(),
        [[entry.sources, entry.kernel] for entry in kernels],
        versions,
        [platform.python_version(), platform.machine()],
    ]


@cache
def sources() -> str:
    """A fingerprint of the code that is no kernel: the simulator, the op table, the model."""
    files = [ROOT / "model" / f"{name}.py" for name in MODEL]
    files += [ROOT / "kernels" / f"{name}.py" for name in REFERENCES]
    files += sorted((ROOT / "simulator").rglob("*.py"))
    return fingerprint({str(file.relative_to(ROOT)): file_sha256(file) for file in files})


class CompileCache:
    """A folder of compilations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Path | None:
        """The folder of an earlier compilation, if it is there and whole."""
        folder = self.folder / key
        if not folder.is_dir():
            return None
        try:
            compiled = Compiled.read(folder / Compiled.FILE)
            for graph in compiled.graphs:
                if file_sha256(folder / graph.file) != graph.sha256:
                    raise RecordError(f"{folder / graph.file}: its sha256 is another")
        except (RecordError, OSError) as error:
            log.warning("a kept compilation is spoilt and is made again: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        folder.touch()  # used now
        return folder

    def keep(self, key: str, folder: Path) -> None:
        """Copy a compilation into the cache, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".keep-"))
        try:
            shutil.copytree(folder, temporary / "whole")
            shutil.rmtree(self.folder / key, ignore_errors=True)
            (temporary / "whole").replace(self.folder / key)
        except OSError as error:  # e.g. another job kept the same at this moment, or a full disk
            log.warning("a compilation cannot be kept: %s", error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        kept = sorted(
            (path for path in self.folder.iterdir() if not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for old in kept[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
