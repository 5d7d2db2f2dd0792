"""What every job does around its stage: its log, and the error it leaves for the report."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from evaluation.records import StageError, Summary
from evaluation.terminal import console, print_verdicts
from model.configuration import Config, ConfigurationError, parse_config
from model.progress import show_progress
from model.records import write_text

RESULTS = Path("results")
STARTED = time.time()
OURS = ("evaluation", "kernels", "model", "nki", "simulator", "workflow")
"""An exception defined here explains itself; any other gets a traceback in the log."""


@contextmanager
def stage(results: Path, model: str, configurations: Sequence[str], name: str) -> Iterator[None]:
    """Leave `results/errors/MODEL/CONFIGURATION/NAME.json` if the stage fails, else remove it.

    A stage that all configurations share, such as the download, fails for each of them.

    Raises:
        SystemExit: with a short message, in place of any exception but an interrupt.
    """
    files = [results / "errors" / model / each / f"{name}.json" for each in configurations]
    try:
        yield
    except Exception as error:
        for file, configuration in zip(files, configurations, strict=True):
            _record(error, configuration, name).write(file)
        if not _explains_itself(error):
            traceback.print_exc()
        what = configurations[0] if len(configurations) == 1 else "every configuration"
        raise SystemExit(f"{name} failed for {what}: {_message(error)}") from None
    for file in files:
        file.unlink(missing_ok=True)


@contextmanager
def job(
    name: str, config: dict[str, object], log: str, configuration: str | None = None
) -> Iterator[Config]:
    """Run the body of a rule's script: `stage`, with all output in the rule's log file.

    Args:
        name: The stage's name.
        config: Snakemake's `config`.
        log: The rule's log file.
        configuration: The kernel configuration; None for what all of them share.

    Yields:
        The validated configuration.
    """
    with _output_to(Path(log)) as terminal:
        try:
            validated = parse_config(config)
            names = [configuration] if configuration else validated.configurations
            show_progress(terminal, " ".join(filter(None, (name, configuration))))
            with stage(RESULTS, validated.model, names, name):
                yield validated
        except (ConfigurationError, SystemExit) as end:
            print(end, file=sys.stderr)
            print(f"{end}\n(log: {log})", file=terminal, flush=True)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            show_progress(None)
            logging.info("job: %.1f s of CPU time", time.process_time())


@contextmanager
def conversation(
    name: str, config: dict[str, object], log: str
) -> Iterator[tuple[Config, Console]]:
    """Run a script that is no stage of a configuration: it talks to the terminal.

    What it prints goes to the log as well. It leaves no `StageError`: its failure says nothing
    about whether a configuration's results are right.

    Args:
        name: The script's name, for messages.
        config: Snakemake's `config`.
        log: The rule's log file.

    Yields:
        The validated configuration, and the terminal.
    """
    screen = console()
    screen.record = True
    try:
        yield parse_config(config), screen
    except Exception as error:
        if not _explains_itself(error):
            traceback.print_exc()
        screen.print(Text(f"{name}: {_message(error)}", style="red"), soft_wrap=True)
        raise SystemExit(1) from None
    finally:
        write_text(Path(log), screen.export_text())


def report_is_new(results: Path) -> bool:
    """True if this process, Snakemake's own, had the report built."""
    complete = results / "report.complete"
    return complete.exists() and complete.stat().st_mtime >= STARTED


def print_summary(results: Path) -> None:
    """The table of configurations and verdicts, to the terminal."""
    print_verdicts(Summary.read(results / "summary.json"), console())


def failures(results: Path, model: str, configurations: Sequence[str]) -> list[str]:
    """One line per failed stage: configuration, stage, and the message's first line."""
    lines = []
    for configuration in configurations:
        for file in sorted((results / "errors" / model / configuration).glob("*.json")):
            error = StageError.read(file)
            first, _, _ = error.message.partition("\n")
            lines.append(f"{configuration}: {error.stage}: {first}")
    return lines


def _explains_itself(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in OURS


def _message(error: Exception) -> str:
    return str(error) if _explains_itself(error) else f"{type(error).__name__}: {error}"


def _record(error: Exception, configuration: str, name: str) -> StageError:
    violations = getattr(error, "violations", ())
    return StageError(
        configuration=configuration,
        stage=name,
        message=_message(error),
        details=[violation.as_dict() for violation in violations],
    )


@contextmanager
def _output_to(log: Path) -> Iterator[TextIO]:
    """Send stdout, stderr and logging, of libraries in C too, to `log`; yields the old stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, os.fdopen(os.dup(2), "w") as terminal:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
        )
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved, 1)
            os.dup2(terminal.fileno(), 2)
            os.close(saved)
