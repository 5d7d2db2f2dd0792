"""Row id -> the kernel, arguments and machine that stand for it.

Rows that pass the rules of `rows` and are missing here are listed by `not_written`: their kernel
is public but not expressed yet, or cannot be in current `nki`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.published.rows import Case, Launch, Row, numbers, why_not

BF16, FP32 = "bfloat16", "float32"


def _one(
    family: str,
    kernel: str,
    tensors: tuple[tuple[int, ...], ...],
    dtype: str = FP32,
    target: str = "trn2",
    **parameters: Any,
) -> Case:
    return Case(family, (Launch(kernel, tensors, dtype, target, tuple(parameters.items())),))


def _dtype(row: Row) -> str:
    return BF16 if row["dtype"].startswith("bf16") else FP32


def _matmul(family: str, kernel: str, row: Row, dtype: str, target: str, **parameters: Any) -> Case:
    rows, depth, columns = numbers(row["shape"])[:3]
    shapes = ((depth, rows), (depth, columns))
    return _one(family, f"matmul:{kernel}", shapes, dtype, target, **parameters)


_KOPT: dict[str, tuple[str, dict[str, int]]] = {
    "001": ("tiled", {}),
    "002": ("blocked", {}),
    "003": ("blocked", {"m_tiles": 2, "n_tiles": 2}),
    "004": ("blocked_k", {"m_tiles": 16, "n_tiles": 2, "k_tiles": 8}),
}
"""sdk-kopt: versions 2 to 5 of the tutorial's matmul."""

_GEMM: dict[str, tuple[str, dict[str, int]]] = {
    "001": ("tiled", {"merged": True}),
    "002": ("tile_groups", {"m_tiles": 1, "n_tiles": 2}),
    "003": ("tile_groups", {"m_tiles": 2, "n_tiles": 2}),
    "004": ("tile_groups", {"m_tiles": 4, "n_tiles": 2}),
    "005": ("tile_groups", {"m_tiles": 4, "n_tiles": 2, "m_load": 2}),
    "006": ("tile_groups", {"m_tiles": 4, "n_tiles": 2, "m_load": 4, "n_load": 2}),
}
"""autocomp 2_gemm: tile groups that grow step by step."""

_MAMBA_STEPS: dict[str, tuple[str, dict[str, bool]]] = {
    "007": ("states_outside", {}),
    "008": ("states_outside", {}),
    "009": ("channels_outside", {}),
    "010": ("channels_outside", {"load_a_once": True}),
    "011": ("carried", {}),
    "012": ("carried", {}),
    "013": ("carried", {}),
    "014": ("carried", {"chunk_loads": True}),
}
"""autocomp 3_mamba at [256 channels, 2048 steps, 16 states] (its test harness)."""

_MAMBA_VERSIONS = {
    "mamba_v1": "states_outside",
    "mamba_v2": "channels_outside",
    "mamba_v3": "time_tiled",
}


_CONV: dict[str, tuple[str, dict[str, bool]]] = {
    "033": ("streamed", {}),
    "034": ("streamed", {}),
    "035": ("streamed", {}),
    "036": ("streamed", {}),
    "037": ("psum_blocks", {}),
    "038": ("streamed", {"filters_outside": True}),
    "039": ("streamed", {"filters_outside": True}),
}
"""autocomp 4_conv1d; the last step only renames the loop over outputs."""


def _mamba(family: str, kernel: str, channels: int, time: int, **parameters: Any) -> Case:
    states = 16
    large, small = (channels, time), (states, time)
    tensors = (large, large, (channels, states), small, small)
    return _one(family, f"mamba:{kernel}", tensors, FP32, "trn1", **parameters)


def _chau_mlp(row: Row) -> Case:
    rows, depth, columns = numbers(row["shape"])
    dtype = _dtype(row)
    tensors = ((depth, rows), (depth, columns), (1, columns))
    family = f"fused MLP, trn2 {dtype}"
    if "baseline" in row["kernel"]:  # two launches; the source adds their p50s
        return Case(
            family,
            (
                Launch("chau_mlp:gemm", tensors, dtype),
                Launch("chau_mlp:gelu", ((rows, columns),), dtype),
            ),
        )
    name = "fused_pwl" if "pwl" in row["kernel"] else "fused_taylor"
    return _one(family, f"chau_mlp:{name}", tensors, dtype)


def _nkibench(row: Row) -> Case | None:
    name = row["kernel"].split()[0]
    family = "NKIBench baselines, trn1"
    shapes: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
        "silu": ("silu", ((128, 32, 7168),)),
        "adamw": ("adamw", ((10944, 2048),) * 4),
        "rope_single_freq_apply": ("rope", ((128, 262144), (64, 262144), (64, 262144))),
        "transpose_matmul": ("transpose_matmul", ((128, 16, 4096), (128, 16, 10944))),
        "matmul": ("matmul", ((4096, 5120), (5120, 12288))),
        "rmsnorm_matmul": ("rmsnorm_matmul", ((4096, 1024), (1024, 2048))),
        "add_rmsnorm_matmul": (
            "add_rmsnorm_matmul",
            ((4096, 1024), (1024, 2048), (4096, 1024), (1, 1024)),
        ),
        "matmul_add_rmsnorm": (
            "matmul_add_rmsnorm",
            ((4096, 2048), (2048, 2048), (4096, 2048), (1, 2048)),
        ),
    }
    if name not in shapes:
        return None
    kernel, tensors = shapes[name]
    return _one(family, f"nkibench:{kernel}", tensors, FP32, "trn1")


