"""Make `import nki` work: the real SDK where it is installed, the simulator elsewhere.

The package index has an empty package named `nki`; it has no `nki.language` and counts as
not installed. `NKI_SIMULATOR=1` asks for the simulator even where the SDK is installed.

`python -m simulator enable ROOT` makes this permanent in a virtual environment: it
writes a `.pth` file that puts ROOT on `sys.path` and installs the finder at start-up. This
module is therefore imported by every Python process there, and imports little itself.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

API = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nki_api")
PTH = "nki_assay.pth"


class NkiFinder(MetaPathFinder):
    """Finds the top-level package `nki`; its submodules follow by its `__path__`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The real SDK's spec if it is there and wanted, else the simulator's."""
        if fullname != "nki":
            return None
        if os.environ.get("NKI_SIMULATOR", "0") in ("", "0"):
            real = PathFinder.find_spec("nki", path)
            if real is not None and _has_language(real):
                return real
        return PathFinder.find_spec("nki", [API])


def _has_language(spec: ModuleSpec) -> bool:
    return PathFinder.find_spec("language", list(spec.submodule_search_locations or [])) is not None


def install() -> None:
    """Install the finder in this process, once."""
    if not any(type(finder).__name__ == "NkiFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, NkiFinder())


def enable(root: str) -> str:
    """Write the `.pth` file into this environment's site-packages; returns its path."""
    import sysconfig

    path = os.path.join(sysconfig.get_paths()["purelib"], PTH)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{os.path.abspath(root)}\nimport simulator.finder\n")
    os.replace(temporary, path)
    return path


install()
