"""MLflow: one flat run per kernel configuration, tied together by tags.

Flat, because nested runs are hidden in MLflow's charts. The runs are an index for people;
`results/` is the truth they can be rebuilt from.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import ledger
from evaluation.estimates import Score
from evaluation.metrics import key_metrics, metrics, token_latencies
from evaluation.records import TrackedRun
from evaluation.results import ConfigurationResults, read_results
from evaluation.run_contents import (
    artifact_files,
    dataset_of,
    datasets,
    kernel_source_files,
    parameters,
    run_tags,
    writer_is_dead,
)
from evaluation.run_plots import run_plots
from evaluation.store import (
    experiment_id,
    explained,
    local_store,
    only_writer,
    public_uri,
    store_client,
)
from evaluation.summary import score_of
from model.configuration import Config, kernel_configuration_path
from model.records import write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Metric, Run

METRICS_PER_REQUEST = 1000
ENTRIES_PER_REQUEST = 100
"""MLflow's limits for one `log_batch`."""
VIEW = "nki-assay"
ABANDONED_SECONDS = 3600
"""A run that is still unfinished after this is nobody's any more."""
MODEL_TYPE = "kernel configuration"


@explained
def initialise(config: Config, output: Path) -> None:
    """Make the store and the experiment, or check that they are there.

    A rule of its own runs this before any `track`: several processes that make one SQLite
    store at the same time break each other.

    Args:
        config: The evaluation; names the experiment.
        output: JSON that says which store and experiment are ready.

    Raises:
        TrackingError: the store cannot be used.
    """
    client = store_client()
    with only_writer():
        experiment = experiment_id(client, config)
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", view(config))
    write_json(
        output,
        {
            "tracking_uri": public_uri(),
            "experiment": config.tracking.experiment,
            "experiment_id": experiment,
            # Without the query MLflow opens the pages for chat models.
            "runs_page": f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
            f"&viewStateShareKey={VIEW}",
        },
    )


def view(config: Config) -> str:
    """What MLflow's table of runs shows under the link in ready.json: verdicts and key metrics.

    MLflow keeps such a view of its own under "Share" as a tag of the experiment.
    """
    columns = [f"metrics.`{name}`" for name in key_metrics(config.device, config.target)]
    return json.dumps(
        {
            "selectedColumns": ["attributes.`Created`", "tags.`verdict`", *columns],
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "searchFilter": "",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
        }
    )


@explained
def track(config: Config, name: str, results: Path, output: Path) -> TrackedRun:
    """Log one configuration's results as an MLflow run, unless it is logged already.

    Its predictions and measurements go to the ledger as well (evaluation/ledger.py).

    Args:
        config: The evaluation.
        name: The kernel configuration; the run's name.
        results: The `results/` folder.
        output: Where the `TrackedRun` is written.

    Returns:
        The run that has these results: a finished one of the same fingerprint, or a new one.

    Raises:
        TrackingError: the store cannot be used, or failed midway; the unfinished run is
            replaced the next time.
        RecordError: a result file, or the ledger, cannot be read.
    """
    found = read_results(results, config.model, name)
    score = score_of(config, found, results)
    tags = run_tags(config, found, results, score)
    client = store_client()
    with only_writer():
        experiment = experiment_id(client, config)
        run = _finished_run(client, experiment, tags)
        if run is None:
            run = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
            _log(client, experiment, run, config, found, results, score)
            client.set_terminated(run, status="FINISHED")
            run = _first_finished(client, experiment, tags, run)
        ledger.append(ledger.entry_of(config, found, run, tags))
    tracked = TrackedRun(
        configuration=name,
        mlflow_run_id=run,
        mlflow_experiment=config.tracking.experiment,
        fingerprint=tags["fingerprint"],
    )
    tracked.write(output)
    return tracked


def _same(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Sequence[Run]:
    """The runs of the same results."""
    same = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("kernel_config", "fingerprint"))
    found: Sequence[Run] = client.search_runs([experiment], filter_string=same)
    return found


def _finished_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str | None:
    """The finished run of the same results; deletes the leftovers of interrupted ones."""
    finished = None
    for run in _same(client, experiment, tags):
        if run.info.status == "FINISHED":
            finished = finished or str(run.info.run_id)
        elif _abandoned(run):
            _delete(client, experiment, run.info.run_id)
    return finished


