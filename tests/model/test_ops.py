"""The op table refuses what cannot fill an op."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.configuration import (
    Config,
    ConfigurationError,
    KernelConfiguration,
    parse_config,
)
from model.neuron.availability import NeuronError
from model.ops import build_ops, kernel_entries, relative_error
from model.records import CheckpointRecord
from model.runtime import load


def configuration(op: str, kernel: str, **parameters: object) -> KernelConfiguration:
    return KernelConfiguration.model_validate(
        {"description": "x", "ops": {op: {"kernel": kernel, "parameters": parameters}}}
    )


def test_an_unknown_parameter_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no parameter 'tile_colums'.*tile_columns"):
        build_ops(configuration("silu", "nki_silu_kernel", tile_colums=4))


def test_a_parameter_the_model_gives_cannot_be_configured() -> None:
    with pytest.raises(ConfigurationError, match="no parameter 'eps'; parameters: none"):
        build_ops(configuration("rmsnorm", "nki_rmsnorm_kernel", eps=1.0))


def test_a_kernel_of_another_signature_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "k.py"
    file.write_text("import nki\n@nki.jit\ndef k(y):\n    return y\n")
    with pytest.raises(ConfigurationError, match=r"does not take x; .*kernel\(x\[rows, columns\]"):
        build_ops(configuration("silu", f"{file}:k"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def k(:\n", "SyntaxError.*line 1"),
        ("raise ValueError('no')\n", "ValueError: no"),
        ("other = 1\n", "has no kernel 'k'"),
    ],
)
def test_a_file_without_the_kernel_is_refused(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "k.py"
    file.write_text(source)
    with pytest.raises(ConfigurationError, match=message):
        build_ops(configuration("silu", f"{file}:k"))


def test_a_missing_kernel_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        build_ops(configuration("silu", f"{tmp_path}/none.py:k"))


def test_entries_name_every_source_the_kernel_uses() -> None:
    (entry,) = kernel_entries(configuration("rmsnorm", "nki_rmsnorm_kernel"))
    assert set(entry.sources) == {"kernels/rmsnorm.py", "kernels/tiling.py"}
    (entry,) = kernel_entries(configuration("silu", "nki_silu_kernel", tile_columns=8))
    assert set(entry.sources) == {"kernels/silu.py"}
    assert entry.parameters == {"tile_columns": 8}


def test_relative_error_is_of_the_largest_value() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -4.0]), expected) == 0
    assert relative_error(torch.tensor([1.2, -4.0]), expected) == pytest.approx(0.05)
    assert relative_error(torch.zeros(2), expected) == 1
    assert relative_error(torch.tensor([float("nan"), -4.0]), expected) == float("inf")
    assert relative_error(torch.tensor([float("inf"), -4.0]), expected) == float("inf")
    assert relative_error(torch.zeros(3), expected) == float("inf")
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_no_cpu_time_can_pass_for_a_devices(
    config: Config, record: CheckpointRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    neuron = parse_config({**config.model_dump(), "device": "neuron"})
    baseline = KernelConfiguration(description="reference")
    with pytest.raises(NeuronError):
        load(record, baseline, dtype="float32", config=neuron)
