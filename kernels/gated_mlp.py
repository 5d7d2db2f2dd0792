"""One expert's arithmetic, (silu(x gate) * (x up)) down, on operands that are in SBUF.

Shared by the expert kernels. Everything up to the last product is transposed: the expert's
inner columns lie on partitions, tokens along the free dimension. The weights are then the
stationary operand, the inner activation comes out as the next product needs it, and the scales
of fp8 weights, one per inner column, are per-partition factors that cost no instruction.
"""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split, evict


def weight_view(weight):
    """A weight as the Tensor engine takes it: one-byte dtypes hold nl.float8_e4m3."""
    if weight.dtype == nl.uint8 or weight.dtype == nl.float8_e4m3fn:
        return weight.view(nl.float8_e4m3)
    return weight


def load_scales(scales, first, width):
    """Load the scales of an expert's inner columns, interleaved as its contraction is.

    Args:
        scales: HBM tensor, fp32, any shape; `width` scales from element `first` on.
        first: element offset, compile-time.
        width: inner columns.

    Returns:
        SBUF tile [partitions, parts], fp32; element [p, c] belongs to column p * parts + c.
    """
    partitions, parts = contraction_split(width)
    tile = nl.ndarray((partitions, parts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=scales.ap(pattern=[[parts, partitions], [1, parts]], offset=first))
    return tile


def gated_inner(x_t, gate, up, gate_scales=None, up_scales=None):
    """silu(x gate) * (x up), transposed.

    Args:
        x_t: SBUF [partitions, tiles, tokens]: x with its hidden dimension interleaved;
            tokens <= 512; any strides.
        gate: SBUF [partitions, tiles, width].
        up: SBUF [partitions, tiles, width].
        gate_scales: None, or SBUF [inner partitions, parts] fp32: factors of x gate.
        up_scales: None, or as gate_scales: factors of x up.

    Returns:
        SBUF tile [inner partitions, parts, tokens] of x_t's dtype; element [p, c, t] belongs
        to inner column p * parts + c.
    """
    tiles = x_t.shape[1]
    tokens = x_t.shape[2]
    width = gate.shape[2]
    partitions, parts = contraction_split(width)
    inner = nl.ndarray((partitions, parts, tokens), dtype=x_t.dtype, buffer=nl.sbuf)
    for c in range(parts):
        gated = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.psum)
        upped = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.psum)
        for j in range(tiles):
            nisa.nc_matmul(
                dst=gated,
                stationary=gate[:, j, c:width:parts],
                moving=x_t[:, j, :],
                accumulate=j > 0,
            )
        for j in range(tiles):
            nisa.nc_matmul(
                dst=upped,
                stationary=up[:, j, c:width:parts],
                moving=x_t[:, j, :],
                accumulate=j > 0,
            )
        active = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.sbuf)
        if gate_scales == None:  # noqa: E711
            nisa.activation(dst=active, op=nl.silu, data=gated)
            nisa.tensor_tensor(dst=inner[:, c, :], data1=active, data2=upped, op=nl.multiply)
        else:
            nisa.activation(dst=active, op=nl.silu, data=gated, scale=gate_scales[:, c : c + 1])
            nisa.scalar_tensor_tensor(
                dst=inner[:, c, :],
                data=upped,
                op0=nl.multiply,
                operand0=up_scales[:, c : c + 1],
                op1=nl.multiply,
                operand1=active,
            )
    return inner


def project_down(inner, first, count, down, engine, turn=0):
    """Rows [first, first + count) of inner.T @ down.

    Args:
        inner: SBUF [inner partitions, parts, tokens], from `gated_inner`.
        first: first token.
        count: tokens, at most 128.
        down: SBUF [inner partitions, parts, hidden].
        engine: who evicts PSUM, see `blocks.evict`.
        turn: counter of evictions so far.

    Returns:
        SBUF tile [count, hidden] of inner's dtype.
    """
    parts = inner.shape[1]
    hidden = down.shape[2]
    rows = nl.ndarray((count, hidden), dtype=inner.dtype, buffer=nl.sbuf)
    width = nl.tile_size.psum_fmax
    for left in range(0, hidden, width):
        some = min(width, hidden - left)
        product = nl.ndarray((count, some), dtype=nl.float32, buffer=nl.psum)
        for c in range(parts):
            nisa.nc_matmul(
                dst=product,
                stationary=inner[:, c, first : first + count],
                moving=down[:, c, left : left + some],
                accumulate=c > 0,
            )
        evict(rows[:, left : left + some], product, engine, turn + left // width)
    return rows
