"""NxD Inference's application of a kernel configuration: build, load.

NxD Inference's CPU mode needs no compilation.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.configuration import Config, KernelConfiguration
from model.fingerprint import fingerprint
from model.neuron.availability import NeuronError, on_cpu, require
from model.neuron.kernels_in_graph import GraphKernels
from model.neuron.options import neuron_options
from model.neuron.work_directory import WorkDirectory
from model.ops import Ops, build_ops, kernel_entries
from model.quiet import quiet
from simulator import targets

if TYPE_CHECKING:
    from model.neuron.modeling import KernelForCausalLM

Kind = Literal["generation", "scoring"]
"""What an application is for. Scoring's context encoding gives logits of all positions."""


@dataclass
class Application:
    """An application, and the op table whose kernels it runs."""

    model: Any
    ops: Ops
    kernels: GraphKernels
    kind: Kind
    batch_size: int


def application_class(
    configuration: KernelConfiguration, all_positions: bool = False
) -> type[KernelForCausalLM]:
    """The class to use with NxD Inference's own API, as one would its Qwen3-MoE.

    Args:
        configuration: the kernels.
        all_positions: context encoding gives the logits of every position.

    Raises:
        NeuronError: NxD Inference is not installed.
        ConfigurationError: a kernel cannot be loaded.
    """
    require()
    from model.neuron.modeling import bind

    ops = build_ops(configuration)
    return bind(GraphKernels(ops.filled, ops.enter), all_positions)


def build(
    config: Config,
    configuration: KernelConfiguration,
    checkpoint: Path,
    *,
    kind: Kind,
    batch_size: int,
    dtype: str | None = None,
    check_ops: bool = False,
) -> Application:
    """An application that is neither compiled nor loaded.

    Args:
        config: target, buckets, and the section `neuron`.
        configuration: the kernels.
        checkpoint: the folder with config.json and safetensors.
        kind: what it is for.
        batch_size: sequences at a time.
        dtype: `config.dtype` if None.
        check_ops: compute every op's reference beside its kernel (CPU mode only).

    Raises:
        NeuronError: NxD Inference is not installed, or refuses the options.
        ConfigurationError: a kernel cannot be loaded.
    """
    require()
    os.environ[targets.VARIABLE] = config.target
    check_cores(config.neuron.logical_nc_config)
    ops = build_ops(configuration, check_ops)
    from model.neuron.modeling import bind
    from model.neuron.nxd import MoENeuronConfig, Qwen3MoeInferenceConfig, load_pretrained_config

    kernels = GraphKernels(ops.filled, ops.enter)
    options = neuron_options(config, dtype or config.dtype, batch_size, on_cpu())
    folder = str(checkpoint)
    try:
        settings = Qwen3MoeInferenceConfig(
            MoENeuronConfig(**options), load_config=load_pretrained_config(folder)
        )
        model = bind(kernels, all_positions=kind == "scoring")(folder, settings)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise NeuronError(f"NxD Inference refuses the model or its options: {error}") from error
    return Application(model, ops, kernels, kind, batch_size)


CORES_VARIABLE = "NEURON_LOGICAL_NC_CONFIG"
"""Neuron's runtime and NxD Inference obey it rather than their options."""


def check_cores(cores: int) -> None:
    """Refuse an environment that would launch on other cores.

    Raises:
        NeuronError: the variable has another number.
    """
    found = os.environ.get(CORES_VARIABLE)
    if found not in (None, "", str(cores)):
        raise NeuronError(
            f"{CORES_VARIABLE} is {found}, neuron.logical_nc_config is {cores}; graphs must run on "
            "as many cores as they are compiled for: unset the variable, or make them equal"
        )


def work_directory(
    config: Config, configuration: KernelConfiguration, kind: Kind, dtype: str
) -> WorkDirectory:
    """The folder of one compilation: no other kernels, sources of them, options or kind share it.

    Raises:
        ConfigurationError: a kernel cannot be loaded.
    """
    digest = fingerprint(
        [entry.model_dump() for entry in kernel_entries(configuration)],
        [config.model, config.target, dtype, kind],
        config.buckets,
        config.neuron,
        config.accuracy.batch_size,
    )
    name = f"{config.model}-{kind}-{dtype}-{digest[:12]}"
    return WorkDirectory(Path(config.neuron.work_directory) / name)


def load_application(application: Application, directory: WorkDirectory) -> None:
    """Put the compiled graphs and the weights on the device; in CPU mode, the weights in memory.

    Raises:
        NeuronError: it was not compiled, or the device cannot be used.
    """
    if on_cpu():
        with quiet("Neuron", logging.WARNING):  # NxD logs its process groups, rank by rank
            application.model.to_cpu()
        return
    if not directory.is_compiled():
        raise NeuronError(f"{directory.compiled}: not compiled; run snakemake compile_all")
    directory.enter()
    try:
        application.model.load(f"{directory.compiled}/")
    except Exception as error:
        raise NeuronError(
            f"the Neuron device could not be used: {type(error).__name__}: {error}. See neuron-ls; "
            "tp_degree and logical_nc_config must be those it was compiled with"
        ) from error
