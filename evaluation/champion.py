"""The champion: the configuration that the next one must not be worse than.

It is a version of a registered model in MLflow's registry, `nki-assay-MODEL`, under the alias
`champion`. The version points to the run, and the run holds the result files, so that a champion
can be compared with when `results/` is long gone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.records import TrackedRun
from evaluation.results import ConfigurationResults, read_results, result_files
from evaluation.stamp import stamp_path
from evaluation.store import explained, only_writer, public_uri, store_client
from evaluation.summary import verdict_of
from model.configuration import Config
from model.records import RecordError, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"


class ChampionError(Exception):
    """There is no champion, it cannot be read, or a configuration cannot become it."""


@dataclass(frozen=True)
class Champion:
    """The champion and its results, as they were when it was tracked."""

    configuration: str
    version: str
    mlflow_run_id: str
    fingerprint: str
    evaluation: str
    git_commit: str
    cpu: str
    results: ConfigurationResults


def registered_name(config: Config) -> str:
    """The registered model's name: one champion per model and device."""
    return f"nki-assay-{config.model}-{config.device}"


@explained
def promote(config: Config, name: str, results: Path) -> Champion:
    """Make a tracked configuration the champion.

    Promoting the same run again changes nothing but the alias, which returns to it.

    Args:
        config: The evaluation.
        name: The kernel configuration.
        results: The `results/` folder.

    Raises:
        ChampionError: its verdict is fail, or it is not tracked.
        TrackingError: the store cannot be used.
        RecordError: a result file cannot be read.
    """
    found = read_results(results, config.model, name)
    verdict, reasons = verdict_of(found)
    if verdict == "fail":
        raise ChampionError(
            f"{name} cannot become champion, its verdict is fail: {'; '.join(reasons[:3])}"
        )
    if found.tracked is None:
        raise ChampionError(
            f"{name} cannot become champion: it is not tracked. Run `snakemake --cores 1 track_all`"
        )
    client = store_client()
    with only_writer():
        version = _version_of(client, config, found.tracked)
        client.set_registered_model_alias(registered_name(config), ALIAS, version.version)
    champion = read_champion(config)
    write_json(
        stamp_path(config),
        {
            "configuration": name,
            "version": champion.version,
            "mlflow_run_id": champion.mlflow_run_id,
            "fingerprint": champion.fingerprint,
        },
    )
    return champion


def _version_of(client: MlflowClient, config: Config, tracked: TrackedRun) -> ModelVersion:
    """The registered version of a tracked run; makes it if there is none."""
    from mlflow.exceptions import MlflowException

    name = registered_name(config)
    try:
        client.create_registered_model(
            name,
            description=f"Kernel configurations of {config.model} on {config.device}; the alias "
            f"`{ALIAS}` is what `snakemake check_regression` compares with.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    for version in versions:
        if version.run_id == tracked.mlflow_run_id:
            return version
    run = client.get_run(tracked.mlflow_run_id)
    models = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{tracked.mlflow_run_id}'"
    )
    if not models:
        raise ChampionError(
            f"{tracked.configuration} cannot become champion: its MLflow run "
            f"{tracked.mlflow_run_id} has no logged model; it is of an earlier version of this "
            f"bench. Delete results/tracked/ and the run, then `snakemake --cores 1 track_all`."
        )
    return client.create_model_version(
        name,
        # Not `models:/ID`, which the registry looks up in MLflow's default store.
        source=models[0].artifact_location,
        run_id=tracked.mlflow_run_id,
        model_id=models[0].model_id,
        tags={"configuration": tracked.configuration, "fingerprint": tracked.fingerprint},
        description=run.data.tags.get("mlflow.note.content"),
    )


@explained
def read_champion(config: Config) -> Champion:
    """The champion and its results, from the store.

    Raises:
        ChampionError: there is none, or its results cannot be read.
        TrackingError: the store cannot be used.
    """
    client = store_client()
    version = _champion_version(client, config)
    run = client.get_run(version.run_id)
    name = run.data.tags["kernel_config"]
    if run.info.lifecycle_stage != "active":
        raise ChampionError(
            f"The champion of {config.model} is {name}, but its MLflow run {version.run_id} is "
            f"deleted. {_how_to_promote()}"
        )
    with tempfile.TemporaryDirectory() as folder:
        downloaded = Path(client.download_artifacts(version.run_id, "results", folder))
        results = _as_results_folder(downloaded, Path(folder) / "as", config, name)
        try:
            found = read_results(results, config.model, name)
        except RecordError as error:
            raise ChampionError(
                f"The champion of {config.model} ({name}, version {version.version}) was promoted "
                f"by a version of this bench with other result files: "
                f"{str(error).splitlines()[0]}. {_how_to_promote()}"
            ) from None
    return Champion(
        configuration=name,
        version=str(version.version),
        mlflow_run_id=str(version.run_id),
        fingerprint=run.data.tags["fingerprint"],
        evaluation=run.data.tags["evaluation"],
        git_commit=run.data.tags["git_commit"],
        cpu=run.data.tags.get("cpu", "unknown"),
        results=found,
    )


def _champion_version(client: MlflowClient, config: Config) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(registered_name(config), ALIAS)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ChampionError(
            f"No configuration of {config.model} on {config.device} has been promoted at "
            f"{public_uri()}. {_how_to_promote()}"
        ) from None


def _how_to_promote() -> str:
    return "Promote one: `snakemake --cores 1 promote --config champion=NAME`."


def _as_results_folder(downloaded: Path, folder: Path, config: Config, name: str) -> Path:
    """The run's artifacts `results/STAGE/FILE`, laid out like a `results/` folder."""
    for stage, path in result_files(folder, config.model, name).items():
        found = downloaded / stage / path.name
        if found.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            found.rename(path)
    return folder
