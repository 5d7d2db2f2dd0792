"""Weight-only fp8: the quantiser for the expert kernels' weights.

Trainium2's fp8 format is nl.float8_e4m3 (IEEE-like: infinities, largest finite number 240).
torch has float8_e4m3fn (no infinities, up to 448), which has the same bits for every finite
number up to 240, and that is how the weights are stored here; the kernels read them as
nl.float8_e4m3.

Every inner column of an expert has three scales: of its gate column, of its up column and of its
row of the down projection. In the kernels an inner column is a partition, so a scale is a
per-partition factor that an instruction takes for nothing. The last two always occur as a
product (the up column's result is multiplied into the down row), so they are stored as one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LARGEST = 240.0
"""The largest finite nl.float8_e4m3."""


class QuantisedExperts(NamedTuple):
    """Experts' weights in fp8, as the MoE kernels take them."""

    gate_up: torch.Tensor
    """[experts, hidden, 2 * inner], float8_e4m3fn within ±240."""
    down: torch.Tensor
    """[experts, inner, hidden], as gate_up."""
    scales: torch.Tensor
    """[experts, 2 * inner], fp32: of the gate columns, then of up columns times down rows."""


def quantise_channels(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to fp8 with one scale for each channel: absolute maximum to 240.

    Args:
        weight: any shape and float dtype.
        dim: the dimension that a scale covers (the contraction's, or what is summed over it).

    Returns:
        (quantised, scales): float8_e4m3fn of weight's shape, and fp32 without `dim`; weight is
        about quantised * scales. A channel of zeros has the scale 1.
    """
    values = weight.to(torch.float32)
    largest = values.abs().amax(dim, keepdim=True)
    scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    quantised = (values / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return quantised, scales.squeeze(dim)


def quantise_experts(gate_up: torch.Tensor, down: torch.Tensor) -> QuantisedExperts:
    """Quantise experts' weights.

    Args:
        gate_up: [experts, hidden, 2 * inner].
        down: [experts, inner, hidden].
    """
    inner = down.shape[1]
    first, columns = quantise_channels(gate_up, 1)
    second, rows = quantise_channels(down, 2)
    scales = torch.cat([columns[:, :inner], columns[:, inner:] * rows], dim=1)
    return QuantisedExperts(first, second, scales)


def dequantise_experts(experts: QuantisedExperts) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels compute with, in fp32: (gate_up, down), all of up's and down's scales in up.

    The product over an inner column is that of the separate scales.
    """
    gate_up = experts.gate_up.to(torch.float32) * experts.scales[:, None, :]
    return gate_up, experts.down.to(torch.float32)
