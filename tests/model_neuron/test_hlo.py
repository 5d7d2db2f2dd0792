"""MACs counted in HLO modules, which are encoded here by hand, field by field."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from model.neuron.availability import NeuronError
from model.neuron.hlo import NKI_TARGET, MacCount, count_macs, graph_files


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def part(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def packed(field: int, values: list[int]) -> bytes:
    return part(field, b"".join(varint(value) for value in values))


def instruction(identity: int, opcode: str, shape: list[int], rest: bytes = b"") -> bytes:
    """HloInstructionProto: name 1, opcode 2, shape 3 (dimensions 3), id 35."""
    head = part(1, f"i{identity}") + part(2, opcode) + part(3, packed(3, shape))
    return head + number(35, identity) + rest


def dot(identity: int, operands: list[int], shape: list[int], dims: list[list[int]]) -> bytes:
    """Its operand_ids are field 36, its dot_dimension_numbers 30."""
    numbers = b"".join(packed(field, values) for field, values in enumerate(dims, 1) if values)
    return instruction(identity, "dot", shape, packed(36, operands) + part(30, numbers))


def kernel(identity: int, config: bytes) -> bytes:
    """A custom call: its target is field 28, its backend_config 43."""
    return instruction(identity, "custom-call", [4], part(28, NKI_TARGET) + part(43, config))


def config_of(macs: int) -> bytes:
    return base64.b64encode(json.dumps({"mac_count": str(macs)}).encode())


def module(*computations: list[bytes]) -> bytes:
    """HloModuleProto: name 1, computations 3 (name 1, instructions 2)."""
    parts = (part(1, "c") + b"".join(part(2, i) for i in c) for c in computations)
    return part(1, "m") + b"".join(part(3, computation) for computation in parts)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.MODULE_1+2.hlo_module.pb"


def test_a_batched_dot_has_batch_m_k_n_macs(file: Path) -> None:
    operands = [instruction(1, "parameter", [3, 5, 7]), instruction(2, "parameter", [3, 7, 11])]
    product = dot(300, [1, 2], [3, 5, 11], [[2], [1], [0], [0]])
    file.write_bytes(module([*operands, product]))
    assert count_macs(file) == MacCount(nki=0, total=3 * 5 * 7 * 11, nki_calls=0)


def test_kernels_name_their_macs_and_other_custom_calls_have_none(file: Path) -> None:
    operands = [instruction(1, "parameter", [2, 4]), instruction(2, "parameter", [4, 6])]
    inner = [*operands, dot(3, [1, 2], [2, 6], [[1], [0], [], []])]
    other = instruction(9, "custom-call", [4], part(28, "AwsNeuronRmsNorm"))
    file.write_bytes(module(inner, [kernel(7, config_of(1000)), kernel(8, config_of(5)), other]))
    assert count_macs(file) == MacCount(nki=1005, total=1005 + 48, nki_calls=2)


@pytest.mark.parametrize("config", [b"", b"not base64!", base64.b64encode(b"{}")])
def test_a_kernel_that_does_not_name_its_macs_is_refused(file: Path, config: bytes) -> None:
    file.write_bytes(module([kernel(7, config)]))
    with pytest.raises(NeuronError, match=r"hlo_module\.pb.*'i7' has no mac_count"):
        count_macs(file)


def test_files_that_are_no_whole_module_are_refused(file: Path) -> None:
    with pytest.raises(NeuronError, match="no such HLO file"):
        count_macs(file)
    whole = module([instruction(1, "parameter", [2, 4]), kernel(7, config_of(3))])
    file.write_bytes(whole[:-4])
    with pytest.raises(NeuronError, match="cannot be read as an HLO module"):
        count_macs(file)
    file.write_bytes(b"")
    with pytest.raises(NeuronError, match="without instructions"):
        count_macs(file)
    file.write_bytes(module([dot(3, [1, 2], [2, 6], [[1], [0], [], []])]))
    with pytest.raises(NeuronError, match="lacks an operand"):
        count_macs(file)


def test_every_bucket_must_have_its_one_file(tmp_path: Path) -> None:
    folders = [tmp_path / "token_generation_model" / f"_tp0_bk{n}" for n in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.MODULE_a+b.hlo_module.pb").write_bytes(b"x")
    found = graph_files(tmp_path, "token_generation", 2)
    assert [path.parent.name for path in found] == ["_tp0_bk0", "_tp0_bk1"]
    with pytest.raises(NeuronError, match=r"_tp0_bk2: one HLO module is needed, found none"):
        graph_files(tmp_path, "token_generation", 3)
    (folders[1] / "model.MODULE_c+d.hlo_module.pb").write_bytes(b"x")
    with pytest.raises(NeuronError, match=r"_tp0_bk1: one HLO module is needed, found model"):
        graph_files(tmp_path, "token_generation", 2)
