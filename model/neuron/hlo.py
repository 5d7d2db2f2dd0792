"""MACs of compiled graphs, counted in the HLO that NxD writes beside them.

The contest's formula: a `dot` has batch * M * K * N MACs; a `custom-call` to
`AwsNeuronCustomNativeKernel` those its backend configuration names. Loop bodies count once. The
few fields that are needed are described here, so that no Neuron package has to be installed;
their numbers are those of xla/service/hlo.proto and xla/xla_data.proto.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from model.neuron.availability import NeuronError
from model.records import Graph

NKI_TARGET = "AwsNeuronCustomNativeKernel"
FOLDERS: dict[Graph, str] = {
    "context_encoding": "context_encoding_model",
    "token_generation": "token_generation_model",
}

_STRING, _BYTES, _INT64, _MESSAGE = 9, 12, 3, 11
_MESSAGES: dict[str, dict[str, tuple[int, int, bool, str]]] = {
    "Shape": {"dimensions": (3, _INT64, True, "")},
    "DotDimensionNumbers": {
        "lhs_contracting_dimensions": (1, _INT64, True, ""),
        "rhs_contracting_dimensions": (2, _INT64, True, ""),
        "lhs_batch_dimensions": (3, _INT64, True, ""),
        "rhs_batch_dimensions": (4, _INT64, True, ""),
    },
    "Instruction": {
        "name": (1, _STRING, False, ""),
        "opcode": (2, _STRING, False, ""),
        "shape": (3, _MESSAGE, False, "Shape"),
        "custom_call_target": (28, _STRING, False, ""),
        "dot_dimension_numbers": (30, _MESSAGE, False, "DotDimensionNumbers"),
        "id": (35, _INT64, False, ""),
        "operand_ids": (36, _INT64, True, ""),
        "backend_config": (43, _BYTES, False, ""),
    },
    "Computation": {
        "name": (1, _STRING, False, ""),
        "instructions": (2, _MESSAGE, True, "Instruction"),
    },
    "Module": {
        "name": (1, _STRING, False, ""),
        "computations": (3, _MESSAGE, True, "Computation"),
    },
}
"""Message -> field -> (number, type, whether repeated, message of the field)."""


@functools.cache
def module_class() -> Any:
    """The protobuf class of an HLO module, with the fields above."""
    file = descriptor_pb2.FileDescriptorProto(
        name="nki_assay_hlo.proto", package="nki_assay_hlo", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated, of) in fields.items():
            message.field.add(
                name=field,
                number=number,
                type=kind,
                label=3 if repeated else 1,
                type_name=f".nki_assay_hlo.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nki_assay_hlo.Module"))


@dataclass(frozen=True)
class MacCount:
    """MACs of one graph at one bucket, or of several."""

    nki: int
    total: int
    nki_calls: int
    """Custom calls to NKI kernels."""

    def __add__(self, other: MacCount) -> MacCount:
        return MacCount(
            self.nki + other.nki, self.total + other.total, self.nki_calls + other.nki_calls
        )


def count_macs(path: Path) -> MacCount:
    """The MACs of one HLO module file.

    Raises:
        NeuronError: the file is missing, no HLO, or a kernel in it does not say its MACs.
    """
    module = module_class()()
    try:
        module.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise NeuronError(f"{path}: no such HLO file; compile again") from None
    except (OSError, DecodeError) as error:
        raise NeuronError(f"{path}: cannot be read as an HLO module: {error}") from None
    if not any(computation.instructions for computation in module.computations):
        raise NeuronError(f"{path}: an HLO module without instructions; it may be truncated")
    nki = other = calls = 0
    for computation in module.computations:
        known = {instruction.id: instruction for instruction in computation.instructions}
        for instruction in computation.instructions:
            if instruction.opcode == "dot":
                other += _dot_macs(instruction, known, path)
            elif instruction.custom_call_target == NKI_TARGET:
                nki += _kernel_macs(instruction, path)
                calls += 1
    return MacCount(nki, nki + other, calls)


def _dot_macs(dot: Any, known: dict[int, Any], path: Path) -> int:
    try:
        left, right = (list(known[i].shape.dimensions) for i in dot.operand_ids)
    except (KeyError, ValueError):
        raise NeuronError(f"{path}: dot {dot.name!r} lacks an operand; truncated?") from None
    numbers = dot.dot_dimension_numbers
    shared = {*numbers.rhs_contracting_dimensions, *numbers.rhs_batch_dimensions}
    macs: int = math.prod([*left, *(n for i, n in enumerate(right) if i not in shared)])
    return macs


def _kernel_macs(call: Any, path: Path) -> int:
    try:
        value = json.loads(base64.b64decode(call.backend_config, validate=True))["mac_count"]
        return int(value)
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise NeuronError(
            f"{path}: NKI kernel {call.name!r} has no mac_count in its backend configuration; "
            "the contest would count it as 0"
        ) from None


def graph_files(work_directory: Path, graph: Graph, buckets: int) -> list[Path]:
    """The HLO files of a graph, one for each bucket, smallest first.

    Raises:
        NeuronError: a bucket has none, or several.
    """
    files = []
    for bucket in range(buckets):
        folder = work_directory / FOLDERS[graph] / f"_tp0_bk{bucket}"
        found = sorted(folder.glob("*hlo_module*")) if folder.is_dir() else []
        found = found or sorted(folder.glob("model/graph.hlo"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise NeuronError(
                f"{folder}: one HLO module is needed, found {names}; delete {work_directory} "
                "and compile again"
            )
        files += found
    return files
