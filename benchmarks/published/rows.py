"""Which rows of published_latencies.csv are predicted, by which rule, with which kernel.

A row is taken if it passes `RULES` in order; the first rule it breaks is the reason it is not.
The rules look at what was measured and at whether its code is public, never at how well it fits.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent / "published_latencies.csv"
Row = dict[str, str]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what to specialise and on which machine to play it."""

    kernel: str
    """module:function in benchmarks.published."""
    tensors: tuple[tuple[int, ...], ...]
    """Shapes of the tensor arguments, in order."""
    dtype: str = "float32"
    target: str = "trn2"
    parameters: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Case:
    """A published row as launches (their latencies add up) and the family it is ranked in."""

    family: str
    launches: tuple[Launch, ...]


SOURCES = {
    "sdk-kopt": "AWS Neuron SDK",
    "sdk-mamba": "AWS Neuron SDK",
    "sdk-dma": "AWS Neuron SDK",
    "sdk-dmacurve": "AWS Neuron SDK",
    "sdk-old": "AWS Neuron SDK",
    "nki-samples": "AWS Neuron SDK",
    "chau-attn": "trainium-kernel-fusion",
    "chau-mlp": "trainium-kernel-fusion",
    "chau-prof": "trainium-kernel-fusion",
    "trn2-isa": "trainium-kernel-fusion",
    "trn2-dma": "trainium-kernel-fusion",
    "nkibench": "AccelOpt / NKIBench",
    "autocomp": "autocomp",
    "nki-autotune": "nki-autotune",
    "inf2-micro": "triton-viz",
    "trnsci": "trnsci",
    "kda": "kda-for-trainium",
    "neuronmm": "NeuronMM",
    "trn2-matmul": "trn2-matmul",
    "trn2-coll": "trn2-collectives",
}
"""Group -> who measured it."""

CALIBRATION = ("trn2-isa", "trn2-dma", "sdk-dma", "sdk-dmacurve", "inf2-micro")
"""Groups of instruction and DMA measurements: the model is calibrated on them."""
HOST_TIMED = ("host timed", "latency_ms_p50", "latency", "host-timed")
NOT_ONE_CORE = re.compile(r"LNC2|device not named\)$|remote profiler", re.IGNORECASE)
NO_NKI_CODE = re.compile(r"PyTorch|compiler|AccelOpt best|not published|\(approx|torch", re.I)
SPILLS = re.compile(r"spill (\d+)/(\d+)|spills", re.IGNORECASE)


def _spills(row: Row) -> bool:
    found = SPILLS.search(row["notes"])
    if found is None:
        return False
    return found.group(1) is None or int(found.group(1)) + int(found.group(2)) > 0


def _one_core(row: Row) -> bool:
    device = row["device"]
    if "NeuronCore-v2 guide" in device:  # generation and core count are named, the box is not
        return True
    return NOT_ONE_CORE.search(device) is None and device.startswith(("trn1", "trn2", "inf2"))


RULES: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("calibration: an instruction or DMA row", lambda r: r["group"] not in CALIBRATION),
    ("no latency published", lambda r: bool(r["measured_us"])),
    ("suspect: grade C", lambda r: r["confidence"] in ("A", "B")),
    ("not one NeuronCore of a named generation", _one_core),
    ("timed on the host or a whole model", lambda r: not r["metric"].startswith(HOST_TIMED)),
    (
        "no public NKI kernel: compiler output or unpublished code",
        lambda r: not NO_NKI_CODE.search(r["kernel"] + " " + r["code_ref"]),
    ),
    ("the source reports compiler spills, which are no part of its code", lambda r: not _spills(r)),
)
"""(reason if broken, test), in order."""


def read_rows(path: Path = TABLE) -> list[Row]:
    """The published table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def why_not(row: Row) -> str | None:
    """The first rule that a row breaks, or None if the rules take it."""
    for reason, keeps in RULES:
        if not keeps(row):
            return reason
    return None


def numbers(text: str) -> list[int]:
    """The integers of a shape such as "M128 K128 N512", in order."""
    return [int(found) for found in re.findall(r"\d+", text)]
