"""MLflow: one flat run per kernel configuration, tied together by tags.

Flat, because nested runs are hidden in MLflow's charts. The runs are an index for people;
`results/` is the truth they can be rebuilt from. Everything here goes through
`MlflowClient`, since the fluent functions keep a run that is active in the process and print
the server's address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import kernels
from evaluation.metrics import kernel_calls, metrics, slug, token_latencies, worst
from evaluation.provenance import evaluation_fingerprint, git_commit
from evaluation.records import TrackedRun
from evaluation.results import ConfigurationResults, read_results, result_files
from evaluation.summary import device_of, verdict_of
from model.configuration import Config, kernel_configuration_path
from model.fingerprint import fingerprint
from model.records import write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = Path("mlflow/mlflow.db")
METRICS_PER_REQUEST = 1000
ENTRIES_PER_REQUEST = 100
"""MLflow's limits for one `log_batch`."""

_SETTINGS = {
    # MLflow's own defaults retry an unreachable server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

P = ParamSpec("P")
R = TypeVar("R")


class TrackingError(Exception):
    """MLflow's store cannot be used; the message says what happens to the results."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store under the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE.absolute()}"


def _default_store() -> bool:
    return not os.environ.get("MLFLOW_TRACKING_URI")


def public_uri() -> str:
    """`tracking_uri` as it may be printed: without user, password and query."""
    uri = tracking_uri()
    if _default_store():
        return f"sqlite:///{DEFAULT_STORE}"
    parts = urlsplit(uri)
    if not parts.scheme:
        return uri
    port = f":{parts.netloc.rpartition(':')[2]}" if re.search(r":\d+$", parts.netloc) else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _explained(function: Callable[P, R]) -> Callable[P, R]:
    """Turns what MLflow raises into a `TrackingError` without credentials."""

    @wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        os.environ.update({key: value for key, value in _SETTINGS.items() if key not in os.environ})
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return function(*args, **kwargs)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # requests' errors are OSErrors. `from None`: the cause's text may hold a password.
            raise TrackingError(
                f"MLflow at {public_uri()} cannot be used: {_scrub(str(error))}\n"
                "The results stay in results/. When MLflow is back, "
                "`snakemake --cores 1 track_all` sends them."
            ) from None

    return explained


def _scrub(text: str) -> str:
    """The first line of `text`, without the tracking URI's secrets."""
    uri = tracking_uri()
    parts = urlsplit(uri)
    secrets = [parts.password, parts.username, parts.query]
    for secret in [uri, parts.netloc.rpartition("@")[0], *secrets]:
        for form in {secret, unquote(secret)} if secret else ():
            text = text.replace(form, public_uri() if form == uri else "***")
    return (text.strip().splitlines() or ["no reason given"])[0][:400]


@_explained
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
    experiment = _experiment(_client(), config)
    write_json(
        output,
        {
            "tracking_uri": public_uri(),
            "experiment": config.tracking.experiment,
            "experiment_id": experiment,
            # Without the query MLflow opens the pages for chat models.
            "runs_page": f"/#/experiments/{experiment}/runs?workflowType=machine_learning",
        },
    )


@_explained
def track(config: Config, name: str, results: Path, output: Path) -> TrackedRun:
    """Log one configuration's results as an MLflow run, unless it is logged already.

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
        RecordError: a result file cannot be read.
    """
    found = read_results(results, config.model, name)
    tags = _tags(config, found, results)
    client = _client()
    experiment = _experiment(client, config)
    run = _finished_run(client, experiment, tags)
    if run is None:
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        _log(client, run, config, found, results)
        client.set_terminated(run, status="FINISHED")
    tracked = TrackedRun(
        configuration=name,
        mlflow_run_id=run,
        mlflow_experiment=config.tracking.experiment,
        fingerprint=tags["fingerprint"],
    )
    tracked.write(output)
    return tracked


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        _store_folder().mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _store_folder() -> Path:
    return Path(tracking_uri().removeprefix("sqlite:///").partition("?")[0]).absolute().parent


def _experiment(client: MlflowClient, config: Config) -> str:
    """The experiment's id; makes it if there is none."""
    name = config.tracking.experiment
    uri = tracking_uri()
    location = (_store_folder() / "artifacts").as_uri() if uri.startswith("sqlite:///") else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(
            client.create_experiment(
                name,
                artifact_location=location,
                # Opens the experiment on its runs, not on traces of a chat model.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The MLflow experiment {name!r} at {public_uri()} is deleted. Restore it "
            f"(mlflow experiments restore --experiment-id {experiment.experiment_id}) or set "
            "another tracking.experiment in the configuration."
        )
    if _default_store() and experiment.artifact_location != location:
        raise TrackingError(
            f"The MLflow experiment {name!r} in {DEFAULT_STORE} keeps its artifacts at "
            f"{experiment.artifact_location}, not in {DEFAULT_STORE.parent}/artifacts: the "
            "checkout was moved, or a server made the experiment. Make it anew from results/: "
            "rename the folder mlflow/, delete results/tracked/, and run "
            "`snakemake --cores 1 track_all`."
        )
    return str(experiment.experiment_id)


def _finished_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str | None:
    """The finished run of the same results; deletes the leftovers of interrupted ones."""
    same = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("kernel_config", "fingerprint"))
    finished = None
    for run in client.search_runs([experiment], filter_string=same):
        if run.info.status == "FINISHED":
            finished = finished or str(run.info.run_id)
        else:
            client.delete_run(run.info.run_id)
    return finished


def _tags(config: Config, found: ConfigurationResults, results: Path) -> dict[str, str]:
    files = result_files(results, config.model, found.name)
    evaluation = evaluation_fingerprint(config, results)
    logged = {stage: path for stage, path in files.items() if stage != "track" and path.exists()}
    verdict, _ = verdict_of(found)
    commit = git_commit()
    return {
        "evaluation": evaluation,
        "kernel_config": found.name,
        # Of the files' content, timings included: what is measured anew is a new run.
        "fingerprint": fingerprint(evaluation, sorted(logged), *logged.values()),
        "model": config.model,
        "device": device_of(config, found),
        "target": config.target,
        "verdict": verdict,
        "git_commit": commit.sha,
        "git_dirty": str(commit.dirty).lower(),
        "mlflow.source.name": "nki-assay",
        "mlflow.source.git.commit": commit.sha,
        "mlflow.note.content": describe(config, found),
    }


def _log(
    client: MlflowClient, run: str, config: Config, found: ConfigurationResults, results: Path
) -> None:
    from mlflow.entities import Metric, Param

    now = int(client.get_run(run).info.start_time)
    logged = [Metric(key, value, now, 0) for key, value in metrics(found).items()]
    if found.generation is not None:
        series = f"latency_measured_{found.generation.device}/inter_token_ms"
        logged += [
            Metric(series, value, now, step)
            for step, value in enumerate(token_latencies(found.generation), start=1)
        ]
    for start in range(0, len(logged), METRICS_PER_REQUEST):
        client.log_batch(run, metrics=logged[start : start + METRICS_PER_REQUEST])
    params = [Param(key, str(value)) for key, value in parameters(config, found).items()]
    for start in range(0, len(params), ENTRIES_PER_REQUEST):
        client.log_batch(run, params=params[start : start + ENTRIES_PER_REQUEST])
    files = result_files(results, config.model, found.name)
    for stage, path in files.items():
        if stage != "track" and path.exists():
            client.log_artifact(run, str(path), f"results/{stage}")
    client.log_artifact(
        run, str(kernel_configuration_path(found.name)), artifact_path="kernel_configuration"
    )
    programs = files["compile"].parent / "programs"
    if programs.is_dir():
        client.log_artifacts(run, str(programs), artifact_path="programs")


def parameters(config: Config, found: ConfigurationResults) -> dict[str, Any]:
    """What the run was made with, for MLflow's parameters.

    Every op has its `op.OP.kernel`, so that runs compare; `reference` is PyTorch.
    """
    generate, accuracy = config.generate, config.accuracy
    values: dict[str, Any] = {
        "model": config.model,
        "device": config.device,
        "target": config.target,
        "dtype": config.dtype,
        "buckets.context_encoding": ",".join(map(str, config.buckets.context_encoding)),
        "buckets.max_length": config.buckets.max_length,
        "generate.prompts": generate.prompts,
        "generate.max_new_tokens": generate.max_new_tokens,
        "generate.warmup_runs": generate.warmup_runs,
        "generate.measured_runs": generate.measured_runs,
        "accuracy.texts": accuracy.texts,
        "accuracy.sequences": accuracy.sequences,
        "accuracy.tasks": accuracy.tasks,
        "accuracy.documents": accuracy.documents,
    }
    for key, value in generate.sampling.model_dump().items():
        values[f"generate.sampling.{key}"] = value
    for op in kernels.OPS:
        values[f"op.{op}.kernel"] = "reference"
    for entry in found.manifest.kernels if found.manifest else []:
        values[f"op.{slug(entry.op)}.kernel"] = entry.kernel
        for key, value in entry.parameters.items():
            values[f"op.{slug(entry.op)}.{slug(key)}"] = value
    return values


def describe(config: Config, found: ConfigurationResults) -> str:
    """What the run found, in two sentences of Markdown."""
    verdict, reasons = verdict_of(found)
    calls = {kernel: count for kernel, count in kernel_calls(found).items() if count}
    ran = ", ".join(f"{kernel} ({count:,} calls)" for kernel, count in calls.items())
    what = f"with {ran}" if ran else "with no NKI kernel"
    if verdict == "fail":
        first = f"**fail**: `{found.name}` {what} is refused: {'; '.join(reasons[:3])}".rstrip(".")
    else:
        first = f"**pass**: `{found.name}` {what} keeps to every tolerance"
        kl = worst(found, "bfloat16", "kl_per_token_mean")
        if kl is not None:
            limit = config.accuracy.tolerances.bfloat16_kl_per_token
            first += f" (KL divergence from HF in bf16 {kl:.2g} nats/token, limit {limit:g})"
    if found.generation is None:
        return f"{first}. Nothing was timed."
    timed, device = found.generation.measured, found.generation.device
    share = f"; {found.trace.nki_flops_ratio:.2%} of the MACs run in NKI" if found.trace else ""
    caveat = " and says nothing about Trainium" if device == "simulator" else ""
    return (
        f"{first}. Median TTFT is {timed.ttft_ms_p50:.3g} ms and TPOT {timed.tpot_ms_p50:.3g} ms, "
        f"which is wall clock measured on the {device}{caveat}{share}."
    )
