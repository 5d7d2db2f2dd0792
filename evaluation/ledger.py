"""The ledger: what was predicted and what was measured of the same run, side by side.

`mlflow/ledger.jsonl` has one line per tracked run and grows. It lies beside MLflow's store and
not in `results/`, which may be deleted at any time. It is written whole or not at all: a new
file replaces the old one under a lock, so that a reader sees all of a line or none of it.

Prediction and measurement are the same thing only where the clock ran on the predicted device.
On the simulator the measured time is this machine's CPU at work, which no prediction is about;
the ledger says so in `same_thing` and gives no ratio.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import ValidationError

from evaluation.metrics import tpot_ms
from evaluation.records import LedgerEntry, LedgerQuantity
from evaluation.results import ConfigurationResults
from model.configuration import Config
from model.records import RecordError, TraceSummary, write_text

LEDGER = Path("mlflow/ledger.jsonl")
Quantity = Literal["ttft_ms", "tpot_ms"]
QUANTITIES: tuple[Quantity, ...] = ("ttft_ms", "tpot_ms")


def entry_of(
    config: Config, found: ConfigurationResults, run: str, tags: Mapping[str, str]
) -> LedgerEntry:
    """The ledger's entry of one tracked run.

    Args:
        config: The evaluation; its buckets say which prompts have the predicted shape.
        found: The configuration's results.
        run: Its MLflow run.
        tags: The run's tags.
    """
    return LedgerEntry(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        configuration=found.name,
        model=tags["model"],
        mlflow_run_id=run,
        fingerprint=tags["fingerprint"],
        evaluation=tags["evaluation"],
        git_commit=tags["git_commit"],
        cpu=tags["cpu"],
        verdict="pass" if tags["verdict"] == "pass" else "fail",
        quantities=[_quantity(config, found, name) for name in QUANTITIES],
    )


def _quantity(config: Config, found: ConfigurationResults, name: Quantity) -> LedgerQuantity:
    device = found.generation.device if found.generation else None
    predicted = predicted_ms(found.trace, name)
    measured = _measured_ms(config, found, name)
    target = found.trace.target if found.trace else ""
    if device == "simulator":
        note = "different things: the CPU's time to simulate, and the device's time"
    elif not predicted:
        note = "nothing was predicted"
    elif measured is None:
        note = "nothing of the predicted shape was measured"
    else:
        note = f"the same thing: time on {target}"
    same = device == "neuron" and measured is not None and target in predicted
    return LedgerQuantity(
        quantity=name,
        predicted_ms=predicted,
        predicted_for=_shape(found.trace),
        measured_ms=measured,
        measured_on=device,
        same_thing=same,
        note=note,
        predicted_over_measured=predicted[target] / measured if same and measured else None,
    )


def _measured_ms(config: Config, found: ConfigurationResults, name: Quantity) -> float | None:
    """The median over the measured runs; on neuron, over those of the predicted prefill bucket."""
    if found.generation is None:
        return None
    values: list[float] = []
    for prompt in found.generation.prompts:
        buckets = [size for size in config.buckets.context_encoding if size >= prompt.prompt_tokens]
        wanted = found.trace.prefill_tokens if found.trace else 0
        if found.generation.device == "neuron" and (not buckets or buckets[0] != wanted):
            continue
        for run in prompt.runs:
            value = run.ttft_ms if name == "ttft_ms" else tpot_ms(run)
            values += [] if value is None else [value]
    return median(values) if values else None


def predicted_ms(trace: TraceSummary | None, name: Quantity) -> dict[str, float]:
    """Target -> predicted `ttft_ms` or `tpot_ms`; empty if nothing was predicted."""
    if trace is None:
        return {}
    found = {
        target: float(getattr(prediction, f"predicted_{name}"))
        for target, prediction in trace.predictions.items()
    }
    own = getattr(trace, f"predicted_{name}")
    if own is not None:
        found.setdefault(trace.target, own)
    return found


def _shape(trace: TraceSummary | None) -> str:
    if trace is None:
        return ""
    return (
        f"{trace.dtype}, TP={trace.tp_degree}, LNC={trace.lnc}, prefill {trace.prefill_tokens} "
        f"tokens, decode at context {trace.context}"
    )


def read(path: Path = LEDGER) -> list[LedgerEntry]:
    """Every entry, the oldest first; empty if there is no ledger yet.

    Raises:
        RecordError: naming the line that is no entry. Nothing is dropped silently.
    """
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(LedgerEntry.model_validate_json(line))
        except ValidationError as error:
            raise RecordError(
                f"{path}:{number}: not a LedgerEntry of schema version 1: {error}\n"
                "The ledger is kept for good and is not rebuilt: move it away to begin a new "
                "one, or delete that line."
            ) from None
    return entries


def append(entry: LedgerEntry, path: Path = LEDGER) -> bool:
    """Append one run, whole or not at all; False if the ledger has it already.

    Raises:
        RecordError: the ledger there cannot be read; it is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if any(old.mlflow_run_id == entry.mlflow_run_id for old in read(path)):
            return False
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        write_text(path, f"{before}{entry.model_dump_json()}\n")
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with the ledger; the lock ends with the process."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
