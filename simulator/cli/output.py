"""What the commands print: text with colours on a terminal, or one JSON document."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.cli.problems import BadInput
from simulator.errors import Violation

Part = str | tuple[str, str]
"""Text, or text and a style."""


class Output:
    """Where a command prints to. With `json`, text is dropped and one document printed."""

    def __init__(self, json: bool) -> None:
        """Print to the present stdout."""
        self.json = json
        terminal = sys.stdout.isatty()
        self.console = Console(
            file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True,
            width=None if terminal else 200,
        )  # fmt: skip

    def line(self, *parts: Part, indent: int = 0) -> None:
        """Print a line of parts."""
        if not self.json:
            self.console.print(Text.assemble(" " * indent, *parts))

    def table(self, rows: list[tuple[str, ...]], heads: tuple[str, ...] = ()) -> None:
        """Print a table: first column left, the others right."""
        if self.json:
            return
        table = Table(box=None, show_header=bool(heads), pad_edge=False, padding=(0, 2, 0, 0))
        for i in range(len(rows[0])):
            head = heads[i] if heads else ""
            table.add_column(head, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    def document(self, document: dict[str, Any]) -> None:
        """Print the JSON document, if JSON is wanted."""
        if self.json:
            json.dump(_plain(document), sys.stdout, indent=2)
            sys.stdout.write("\n")

    def bad_input(self, problem: BadInput) -> None:
        """Say what is wrong with the command, on stderr and in the JSON document."""
        where = f"{shown_path(problem.file)}:{problem.line}: " if problem.file else ""
        error = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        error.print(Text.assemble(("error: ", "bold red"), where, problem.message))
        error.print(Text(f"  {problem.mend}"))
        self.document(
            {
                "ok": False,
                "error": {
                    "message": problem.message,
                    "mend": problem.mend,
                    "file": problem.file,
                    "line": problem.line,
                },
            }
        )

    @contextlib.contextmanager
    def kernel_prints(self) -> Iterator[None]:
        """While a kernel's file runs: what it prints must not mix with a JSON document."""
        if not self.json:
            yield
            return
        with contextlib.redirect_stdout(sys.stderr):
            yield

    # --- violations -------------------------------------------------------------------

    def violations(self, found: list[Violation]) -> None:
        """Print violations; those of one rule, line and operand together."""
        groups: dict[tuple[Any, ...], list[Violation]] = {}
        for v in found:
            groups.setdefault((v.rule, v.file, v.line, v.instruction, v.operand), []).append(v)
        for group in groups.values():
            self._group(group)

    def remarks(self, found: list[Violation]) -> None:
        """Print warnings, those of one rule together with all their places."""
        groups: dict[str, list[Violation]] = {}
        for violation in found:
            groups.setdefault(violation.rule, []).append(violation)
        for rule, group in groups.items():
            places = list(dict.fromkeys(f"{shown_path(v.file)}:{v.line}" for v in group))
            more = f" and {len(places) - 4} more places" if len(places) > 4 else ""
            shown = ", ".join(places[:4])
            self.line((shown, "cyan"), more, "  ", (f"[{rule}]", "yellow"), indent=2)
            self.line(group[0].message, indent=4)
            if group[0].limit:
                self.line(f"accepted by {group[0].limit}", indent=4)
            self.line((f"mend: {group[0].mend}", "green"), indent=4)

    def _group(self, group: list[Violation]) -> None:
        first = group[0]
        where = f"{shown_path(first.file)}:{first.line}" if first.file else "kernel"
        what = ".".join(part for part in (first.instruction, first.operand) if part)
        times = f"  ({len(group)} times)" if len(group) > 1 else ""
        rule = (f"[{first.rule}]", "bold red")
        self.line((where, "cyan"), "  ", rule, f"  {what}" if what else "", times, indent=2)
        self.line(first.message, indent=4)
        if first.limit:
            values = list(dict.fromkeys(v.value for v in group))
            more = ", …" if len(values) > 4 else ""
            self.line(f"limit {first.limit}, found {', '.join(values[:4])}{more}", indent=4)
        self.line((f"mend: {first.mend}", "green"), indent=4)


def shown_path(file: str) -> str:
    """A path relative to the present folder where it lies in it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity, no tuples, no other objects."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if type(value) in (int, bool, str, type(None)) else str(value)
