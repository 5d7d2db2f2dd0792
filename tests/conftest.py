"""Settings of the whole suite: one thread (OpenMP spins under load), no network for hubs."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import simulator.finder  # noqa: F401  (`import nki` works from here on)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--sdk`: who runs the kernels of tests/kernels (see real_sdk.py there)."""
    parser.addoption(
        "--sdk",
        choices=("simulator", "device"),
        help="run the kernels of tests/kernels by AWS's SDK: its own simulator, or a device",
    )


def pytest_configure(config: pytest.Config) -> None:
    """With `--sdk`: the real SDK runs the kernels, or nothing runs."""
    mode = config.getoption("sdk")
    if mode is None:
        return
    sys.path.insert(0, str(Path(__file__).parent / "kernels"))
    import real_sdk

    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    try:
        real_sdk.replace_kernels(mode, real_sdk.real_nki(mode))
    except real_sdk.NoSdkError as error:
        raise pytest.UsageError(str(error)) from error
