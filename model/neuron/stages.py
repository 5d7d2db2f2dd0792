"""The compile stage for `device: neuron`. Generation and accuracy use `runtime.load`'s model."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from model.configuration import Config, kernel_configuration_path, read_kernel_configuration
from model.fingerprint import fingerprint
from model.neuron.application import Kind, build, work_directory
from model.neuron.availability import CPU_MODE, NeuronError, on_cpu, require
from model.neuron.compiled import compile_application
from model.ops import kernel_entries
from model.records import CheckpointRecord, CompileManifest
from model.runtime import checkpoint_directory

log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("generation", "scoring")


def require_device() -> None:
    """Refuse what is no Trainium: no other clock may pass for it.

    Raises:
        NeuronError: NxD Inference is not installed, or is told to compute on the CPU.
    """
    require()
    if on_cpu():
        raise NeuronError(
            f"device: neuron measures on a Trainium, and {CPU_MODE} is set, which has NxD "
            "Inference compute on this CPU; unset it, or set device: simulator"
        )


def compile_configuration(
    config: Config, name: str, checkpoint: Path, output: Path
) -> CompileManifest:
    """Compile configuration `name` with neuronx-cc, for generation and for scoring.

    The manifest's `programs` stay empty: what runs is in the compiler's artefacts, which
    graphs.json in the work directories describes (logged here).

    Raises:
        NeuronError: NxD Inference is not installed, or the compiler failed.
        ConfigurationError: a kernel or a parameter that does not exist.
    """
    require_device()
    started = time.perf_counter()
    record = CheckpointRecord.read(checkpoint)
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    graphs = []
    for kind in KINDS:
        batch = 1 if kind == "generation" else config.accuracy.batch_size
        directory = work_directory(config, configuration, kind, config.dtype)
        application = build(
            config, configuration, checkpoint_directory(record), kind=kind, batch_size=batch
        )
        graphs.append(compile_application(application, directory))
        log.info(
            "compiled for %s in %s: NKI FLOPs ratio %.3f (counted in the HLO)",
            kind, directory.root, graphs[-1].nki_flops_ratio,
        )  # fmt: skip
    kernels = kernel_entries(configuration)
    manifest = CompileManifest(
        model=config.model,
        configuration=name,
        device=config.device,
        target=config.target,
        dtype=config.dtype,
        checkpoint_fingerprint=record.fingerprint,
        kernels=kernels,
        programs=[],
        fingerprint=fingerprint(
            [kernel.model_dump() for kernel in kernels],
            [graph.model_dump() for graph in graphs],
            [record.fingerprint, config.device, config.target, config.dtype],
        ),
        compile_seconds_measured=time.perf_counter() - started,
    )
    manifest.write(output)
    return manifest
