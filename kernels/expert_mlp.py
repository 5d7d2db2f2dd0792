"""One expert's gated MLP in one kernel."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split, load_contraction, transpose_into
from kernels.gated_mlp import down_parts, gated_inner, load_scales, project_down, weight_view
from kernels.tiling import load_rows


@nki.jit
def nki_fused_expert_mlp_kernel(
    x,
    gate_weight,
    up_weight,
    down_weight,
    gate_scale=None,
    up_scale=None,
    token_block=256,
    evict_engine="both",
):
    """out = (silu(x @ gate_weight) * (x @ up_weight)) @ down_weight.

    The weights are loaded once and stay in SBUF; tokens pass in blocks. Products accumulate in
    fp32 in PSUM; silu and the multiplication read them there. With fp8 weights (kernels/
    quantise.py) a weight is its stored number times the scale of its inner column; the
    column's scale of down_weight is part of up_scale.

    On two cores (LNC2) each takes half of the tokens.

    Args:
        x: HBM tensor [tokens, hidden], fp32 or bf16 (bf16 with fp8 weights).
        gate_weight: HBM tensor [hidden, inner] of x's dtype, or one-byte float8_e4m3 (also as
            uint8, or float8_e4m3fn whose values are at most 240).
        up_weight: as gate_weight.
        down_weight: HBM tensor [inner, hidden], as gate_weight.
        gate_scale: HBM tensor [inner] fp32, with fp8 weights.
        up_scale: HBM tensor [inner] fp32, with fp8 weights: the scale of up_weight's column
            times that of down_weight's row.
        token_block: tokens at a time, 1 to 512.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.

    Returns:
        HBM tensor [tokens, hidden] of x's dtype.

    Limits: hidden and inner above 128 divide into ceil(n / 128) equal parts; the three weights
    take at most 128 KiB of each partition.
    HBM bytes: weights + 2 * tokens * hidden * itemsize. MACs: 3 * tokens * hidden * inner.
    """
    tokens, hidden = x.shape
    inner_width = gate_weight.shape[1]
    assert gate_weight.shape[0] == hidden, (
        "nki_fused_expert_mlp_kernel: gate_weight must be [x's hidden dimension, inner]"
    )
    assert tuple(up_weight.shape) == (hidden, inner_width), (
        "nki_fused_expert_mlp_kernel: up_weight must have gate_weight's shape"
    )
    assert tuple(down_weight.shape) == (inner_width, hidden), (
        "nki_fused_expert_mlp_kernel: down_weight must be [inner, x's hidden dimension]"
    )
    assert 1 <= token_block <= 512, "nki_fused_expert_mlp_kernel: token_block must be 1 to 512"
    weights = (weight_view(gate_weight), weight_view(up_weight), weight_view(down_weight))
    low = weights[0].dtype == nl.float8_e4m3
    itemsize = 1 if low else (4 if x.dtype == nl.float32 else 2)
    assert 3 * hidden * inner_width * itemsize <= 128 * 131072, (
        "nki_fused_expert_mlp_kernel: the weights need more than 128 KiB of each partition"
    )
    assert low or gate_weight.dtype == x.dtype, (
        "nki_fused_expert_mlp_kernel: gate_weight must have x's dtype, or be float8_e4m3"
    )
    assert not low or x.dtype == nl.bfloat16, (
        "nki_fused_expert_mlp_kernel: x must be bfloat16 with fp8 weights"
    )
    scales = None
    if low:
        assert gate_scale != None, (  # noqa: E711
            "nki_fused_expert_mlp_kernel: fp8 weights need gate_scale"
        )
        assert up_scale != None, (  # noqa: E711
            "nki_fused_expert_mlp_kernel: fp8 weights need up_scale"
        )
        columns = (
            load_scales(gate_scale, 0, inner_width),
            load_scales(up_scale, 0, inner_width),
        )
        scales = []
        for c in range(columns[0].shape[1]):
            scales.append((columns[0][:, c : c + 1], columns[1][:, c : c + 1]))
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    cores = nl.num_programs()
    gate = load_contraction(weights[0], 0, inner_width)
    up = load_contraction(weights[1], 0, inner_width)
    down = down_parts(load_contraction(weights[2], 0, hidden), inner_width)
    last = tokens * (core + 1) // cores
    for start in range(tokens * core // cores, last, token_block):
        block = min(token_block, last - start)
        x_t = load_transposed(x, start, block, evict_engine)
        inner = gated_inner(x_t, gate, up, scales)
        for first in range(0, block, nl.tile_size.pmax):
            count = min(nl.tile_size.pmax, block - first)
            rows = project_down(inner, first, count, down, evict_engine)
            nisa.dma_copy(dst=out[start + first : start + first + count, :], src=rows)
    return out


def load_transposed(x, start, count, engine):
    """Rows [start, start + count) of x as the interleaved operand [partitions, tiles, count]."""
    partitions, tiles = contraction_split(x.shape[1])
    result = nl.ndarray((partitions, tiles, count), dtype=x.dtype, buffer=nl.sbuf)
    for first in range(0, count, nl.tile_size.pmax):
        some = min(nl.tile_size.pmax, count - first)
        rows = load_rows(x, start + first, some)
        transpose_into(result[:, :, first : first + some], rows, engine)
    return result
