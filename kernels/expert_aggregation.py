"""The weighted sum of a token's expert outputs."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import evict, filled


@nki.jit
def nki_expert_aggregation_kernel(expert_outputs, weights, columns=2048, evict_engine="both"):
    """out[t] = sum over j of weights[t, j] * expert_outputs[t, j], in fp32 with one final cast.

    Tokens go 128 at a time, one per partition. The sum is a product on the Tensor engine:
    with a diagonal matrix of the weights, it is the PSUM accumulation over j. The Vector engine
    would need twice as long as the DMA; the Tensor engine keeps up with it. The weights are
    rounded to expert_outputs' dtype, as the reference's are.

    On two cores (LNC2) each takes half of the tokens.

    Args:
        expert_outputs: HBM tensor [tokens, top_k, hidden], fp32 or bf16.
        weights: HBM tensor [tokens, top_k], fp32.
        columns: of the hidden dimension at a time, a multiple of 512 up to 2048.
        evict_engine: "vector", "scalar" or "both": who copies sums out of PSUM.

    Returns:
        HBM tensor [tokens, hidden] of expert_outputs' dtype.

    Limits: top_k <= 32.
    HBM bytes: tokens * (top_k + 1) * hidden * itemsize. MACs: 128 * tokens * top_k * hidden (on
    a diagonal; tokens * top_k * hidden of them count).
    """
    tokens, top_k, hidden = expert_outputs.shape
    assert tuple(weights.shape) == (tokens, top_k), (
        "nki_expert_aggregation_kernel: weights must be [tokens, top_k]"
    )
    assert top_k <= 32, "nki_expert_aggregation_kernel: expert_outputs has a top_k above 32"
    assert columns in (512, 1024, 1536, 2048), (
        "nki_expert_aggregation_kernel: columns must be 512, 1024, 1536 or 2048"
    )
    out = nl.ndarray((tokens, hidden), dtype=expert_outputs.dtype, buffer=nl.shared_hbm)
    unit = identity(nl.tile_size.pmax)
    core = nl.program_id(0)
    cores = nl.num_programs()
    last = tokens * (core + 1) // cores
    for start in range(tokens * core // cores, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        shares = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=shares, src=weights[start : start + count, :])
        diagonals = diagonal_weights(unit, shares, expert_outputs.dtype)
        for left in range(0, hidden, columns):
            width = min(columns, hidden - left)
            parts = []
            for j in range(top_k):
                part = nl.ndarray((count, width), dtype=expert_outputs.dtype, buffer=nl.sbuf)
                nisa.dma_copy(
                    dst=part,
                    src=expert_outputs[start : start + count, j, left : left + width],
                )
                parts.append(part)
            total = weighted_sum(diagonals, parts, evict_engine)
            nisa.dma_copy(dst=out[start : start + count, left : left + width], src=total)
    return out


def identity(size):
    """The identity matrix as an SBUF tile [size, size], fp32."""
    ones = filled((size, size), 1.0, nl.float32)
    unit = nl.ndarray((size, size), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=unit, pattern=[[-1, size]], offset=0, channel_multiplier=1, on_true_tile=ones,
        on_false_value=0.0, cmp_op=nl.equal,
    )  # fmt: skip
    return unit


def diagonal_weights(unit, shares, dtype):
    """One diagonal matrix for each column of shares.

    Args:
        unit: SBUF [P, P], fp32, the identity (or larger).
        shares: SBUF [P, K], fp32.
        dtype: of the result.

    Returns:
        SBUF tile [P, K, P].
    """
    count, top_k = shares.shape
    diagonals = nl.ndarray((count, top_k, count), dtype=dtype, buffer=nl.sbuf)
    for j in range(top_k):
        nisa.tensor_scalar(
            dst=diagonals[:, j, :], data=unit[0:count, 0:count], op0=nl.multiply,
            operand0=shares[:, j : j + 1],
        )  # fmt: skip
    return diagonals


def weighted_sum(diagonals, parts, engine):
    """The sum of diagonals[:, j, :] @ parts[j].

    Args:
        diagonals: SBUF [P, K, P], from `diagonal_weights`.
        parts: K SBUF tiles [P, W], W <= 2048.
        engine: who evicts PSUM, see `blocks.evict`.

    Returns:
        SBUF tile [P, W] of the parts' dtype.
    """
    count, width = parts[0].shape
    total = nl.ndarray((count, width), dtype=parts[0].dtype, buffer=nl.sbuf)
    step = nl.tile_size.psum_fmax
    sums = []
    for left in range(0, width, step):
        sums.append(nl.ndarray((count, min(step, width - left)), dtype=nl.float32, buffer=nl.psum))
    for j in range(len(parts)):
        for n in range(len(sums)):
            nisa.nc_matmul(
                dst=sums[n],
                stationary=diagonals[:, j, :],
                moving=parts[j][:, n * step : n * step + sums[n].shape[1]],
                accumulate=j > 0,
            )
    for n in range(len(sums)):
        evict(total[:, n * step : n * step + sums[n].shape[1]], sums[n], engine, n)
    return total
