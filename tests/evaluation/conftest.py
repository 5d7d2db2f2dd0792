"""A project with results of three configurations and a SQLite store, made once per module."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import samples

from evaluation.store import store_client
from evaluation.tracking import initialise


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `mlflow` folder as MLflow makes it, without experiments; its migrations take seconds."""
    root = tmp_path_factory.mktemp("empty-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store_client().search_experiments()
    return root / "mlflow"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A project with results and an initialised store."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(empty_store, root / "mlflow")
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


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are logged without their plots, where a test looks at none: they take most of it."""
    monkeypatch.setattr("evaluation.tracking.run_plots", lambda _: {})
