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


def shared_columns(width):
    """Inner columns whose gate and up halves fit one product: those beyond 128, if 32 or 64.

    192 inner columns are 384 of gate and up together: three products of 128, not four of 96.
    """
    rest = width - nl.tile_size.pmax
    if rest == 32 or rest == 64:
        return rest
    return 0


def product(stationary, moving):
    """The sum over j of stationary[:, j].T @ moving[:, j]: a new PSUM tile [M, N], fp32.

    Args:
        stationary: SBUF [partitions, tiles, M], or [partitions, tiles, 2, M / 2].
        moving: SBUF [partitions, tiles, N].
    """
    rows = stationary.shape[2]
    if len(stationary.shape) == 4:
        rows = rows * stationary.shape[3]
    result = nl.ndarray((rows, moving.shape[2]), dtype=nl.float32, buffer=nl.psum)
    for j in range(moving.shape[1]):
        weight = stationary[:, j, :]
        if len(stationary.shape) == 4:
            weight = stationary[:, j, :, :]
        nisa.nc_matmul(dst=result, stationary=weight, moving=moving[:, j, :], accumulate=j > 0)
    return result


def gate(dst, gated, upped, active, scales):
    """dst = silu(gated) * upped.

    Args:
        dst: SBUF [P, tokens].
        gated: PSUM [P, tokens]; may lie in other partitions than the rest.
        upped: PSUM [P, tokens].
        active: SBUF [P, tokens], fp32, scratch.
        scales: None, or SBUF columns [P, 1] fp32: (of gated, in its partitions; of upped).
    """
    if scales == None:  # noqa: E711
        nisa.activation(dst=active, op=nl.silu, data=gated)
        nisa.tensor_tensor(dst=dst, data1=active, data2=upped, op=nl.multiply)
        return
    nisa.activation(dst=active, op=nl.silu, data=gated, scale=scales[0])
    nisa.scalar_tensor_tensor(
        dst=dst, data=upped, op0=nl.multiply, operand0=scales[1], op1=nl.multiply, operand1=active
    )


def gated_inner(x_t, gate_weight, up_weight, scales=None):
    """silu(x gate) * (x up), transposed.

    Args:
        x_t: SBUF [partitions, tiles, tokens]: x with its hidden dimension interleaved;
            tokens <= 512; any strides.
        gate_weight: SBUF [partitions, tiles, width].
        up_weight: SBUF [partitions, tiles, width].
        scales: None, or a pair for each of the result's parts, see `gate`.

    Returns:
        A list of SBUF tiles [inner partitions, tokens] of x_t's dtype; row p of part c belongs
        to inner column p * parts + c.
    """
    tokens = x_t.shape[2]
    width = gate_weight.shape[2]
    partitions, parts = contraction_split(width)
    inner = []
    for c in range(parts):
        gated = product(gate_weight[:, :, c:width:parts], x_t)
        upped = product(up_weight[:, :, c:width:parts], x_t)
        part = nl.ndarray((partitions, tokens), dtype=x_t.dtype, buffer=nl.sbuf)
        active = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.sbuf)
        gate(part, gated, upped, active, None if scales == None else scales[c])  # noqa: E711
        inner.append(part)
    return inner


def gated_inner_shared(x_t, gate_up, scales=None):
    """As `gated_inner` for 128 inner columns and `shared_columns` more, in three products.

    Args:
        x_t: as there.
        gate_up: SBUF [partitions, tiles, 2 * width]: gate columns, then up columns.
        scales: None, or two pairs.

    Returns:
        Two SBUF views: [128, tokens] of the first columns; [rest, tokens] of the others, in
        partitions `rest` to 2 * rest.
    """
    partitions, tiles, columns = gate_up.shape
    tokens = x_t.shape[2]
    size = nl.tile_size.pmax
    width = columns // 2
    rest = width - size
    first, second = (None, None) if scales == None else scales  # noqa: E711
    gated = product(gate_up[:, :, 0:size], x_t)
    upped = product(gate_up[:, :, width : width + size], x_t)
    halves = gate_up.reshape((partitions, tiles, 2, width))
    both = product(halves[:, :, :, size:width], x_t)
    inner = nl.ndarray((size, tokens), dtype=x_t.dtype, buffer=nl.sbuf)
    others = nl.ndarray((2 * rest, tokens), dtype=x_t.dtype, buffer=nl.sbuf)
    for part in range(2):
        active = nl.ndarray((size, tokens), dtype=nl.float32, buffer=nl.sbuf)
        if part == 0:
            gate(inner, gated, upped, active, first)
        else:  # the Scalar engine moves the gate's half to the other's partitions
            gate(
                others[rest : 2 * rest, :],
                both[0:rest, :],
                both[rest : 2 * rest, :],
                active[rest : 2 * rest, :],
                second,
            )
    return [inner, others[rest : 2 * rest, :]]


def down_parts(down, width):
    """The rows of a down weight in SBUF, [partitions, parts, hidden], part by part."""
    rest = shared_columns(width)
    if rest > 0 and down.shape[0] == nl.tile_size.pmax:
        return [down[:, 0, :], down[rest : 2 * rest, 1, :]]
    parts = []
    for c in range(down.shape[1]):
        parts.append(down[:, c, :])
    return parts


def project_down(inner, first, count, down, engine, turn=0):
    """Rows [first, first + count) of inner.T @ down.

    Args:
        inner: SBUF [inner partitions, tokens], part by part, from `gated_inner`.
        first: first token.
        count: tokens, at most 128.
        down: SBUF [inner partitions, hidden], part by part, from `down_parts`.
        engine: who evicts PSUM, see `blocks.evict`.
        turn: counter of evictions so far.

    Returns:
        SBUF tile [count, hidden] of inner's dtype.
    """
    hidden = down[0].shape[1]
    rows = nl.ndarray((count, hidden), dtype=inner[0].dtype, buffer=nl.sbuf)
    width = nl.tile_size.psum_fmax
    for left in range(0, hidden, width):
        some = min(width, hidden - left)
        result = nl.ndarray((count, some), dtype=nl.float32, buffer=nl.psum)
        for c in range(len(inner)):
            nisa.nc_matmul(
                dst=result,
                stationary=inner[c][:, first : first + count],
                moving=down[c][:, left : left + some],
                accumulate=c > 0,
            )
        evict(rows[:, left : left + some], result, engine, turn + left // width)
    return rows