def _autotune(row: Row) -> Case:
    kernels: dict[str, tuple[str, dict[str, Any]]] = {
        "001": ("lhs_t_rhs", {}),
        "003": ("lhs_rhs", {}),
        "005": ("resident", {"versions": 2}),
        "006": ("resident", {"versions": 1}),
        "007": ("single_buffer", {}),
    }
    kernel, parameters = kernels[row["id"][-3:]]
    shapes = ((2048, 2048),) * 2
    family = "nki-autotune matmul, trn2"
    return _one(family, f"autotune_matmul:{kernel}", shapes, BF16, **parameters)


def _autocomp(row: Row) -> Case | None:
    number = row["id"][-3:]
    if number in _GEMM:
        kernel, parameters = _GEMM[number]
        return _matmul("autocomp matmul, trn1", kernel, row, BF16, "trn1", **parameters)
    if number in _MAMBA_STEPS:
        kernel, flags = _MAMBA_STEPS[number]
        return _mamba("autocomp mamba, trn1", kernel, 256, 2048, **flags)
    if 26 <= int(number) <= 32:  # [4096, 64] fp32 by its test harness, whatever the table says
        shapes = ((4096, 64),) * 3
        step = int(number) - 26
        family = "autocomp SD attention, trn1"
        return _one(family, "sd_attention:attention", shapes, FP32, "trn1", step=step)
    if number in _CONV:
        kernel, flags = _CONV[number]
        shapes = ((8, 512, 2048), (512, 3))
        return _one("autocomp conv1d, trn1", f"conv1d:{kernel}", shapes, FP32, "trn1", **flags)
    return None


def case(row: Row) -> Case | None:
    """The case of a row, or None if its kernel is not written here."""
    group, number = row["group"], row["id"][-3:]
    if group == "sdk-kopt":
        kernel, parameters = _KOPT[number]
        return _matmul("SDK tutorial matmul, trn2", kernel, row, FP32, "trn2", **parameters)
    if group == "sdk-old":
        return _matmul("autocomp matmul, trn1", "blocked_k", row, BF16, "trn1")
    if group == "sdk-mamba":
        _, time, channels, _ = numbers(row["shape"])
        version = row["kernel"].split()[0]
        return _mamba("SDK tutorial mamba, trn1", _MAMBA_VERSIONS[version], channels, time)
    if group in ("chau-attn", "chau-prof"):
        seqlen = numbers(row["shape"])[0]
        kernel = row["kernel"].split()[0]
        dtype = _dtype(row)
        shape = (128, seqlen)
        family = f"attention {'by profile ' if group == 'chau-prof' else ''}trn2 {dtype}"
        return _one(family, f"chau_attention:{kernel}", (shape,) * 3, dtype)
    makers = {
        "chau-mlp": _chau_mlp,
        "nkibench": _nkibench,
        "autocomp": _autocomp,
        "nki-autotune": _autotune,
    }
    return makers[group](row) if group in makers else None


def taken(rows: list[Row]) -> dict[str, Case]:
    """Row id -> case of every row that the rules take and whose kernel is written."""
    found = {row["id"]: case(row) for row in rows if why_not(row) is None}
    return {name: made for name, made in found.items() if made is not None}


def not_written(rows: list[Row]) -> list[str]:
    """Rows that the rules take but no kernel stands for."""
    return [row["id"] for row in rows if why_not(row) is None and case(row) is None]


_SILU_VARIANTS: dict[str, dict[str, Any]] = {
    "silu_v1": {},
    "silu_v2_k2": {"slices": 2},
    "silu_v2_k3": {"slices": 3},
    "silu_v2_k4": {"slices": 4, "in_place": True},
    "silu_v3_s2": {"parts": 2},
    "silu_v3_s4": {"parts": 4},
    "silu_v3_s7": {"parts": 7},
    "silu_v3_s8": {"parts": 8},
    "silu_v3_s7_nested": {"parts": 7},
}
_ROPE_WIDTHS = {"rope_v1": 2048, "rope_v1_w512": 512, "rope_v1_w1024": 1024, "rope_v1_w4096": 4096}


def _kda_variant(row: Row) -> Launch | None:
    name = row["kernel"].split()[-1]
    if name in _SILU_VARIANTS:
        parameters = tuple(_SILU_VARIANTS[name].items())
        return Launch("kda:silu", ((128, 32, 7168),), parameters=parameters)
    if name.startswith("adamw_v2_ch"):
        parameters = (("columns", int(name.removeprefix("adamw_v2_ch"))),)
        return Launch("kda:adamw", ((10944, 2048),) * 4, parameters=parameters)
    if name in _ROPE_WIDTHS:
        shapes = ((128, 262144), (64, 262144), (64, 262144))
        return Launch("kda:rope", shapes, parameters=(("width", _ROPE_WIDTHS[name]),))
    return None


def ratios(rows: list[Row]) -> dict[str, tuple[Launch, str, Launch]]:
    """Suspect rows of kda: row id -> (launch, baseline's row id, baseline's launch).

    Only these variants of three kernels are written; of them only the ratio to the baseline,
    which is NKIBench's own kernel, means anything.
    """
    kda = [row for row in rows if row["group"] == "kda"]
    baselines = {}
    for row in kda:
        if row["kernel"].endswith("NKIBench baseline"):
            found = _nkibench(row)
            if found is not None:
                launch = replace(found.launches[0], target="trn2")
                baselines[row["kernel"].split()[0]] = (row["id"], launch)
    made = {}
    for row in kda:
        variant = _kda_variant(row)
        if variant is not None:
            made[row["id"]] = (variant, *baselines[row["kernel"].split()[0]])
    return made
