"""The ledger: it grows whole lines, once per run, and never passes a CPU's time for a device's."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import samples

from evaluation import ledger
from evaluation.records import LedgerEntry
from evaluation.results import ConfigurationResults
from model.records import RecordError, write_text

TAGS = {
    "model": "tiny",
    "fingerprint": "f" * 64,
    "evaluation": "e" * 64,
    "git_commit": "abc",
    "cpu": "a CPU",
    "verdict": "pass",
}


def entry(run: str, device: str = "simulator", **config: Any) -> LedgerEntry:
    generation = samples.generation("norms", ["rmsnorm"]).model_copy(update={"device": device})
    found = ConfigurationResults(
        "norms", trace=samples.trace("norms", ["rmsnorm"]), generation=generation
    )
    return ledger.entry_of(samples.config(**config), found, run, TAGS)


def test_prediction_and_measurement_stand_side_by_side() -> None:
    ttft, tpot = entry("r1").quantities
    assert ttft.predicted_ms == {"trn2": 8.0, "trn3": pytest.approx(5.6)}
    assert ttft.measured_ms == pytest.approx(31.0)
    assert tpot.predicted_ms["trn2"] == 4.0
    assert tpot.measured_ms == pytest.approx(5.1667, rel=1e-3)
    assert "TP=4" in tpot.predicted_for
    assert "context 640" in tpot.predicted_for


def test_a_simulators_time_is_not_the_predicted_thing() -> None:
    for quantity in entry("r1").quantities:
        assert quantity.measured_on == "simulator"
        assert not quantity.same_thing
        assert quantity.predicted_over_measured is None
        assert quantity.note.startswith("different things")


def test_on_the_device_it_is_the_same_thing_at_the_predicted_shape_only() -> None:
    buckets = {"context_encoding": [32, 64], "max_length": 96}
    ttft, _ = entry("r1", "neuron", buckets=buckets).quantities
    # Of prompts of 12, 30 and 60 tokens only the last is padded to the predicted 64.
    assert ttft.measured_ms == pytest.approx(42.0)
    assert ttft.same_thing
    assert ttft.predicted_over_measured == pytest.approx(8.0 / 42.0)


def test_nothing_of_the_predicted_shape_gives_no_ratio() -> None:
    buckets = {"context_encoding": [61], "max_length": 96}
    ttft, _ = entry("r1", "neuron", buckets=buckets).quantities
    assert ttft.measured_ms is None
    assert not ttft.same_thing
    assert ttft.predicted_over_measured is None


def test_it_grows_run_by_run_and_takes_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "mlflow/ledger.jsonl"
    assert ledger.read(path) == []
    assert ledger.append(entry("r1"), path)
    assert ledger.append(entry("r2"), path)
    assert not ledger.append(entry("r1"), path)
    assert [found.mlflow_run_id for found in ledger.read(path)] == ["r1", "r2"]


def test_a_line_that_is_no_entry_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(entry("r1"), path)
    write_text(path, path.read_text() + '{"schema_version": 2}\n')
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"ledger\.jsonl:2"):
        ledger.append(entry("r2"), path)
    assert path.read_bytes() == before


def test_an_append_that_fails_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(entry("r1"), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append(entry("r2"), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert ledger.append(entry("r2"), path)


def _append(path: Path, first: int) -> None:
    for number in range(first, first + 15):
        ledger.append(entry(f"r{number}"), path)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    # They overlap: runs 10 to 14 are appended by both.
    writers = [context.Process(target=_append, args=(path, first)) for first in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    runs = [found.mlflow_run_id for found in ledger.read(path)]
    assert sorted(runs) == sorted(f"r{number}" for number in range(25))
