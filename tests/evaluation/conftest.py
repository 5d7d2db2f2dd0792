"""A project with results of three configurations and a SQLite store, made once per module."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

from evaluation.tracking import initialise


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with results and an initialised store; making the store takes seconds."""
    root = tmp_path_factory.mktemp("project")
    results = samples.project(root)
    for name in samples.OPS_OF:
        samples.write(results, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        initialise(samples.config(), Path("mlflow/ready.json"))
    return root


@pytest.fixture
def project(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared project as working directory."""
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store
