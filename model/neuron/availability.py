"""Whether NxD Inference is there, and which."""

from __future__ import annotations

import importlib.util
import os

PACKAGES = ("neuronx_distributed_inference", "neuronx_distributed", "torch_neuronx", "torch_xla")
SDK = "Neuron SDK 2.29 (NxD Inference 0.9, NxD Core 0.18, torch 2.9, transformers 4.57)"
CPU_MODE = "NXD_CPU_MODE"


class NeuronError(Exception):
    """`device: neuron` cannot do what was asked; the message says what and how to mend it."""


def missing_packages() -> list[str]:
    """The packages of the SDK that are not installed."""
    return [name for name in PACKAGES if not _found(name)]


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def require() -> None:
    """Refuse to go on without NxD Inference.

    Raises:
        NeuronError: naming what is missing.
    """
    missing = missing_packages()
    if missing:
        raise NeuronError(
            f"device: neuron needs {SDK}; not installed here: {', '.join(missing)}. Run on a "
            "Trainium node with envs/trn2, or set device: simulator"
        )


def on_cpu() -> bool:
    """Whether NxD Inference is to compute on this CPU, in its own mode for checks."""
    return os.environ.get(CPU_MODE, "0") not in ("", "0")
