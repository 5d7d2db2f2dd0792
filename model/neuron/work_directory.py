"""One folder of its own for the compilation of each configuration.

NxD deletes `BASE_COMPILE_WORK_DIR` at the start of every trace, and by default all compilations
share one. libneuronxla keeps the NEFFs of failed compilations in its cache and does not try them
again; a cache for each configuration is deleted with it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from model.neuron.availability import NeuronError

MARK = ".nki-assay-work-directory"
"""A file that says that we made a folder and may delete what is in it."""

RECORD = "graphs.json"
"""What is written when a compilation has been finished."""


class WorkDirectory:
    """Folders of one compilation: NxD's, the NEFF cache, the compiled application."""

    def __init__(self, root: Path) -> None:
        """`root` is the configuration's; nothing is made yet."""
        self.root = root
        self.trace = root / "trace"
        """NxD's work directory: HLO, NEFF and compiler log of each bucket."""
        self.cache = root / "neff-cache"
        self.compiled = root / "compiled"
        """neuron_config.json, model.pt, weights/."""

    def prepare(self) -> None:
        """Empty the folder, or make it, and point NxD and the NEFF cache into it.

        Raises:
            NeuronError: it holds data that this program did not put there.
        """
        if self.root.exists() and not self.root.is_dir():
            raise NeuronError(f"{self.root}: is a file; name a folder that may be emptied")
        if self.root.is_dir() and any(self.root.iterdir()):
            if not (self.root / MARK).is_file():
                raise NeuronError(
                    f"{self.root}: holds data that this program did not write, and NxD deletes "
                    "its work directory; name another, or empty it"
                )
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / MARK).write_text("made by nki-assay; deleted when it compiles again\n")
        for folder in (self.trace, self.cache, self.compiled):
            folder.mkdir()
        self.enter()

    def is_compiled(self) -> bool:
        """Whether a compilation was finished here."""
        return (self.compiled / RECORD).is_file() and (self.compiled / "model.pt").is_file()

    def enter(self) -> None:
        """Point NxD and the NEFF cache of this process into the folder."""
        os.environ["BASE_COMPILE_WORK_DIR"] = f"{self.trace.resolve()}/"
        os.environ["NEURON_COMPILE_CACHE_URL"] = str(self.cache.resolve())

    def compiler_errors(self, lines: int = 5) -> str:
        """The last error lines of the compiler's logs, for a message; empty if there are none."""
        found: list[str] = []
        for log in sorted(self.trace.glob("*/*/log-neuron-cc.txt")):
            text = log.read_text(encoding="utf-8", errors="replace").splitlines()
            wrong = [line for line in text if re.search(r"\b(ERROR|error:|NCC_\w+|Killed)", line)]
            found += [f"{log}: {line.strip()}" for line in wrong[-lines:]]
        return "\n".join(found)
