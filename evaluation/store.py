"""MLflow's store: which one, one writer at a time, and errors that a person understands.

Everything goes through `MlflowClient`, since the fluent functions keep a run that is active in
the process and print the server's address.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from model.configuration import Config

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = Path("mlflow/mlflow.db")
LOCK_SECONDS = 300
"""How long to wait for another evaluation that writes to the same SQLite store. A run is
written in about a second."""

_SETTINGS = {
    # MLflow's own defaults retry an unreachable server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A bar per downloaded artifact says nothing in a log.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

P = ParamSpec("P")
R = TypeVar("R")


class TrackingError(Exception):
    """MLflow's store cannot be used; the message says what happens to the results."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store under the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE.absolute()}"


def default_store() -> bool:
    """True if the store is the one under the working directory."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def local_store() -> bool:
    """True if the store is a SQLite file, and not a server."""
    return tracking_uri().startswith("sqlite:///")


def public_uri() -> str:
    """`tracking_uri` as it may be printed: without user, password and query."""
    uri = tracking_uri()
    if default_store():
        return f"sqlite:///{DEFAULT_STORE}"
    parts = urlsplit(uri)
    if not parts.scheme:
        return uri
    port = f":{parts.netloc.rpartition(':')[2]}" if re.search(r":\d+$", parts.netloc) else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def explained(function: Callable[P, R]) -> Callable[P, R]:
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


def store_client() -> MlflowClient:
    """A client of the store; makes the folder of a SQLite store."""
    from mlflow import MlflowClient

    if local_store():
        store_folder().mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri(), registry_uri=tracking_uri())


def store_folder() -> Path:
    """The folder of a SQLite store."""
    return Path(tracking_uri().removeprefix("sqlite:///").partition("?")[0]).absolute().parent


@contextmanager
def only_writer() -> Iterator[None]:
    """Hold a SQLite store alone: whoever else writes through this function waits.

    Two processes that migrate one SQLite file break each other, and between looking for a run
    and making it there must be nobody else. The lock ends with its process. A server has its
    own transactions, and no lock is taken.

    Raises:
        TrackingError: another process held the store for `LOCK_SECONDS`.
    """
    if not local_store():
        yield
        return
    store_folder().mkdir(parents=True, exist_ok=True)
    with (store_folder() / ".writer").open("w") as file:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TrackingError(
                        f"another evaluation has been writing to {public_uri()} for "
                        f"{LOCK_SECONDS} s. The results stay in results/; "
                        "`snakemake --cores 1 track_all` sends them."
                    ) from None
                time.sleep(0.05)
        yield


def experiment_id(client: MlflowClient, config: Config) -> str:
    """The experiment's id; makes it if there is none.

    Raises:
        TrackingError: it is deleted, or its artifacts are elsewhere.
    """
    name = config.tracking.experiment
    location = (store_folder() / "artifacts").as_uri() if local_store() else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return _create_experiment(client, name, location)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The MLflow experiment {name!r} at {public_uri()} is deleted. Restore it "
            f"(mlflow experiments restore --experiment-id {experiment.experiment_id}) or set "
            "another tracking.experiment in the configuration."
        )
    if default_store() and experiment.artifact_location != location:
        raise TrackingError(
            f"The MLflow experiment {name!r} in {DEFAULT_STORE} keeps its artifacts at "
            f"{experiment.artifact_location}, not in {DEFAULT_STORE.parent}/artifacts: the "
            "checkout was moved, or a server made the experiment. Make it anew from results/: "
            "rename the folder mlflow/, delete results/tracked/, and run "
            "`snakemake --cores 1 track_all`."
        )
    return str(experiment.experiment_id)


def _create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """Make an experiment; if another evaluation was quicker, take its."""
    from mlflow.exceptions import MlflowException

    try:
        return str(
            client.create_experiment(
                name,
                artifact_location=location,
                # Opens the experiment on its runs, not on traces of a chat model.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )
    except MlflowException:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)
