"""`python -m snakemake` without its second of imports: children of a process that has imported it.

Each command still runs in a process of its own, in its own folder and environment, and imports the
checkout's packages itself: only packages from outside are there already.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TextIO

IMPORTED = (
    "jsonschema",
    "nbformat",
    "numpy",
    "pydantic",
    "rich.console",
    "rich.table",
    "smart_open",
    "snakemake.cli",
    "snakemake.storage",
    "yaml",
)
"""What snakemake and this repository's rules import, as `python -X importtime` shows."""
TIMEOUT_SECONDS = 120


class WarmSnakemake:
    """The process that has the imports. It ends with its standard input."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, root: Path, arguments: list[str], environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run `snakemake ARGUMENTS` in `root`; `stdout` has both streams together."""
        output = root.with_name(f"{root.name}.output")
        request = {
            "root": str(root),
            "arguments": arguments,
            "environment": environment,
            "output": str(output),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, output.read_text())

    def close(self) -> None:
        self._process.communicate()


def serve(requests: TextIO) -> None:
    """For each request a child runs it; its exit code is printed. Returns in children too."""
    for line in requests:
        child = os.fork()
        if child == 0:
            return become_snakemake(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become_snakemake(
    root: str, arguments: list[str], environment: dict[str, str], output: str
) -> None:
    signal.alarm(TIMEOUT_SECONDS)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.path[0] = root  # as `python -m` does
    sys.argv = ["snakemake", *arguments]
    runpy.run_module("snakemake", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    sys.modules["snakemake.cli"].get_argument_parser()  # imports the plug-ins
    serve(sys.stdin)
