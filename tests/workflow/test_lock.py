from __future__ import annotations

from pathlib import Path

import pytest

from workflow import lock


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The locks this process holds; dropping one is the end of a process."""
    files: list[object] = []
    monkeypatch.setattr(lock, "_held", files)
    return files


def leave_lock(folder: Path) -> Path:
    file = folder / "locks" / "0.output.lock"
    file.parent.mkdir(parents=True)
    file.write_text("results/report.html\n")
    return file


def test_a_dead_runs_lock_is_removed(tmp_path: Path) -> None:
    file = leave_lock(tmp_path)
    assert lock.remove_stale_lock(tmp_path)
    assert not file.exists()


def test_a_living_runs_lock_stays(tmp_path: Path, held: list[object]) -> None:
    assert not lock.remove_stale_lock(tmp_path)  # the first run
    file = leave_lock(tmp_path)
    assert not lock.remove_stale_lock(tmp_path)  # the second, while the first is alive
    assert file.exists()
    held.clear()
    assert lock.remove_stale_lock(tmp_path)


def test_where_nothing_can_be_written_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not lock.remove_stale_lock(tmp_path / "file")
