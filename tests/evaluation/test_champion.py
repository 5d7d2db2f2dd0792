"""Promotion in a real SQLite registry, and what the champion is read back as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import samples

from evaluation.champion import Champion, ChampionError, promote, read_champion, registered_name
from evaluation.results import read_results, result_files
from evaluation.store import TrackingError, store_client
from evaluation.tracking import track
from model.configuration import Config

pytestmark = pytest.mark.usefixtures("unplotted")
RESULTS = Path("results")


@pytest.fixture
def config(project: Path, request: pytest.FixtureRequest) -> Config:
    """A registry entry and an experiment of the test's own: another model's name."""
    del project
    name = request.node.name[:60]
    return samples.config(tracking={"experiment": name})


@pytest.fixture
def promoted(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Champion]:
    """Tracks and promotes, under a registered model of the test's own."""
    monkeypatch.setattr("evaluation.champion.registered_name", lambda _: config.tracking.experiment)

    def promoted(name: str) -> Champion:
        track(config, name, RESULTS, result_files(RESULTS, "tiny", name)["track"])
        return promote(config, name, RESULTS)

    return promoted


def client() -> Any:
    return store_client()


def test_a_champion_is_read_back_with_its_results(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    promoted("norms")
    champion = read_champion(config)
    assert champion.configuration == "norms"
    assert champion.version == "1"
    now = read_results(RESULTS, "tiny", "norms")
    assert champion.results.generation == now.generation
    assert champion.results.accuracy == now.accuracy
    assert champion.results.trace == now.trace
    stamp = json.loads(Path("mlflow/champion-tiny-simulator.json").read_text())
    assert stamp["mlflow_run_id"] == champion.mlflow_run_id


def test_the_registered_version_holds_the_configuration(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    champion = promoted("norms")
    version = client().get_model_version_by_alias(config.tracking.experiment, "champion")
    assert version.run_id == champion.mlflow_run_id
    assert "norms" in version.description
    experiment = client().get_run(champion.mlflow_run_id).info.experiment_id
    (model,) = client().search_logged_models([experiment])
    assert version.source == model.artifact_location
    sources = Path(model.artifact_location.removeprefix("file://")) / "sources"
    assert (sources / "config/kernels/norms.yaml").is_file()
    assert model.status == "READY"
    assert model.params["op.rmsnorm.kernel"] == "nki_rmsnorm_kernel"
    metrics = {metric.key: metric.dataset_name for metric in model.metrics}
    assert metrics["latency_measured_simulator/ttft_ms_p50"] == "prompts"
    assert metrics["quality/task_nano_arithmetic_acc"] == "tasks"


def test_promoting_again_makes_no_second_version(promoted: Callable[[str], Champion]) -> None:
    assert promoted("norms").version == promoted("norms").version == "1"


def test_the_alias_moves_and_returns(promoted: Callable[[str], Champion]) -> None:
    assert promoted("norms").version == "1"
    assert promoted("rmsnorm").version == "2"
    again = promoted("norms")
    assert (again.version, again.configuration) == ("1", "norms")


def test_no_champion_says_how_to_promote_one(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    with pytest.raises(ChampionError, match="has been promoted") as error:
        read_champion(config)
    assert "snakemake --cores 1 promote --config champion=NAME" in str(error.value)


def test_a_registered_model_without_the_alias_is_no_champion(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    promoted("norms")
    client().delete_registered_model_alias(config.tracking.experiment, "champion")
    with pytest.raises(ChampionError, match="has been promoted"):
        read_champion(config)


def test_a_champion_whose_run_was_deleted(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    champion = promoted("norms")
    client().delete_run(champion.mlflow_run_id)
    with pytest.raises(ChampionError, match=r"norms, but its MLflow run .* is deleted"):
        read_champion(config)


def test_a_champion_of_another_schema_version(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    champion = promoted("norms")
    run = client().get_run(champion.mlflow_run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    file = folder / "results/generate/generation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 7}))
    with pytest.raises(ChampionError, match="other result files") as error:
        read_champion(config)
    assert "promote --config champion=NAME" in str(error.value)


def test_a_failed_configuration_is_not_promoted(
    config: Config, promoted: Callable[[str], Champion]
) -> None:
    path = result_files(RESULTS, "tiny", "rmsnorm")["accuracy"]
    before = path.read_text()
    samples.accuracy("rmsnorm", ["rmsnorm"], kl=0.2, passed=False).write(path)
    with pytest.raises(ChampionError, match=r"verdict is fail: .*0\.2"):
        promoted("rmsnorm")
    path.write_text(before)
    with pytest.raises(ChampionError, match="has been promoted"):
        read_champion(config)


def test_an_untracked_configuration_is_not_promoted(config: Config) -> None:
    result_files(RESULTS, "tiny", "baseline")["track"].unlink(missing_ok=True)
    with pytest.raises(ChampionError, match="not tracked"):
        promote(config, "baseline", RESULTS)


def test_a_server_that_is_down_is_no_missing_champion(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="cannot be used"):
        read_champion(config)


def test_every_model_has_its_own_champion() -> None:
    assert registered_name(samples.config()) == "nki-assay-tiny-simulator"
