"""What the rules need to know: the validated configuration and every job's declared inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.stamp import stamp_path
from model.configuration import (
    Config,
    ConfigurationError,
    kernel_configuration_path,
    parse_config,
    read_kernel_configuration,
)
from model.records import write_text
from workflow.sources import files_under, kernel_sources

KERNEL_CONFIGURATIONS = Path("config/kernels")
EFFECTIVE_CONFIG = Path("results/config.yaml")
ENVIRONMENT = ["envs/cpu/requirements.txt", "envs/cpu/torch.txt"]


@dataclass(frozen=True)
class Pipeline:
    """One evaluation: its configuration, and the files its jobs depend on."""

    config: Config
    names: list[str]
    """Every kernel configuration there is a file for, chosen or not."""
    kernel_files: dict[str, list[str]]
    """Chosen kernel configuration -> the sources of its kernels."""

    @property
    def promoted(self) -> list[str]:
        """The configuration that is to become the champion, if any."""
        return [self.config.champion] if self.config.champion else []

    @property
    def champion_stamp(self) -> list[str]:
        """What `promote` wrote, so that the report follows a new champion."""
        path = stamp_path(self.config)
        return [path.as_posix()] if path.is_file() else []

    @property
    def compared(self) -> list[str]:
        """The configurations among which is the one that is compared with the champion."""
        return [self.config.candidate] if self.config.candidate else self.config.configurations

    def files_of_kernels(self, name: str) -> list[str]:
        """The sources of one configuration's kernels.

        Raises:
            ConfigurationError: the configuration or one of its kernels is wrong.
        """
        return self.kernel_files[name] if name in self.kernel_files else _kernel_files(name)

    def checkpoint_files(self) -> list[str]:
        """The model's files and their manifest, as far as they are on this machine.

        A file that is missing is not for Snakemake to report: the download stage knows the
        manifest, and says which file and checksum it expects.
        """
        model = self.config.models[self.config.model]
        files = [] if "://" in model.source else files_under(Path(model.source))
        if model.manifest is not None and Path(model.manifest).is_file():
            files.append(model.manifest)
        return sorted(set(files))

    def architecture_files(self) -> list[str]:
        """The model's config.json, as far as it is on this machine; see `checkpoint_files`."""
        try:
            file = self.config.architecture() / "config.json"
        except ConfigurationError:
            return []  # the trace stage says what is missing
        return [file.as_posix()] if file.is_file() else []

    def task_files(self) -> list[str]:
        """lm-eval's task files and their data."""
        return files_under(Path(self.config.accuracy.tasks))

    def settings(self, *keys: str) -> dict[str, Any]:
        """The configuration's values at `keys` (`generate`, `accuracy.texts`, …), as JSON.

        Defaults are filled in, so that writing one out changes nothing. What depends on the
        device depends, on a Trainium, on the section `neuron`.
        """
        if "device" in keys and self.config.device == "neuron":
            keys = (*keys, "neuron")
        chosen = {}
        for key in keys:
            value: Any = self.config.model_dump(mode="json")
            for step in key.split("."):
                value = value[step]
            chosen[key] = value
        return chosen

    def write_config(self) -> None:
        """Write the configuration in force, for what runs outside a rule."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if not EFFECTIVE_CONFIG.is_file() or EFFECTIVE_CONFIG.read_text("utf-8") != text:
            write_text(EFFECTIVE_CONFIG, text)


def read_pipeline(value: Mapping[str, Any], origin: str) -> Pipeline:
    """Validate the configuration and every kernel configuration it names.

    Args:
        value: The configuration as Snakemake merged it from files and the command line.
        origin: Where it came from, for messages.

    Raises:
        ConfigurationError: with the file, the key and what is allowed.
    """
    config = parse_config(value, Path(origin))
    _check_paths(config, origin)
    return Pipeline(
        config=config,
        names=sorted(path.stem for path in KERNEL_CONFIGURATIONS.glob("*.yaml")),
        kernel_files={name: _kernel_files(name) for name in _named(config)},
    )


def _named(config: Config) -> list[str]:
    """The configurations that the configuration names anywhere."""
    others = [config.latency.baseline, config.champion, config.candidate]
    return list(dict.fromkeys([*config.configurations, *filter(None, others)]))


def import_from(root: str) -> None:
    """Let the jobs' Python find the packages under `root` before any others."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != root]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, rest)])


def store_digest() -> str:
    """Changes when the MLflow store does; no plain URI, which may carry a password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "default"
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def typed(value: Any) -> Any:
    """A value of Snakemake's `--config`, whose nested numbers arrive as strings."""
    if isinstance(value, Mapping):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def _kernel_files(name: str) -> list[str]:
    file = kernel_configuration_path(name, KERNEL_CONFIGURATIONS)
    return kernel_sources(read_kernel_configuration(file), file)


def _check_paths(config: Config, origin: str) -> None:
    files = {"generate.prompts": config.generate.prompts, "accuracy.texts": config.accuracy.texts}
    for key, name in files.items():
        if not Path(name).is_file():
            raise ConfigurationError(f"{origin}: {key}: {name}: no such file")
    if not Path(config.accuracy.tasks).is_dir():
        raise ConfigurationError(
            f"{origin}: accuracy.tasks: {config.accuracy.tasks}: no such folder"
        )