def _abandoned(run: Run) -> bool:
    """True unless another evaluation may still be writing the run.

    Who writes to a SQLite store holds it alone. On a server another machine may be at work.
    """
    age_seconds = time.time() - run.info.start_time / 1000
    return bool(
        local_store()
        or run.info.status != "RUNNING"
        or writer_is_dead(run.data.tags.get("writer", ""))
        or age_seconds > ABANDONED_SECONDS
    )


def _first_finished(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], mine: str
) -> str:
    """`mine`, or the run of another evaluation that finished the same one before; deletes mine."""
    runs = [run for run in _same(client, experiment, tags) if run.info.status == "FINISHED"]
    first = min(runs, key=lambda run: (run.info.end_time, run.info.run_id), default=None)
    if first is None or first.info.run_id == mine:
        return mine
    _delete(client, experiment, mine)
    return str(first.info.run_id)


def _delete(client: MlflowClient, experiment: str, run: str) -> None:
    """Delete a run and the model it logged."""
    for model in client.search_logged_models([experiment], f"source_run_id = '{run}'"):
        client.delete_logged_model(model.model_id)
    client.delete_run(run)


def _log(
    client: MlflowClient,
    experiment: str,
    run: str,
    config: Config,
    found: ConfigurationResults,
    results: Path,
    score: Score | None,
) -> None:
    from mlflow.entities import LoggedModelOutput, Param

    values = {key: str(value) for key, value in parameters(config, found).items()}
    for some in _chunks(list(values.items()), ENTRIES_PER_REQUEST):
        client.log_batch(run, params=[Param(key, value) for key, value in some])
    model = _log_model(client, experiment, run, found, values)
    inputs = datasets(config)
    client.log_inputs(run, datasets=inputs)
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
    now = int(client.get_run(run).info.start_time)
    points = _points(metrics(found, score), found, inputs, model.model_id, run, now)
    for some_points in _chunks(points, METRICS_PER_REQUEST):
        client.log_batch(run, metrics=some_points)
    if score is not None:
        client.log_dict(run, score.model_dump(mode="json"), "results/score/score.json")
    for file, folder in artifact_files(config, found, results).items():
        client.log_artifact(run, file, folder)
    for name, figure in run_plots(found).items():
        client.log_figure(run, figure, f"plots/{name}.png")


def _log_model(
    client: MlflowClient,
    experiment: str,
    run: str,
    found: ConfigurationResults,
    values: Mapping[str, str],
) -> LoggedModel:
    """The configuration as a logged model: its file and its kernels' sources, to be promoted."""
    from mlflow.models import Model

    model = client.create_logged_model(
        experiment,
        name=found.name,
        source_run_id=run,
        params={key: value for key, value in values.items() if key.startswith("op.")},
        model_type=MODEL_TYPE,
    )
    with tempfile.TemporaryDirectory() as folder:
        # The registry takes no model without this file.
        Model(model_id=model.model_id, run_id=run, metadata={"configuration": found.name}).save(
            str(Path(folder) / "MLmodel")
        )
        files = [kernel_configuration_path(found.name), *kernel_source_files(found)]
        for file in files:
            where = file.relative_to(Path.cwd()) if file.is_absolute() else file
            copy = Path(folder) / "sources" / where
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        client.log_model_artifacts(model.model_id, folder)
    return client.finalize_logged_model(model.model_id, "READY")


def _points(
    values: Mapping[str, float],
    found: ConfigurationResults,
    inputs: list[DatasetInput],
    model: str,
    run: str,
    now: int,
) -> list[Metric]:
    """All metrics, tied to the model and the data they are about; latencies token by token."""
    from mlflow.entities import Metric

    def point(key: str, value: float, step: int) -> Metric:
        name, digest = dataset_of(key, inputs) or (None, None)
        return Metric(key, _readable(value), now, step, model, name, digest, run)

    points = [point(key, value, 0) for key, value in values.items()]
    if found.generation is not None:
        series = f"latency_measured_{found.generation.device}/inter_token_ms"
        latencies = token_latencies(found.generation)
        # Ties to model and data are for what is compared; a series of 10,000 has no use for them.
        points += [
            Metric(series, _readable(value), now, step) for step, value in enumerate(latencies, 1)
        ]
    return points


def _readable(value: float) -> float:
    """Seven digits: MLflow shows every one there is, and 37.199999999999996 says no more."""
    return float(f"{value:.7g}")


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
