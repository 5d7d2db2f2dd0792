"""Settings of the whole suite: one thread (OpenMP spins under load), no network for hubs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler.loadfile import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # NxD's process group: two workers, two ports
    os.environ["MASTER_PORT"] = str(29500 + int(os.environ["PYTEST_XDIST_WORKER"][2:]))

import simulator.finder  # noqa: F401  (`import nki` works from here on)

LONG = (
    "tests/workflow/test_dag.py",
    "tests/workflow/test_errors.py",
    "tests/workflow/test_champion_rules.py",
    "tests/evaluation/test_mlflow_server.py",
    "tests/evaluation/test_tracking.py",
    "tests/evaluation/test_champion.py",
    "tests/model/test_compile.py",
    "tests/model/test_stages.py",
    "tests/kernels/test_moe_kernels.py",
    "tests/evaluation/test_accuracy.py",
    "tests/evaluation/test_report.py",
    "tests/evaluation/test_gates.py",
    "tests/kernels/test_attention_kernels.py",
    "tests/kernels/test_projection_kernels.py",
    "tests/evaluation/test_bfloat16_gates.py",
    "tests/kernels/test_attention_block.py",
    "tests/evaluation/test_report_browser.py",
    "tests/model/test_trace.py",
)
"""Files of more than ten seconds: the workers begin with these."""

TOGETHER = {
    "tests/workflow/test_dag.py": "a finished checkout",
    "tests/workflow/test_errors.py": "a finished checkout",
    "tests/workflow/test_champion_rules.py": "a finished checkout",
    "tests/evaluation/test_mlflow_server.py": "MLflow's tables",
    "tests/evaluation/test_tracking.py": "MLflow's tables",
    "tests/evaluation/test_champion.py": "MLflow's tables",
    "tests/model/test_compile.py": "compilations",
    "tests/model/test_stages.py": "compilations",
}
"""Files that share what takes seconds to make, and so go to one worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """For `--dist loadfile`: long files first, and those that share something to one worker."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    class FilesByLength(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    config.option.loadscopereorder = False  # xdist's order is by the number of tests
    return FilesByLength(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In workers long files come first; else the order is by name, as usual."""
    if hasattr(config, "workerinput"):
        rank = {file: number for number, file in enumerate(LONG)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


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
