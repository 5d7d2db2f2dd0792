"""A whole mixture-of-experts layer for few tokens: norm, router, chosen experts, their sum."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split, filled, load_contraction, transpose_interleaved
from kernels.chosen_experts import chosen_scales, run_experts
from kernels.gated_mlp import weight_view
from kernels.projection import warm_tensor_engine
from kernels.routing import best_experts, softmax_shares, sum_of_all


@nki.jit
def nki_moe_decode_kernel(
    x,
    norm_weight,
    router_weight,
    gate_up,
    down,
    scales=None,
    eps=1e-6,
    top_k=8,
    normalise=True,
    buffers=4,
    warm_up=3,
):
    """out = sum over the chosen experts e of weight_e * MLP_e(n), n = rmsnorm(x) * norm_weight.

    weight, e = topk(softmax(n @ router_weight)); MLP_e(n) = (silu(n @ gate_e) * (n @ up_e)) @
    down_e. Only the chosen experts' weights are read from HBM: the expert numbers that the
    Vector engine finds are the addresses of the DMAs. All else hides behind these:

    - The RMS factor is a number per token, so the router multiplies x * norm_weight while the
      factor is still being computed; it scales the logits inside the softmax.
    - Weights are the stationary operand, a token is a moving column. The sum over experts and
      their weighting is the PSUM accumulation of the down projection.
    - On two cores (LNC2) the token-expert pairs are dealt out alternately, and the two sums are
      exchanged once at the end. Both cores route for themselves.

    Args:
        x: HBM tensor [tokens, hidden], fp32 or bf16 (bf16 with fp8 weights), 1 to 32 tokens.
        norm_weight: HBM tensor [hidden] of x's dtype.
        router_weight: HBM tensor [hidden, experts] of x's dtype.
        gate_up: HBM tensor [experts, hidden, 2 * inner]: gate columns, then up columns; of x's
            dtype, or one-byte float8_e4m3 (also as uint8, or float8_e4m3fn up to 240).
        down: HBM tensor [experts, inner, hidden], dtype as gate_up.
        scales: HBM tensor [experts, 2 * inner] fp32 with fp8 weights: of the gate columns,
            then of the up columns times down rows (kernels/quantise.py); else None.
        eps: compile-time float > 0.
        top_k: compile-time int, experts per token, 1 to experts.
        normalise: compile-time bool: the weights of a token are scaled to a sum of 1.
        buffers: experts whose weights are in SBUF at a time; more hide more of HBM's latency.
        warm_up: products of zeros that raise the Tensor engine's clock before the router's.

    Returns:
        HBM tensor [tokens, hidden] of x's dtype.

    Limits: 8 <= experts <= 512; hidden <= 4096, above 128 divides into ceil(n / 128) equal
    parts; an expert's weights take at most 160 KiB of each partition.
    HBM bytes: tokens * top_k experts' weights (3 * hidden * inner * itemsize each), and
    router_weight, once per core. MACs: tokens * hidden * (experts + 3 * top_k * inner).
    """
    tokens, hidden = x.shape
    experts = router_weight.shape[1]
    inner = down.shape[1]
    steps = contraction_split(hidden)[1]
    assert 1 <= tokens <= 32, "nki_moe_decode_kernel: x must have 1 to 32 tokens"
    assert hidden <= 4096, "nki_moe_decode_kernel: x has a hidden dimension above 4096"
    assert tokens * steps <= 512, (
        "nki_moe_decode_kernel: x has more than 65536 elements, a PSUM bank of sums"
    )
    assert 8 <= experts <= 512, "nki_moe_decode_kernel: router_weight must have 8 to 512 experts"
    assert 1 <= top_k <= experts, "nki_moe_decode_kernel: top_k must be 1 to the experts"
    assert tuple(gate_up.shape) == (experts, hidden, 2 * inner), (
        "nki_moe_decode_kernel: gate_up must be [experts, hidden, 2 * inner]"
    )
    assert tuple(down.shape) == (experts, inner, hidden), (
        "nki_moe_decode_kernel: down must be [experts, inner, hidden]"
    )
    weights = (weight_view(gate_up), weight_view(down))
    low = weights[0].dtype == nl.float8_e4m3
    assert low or weights[0].dtype == x.dtype, (
        "nki_moe_decode_kernel: gate_up must have x's dtype, or be float8_e4m3"
    )
    assert not low or x.dtype == nl.bfloat16, (
        "nki_moe_decode_kernel: x must be bfloat16 with fp8 weights"
    )
    assert not low or scales != None, (  # noqa: E711
        "nki_moe_decode_kernel: fp8 weights need scales"
    )
    assert not low or tokens * top_k <= 512, (
        "nki_moe_decode_kernel: x has more than 512 token-expert pairs, too many with fp8 weights"
    )
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    warm_tensor_engine(warm_up)
    product, squares, logits = weigh_and_route(x, norm_weight, router_weight)
    copy = None if normalise else copied(logits)
    values, chosen = best_experts(logits, top_k)
    factor, normed = normalise_weighted(product, squares, eps, x.dtype)
    everything = None if normalise else sum_of_all(copy, factor)
    shares = softmax_shares(values[:, 0:top_k], everything, factor)
    shares, chosen, numbers = on_all_partitions(shares, chosen[:, 0:top_k], low)
    factors = None
    if low:
        factors = chosen_scales(scales, numbers, inner)
    total = run_experts(normed, shares, chosen, top_k, weights, factors, buffers)
    store_sum(total, out)
    return out


def copied(tile):
    """A copy in SBUF, fp32."""
    copy = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=copy, src=tile)
    return copy


def weigh_and_route(x, norm_weight, router_weight):
    """x * norm_weight, transposed, its squares, and the logits, all without the RMS factor.

    Returns:
        (product, squares, logits): SBUF [partitions, tiles, tokens], fp32; SBUF
        [partitions, tokens], fp32, sums of x * x over tiles; PSUM [tokens, experts], fp32.
    """
    tokens, hidden = x.shape
    experts = router_weight.shape[1]
    partitions, tiles = contraction_split(hidden)
    rows = nl.ndarray((tokens + 1, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows[0:tokens, :], src=x)
    nisa.dma_copy(
        dst=rows[tokens : tokens + 1, :],
        src=norm_weight.reshape((1, hidden)),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.scalar,
    )
    router = load_contraction(router_weight, 0, experts)
    turned = transpose_interleaved(rows, "vector")  # the last column is norm_weight
    plain = turned[:, :, 0:tokens]
    weight = turned.ap(
        pattern=[[tiles * (tokens + 1), partitions], [tokens + 1, tiles], [0, tokens]],
        offset=tokens,
    )
    weighted = nl.ndarray((partitions, tiles, tokens), dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=weighted, data1=plain, data2=weight, op=nl.multiply)
    logits = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.psum)
    for j in range(tiles):
        nisa.nc_matmul(
            dst=logits, stationary=weighted[:, j, :], moving=router[:, j, :], accumulate=j > 0
        )
    squares = nl.ndarray((partitions, tokens, tiles), dtype=nl.float32, buffer=nl.sbuf)
    by_tile = squares.ap(
        pattern=[[tokens * tiles, partitions], [1, tiles], [tiles, tokens]], offset=0
    )
    nisa.activation(dst=by_tile, op=nl.square, data=plain)
    sums = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=squares, axis=2)
    product = nl.ndarray((partitions, tiles, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=product, data1=plain, data2=weight, op=nl.multiply)
    return product, sums, logits


def normalise_weighted(product, squares, eps, dtype):
    """The RMS factor of each token, and the normalised tokens.

    Returns:
        (factor, normed): SBUF column [tokens, 1], fp32; SBUF [partitions, tiles, tokens].
    """
    partitions, tiles, tokens = product.shape
    hidden = partitions * tiles
    ones = filled((partitions, nl.tile_size.pmax), 1.0, nl.float32)
    by_token = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=by_token, stationary=squares, moving=ones[:, 0:1], accumulate=False)
    factor = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.sbuf)
    root_mean(factor, by_token, hidden, eps)
    everywhere = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=everywhere, stationary=ones[:, 0:partitions], moving=squares, accumulate=False
    )
    factors = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.sbuf)
    root_mean(factors, everywhere, hidden, eps)
    normed = nl.ndarray((partitions, tiles, tokens), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=normed,
        data1=product,
        data2=factors.ap(pattern=[[tokens, partitions], [0, tiles], [1, tokens]], offset=0),
        op=nl.multiply,
    )
    return factor, normed


def root_mean(dst, total, count, eps):
    """dst = 1 / sqrt(total / count + eps), from PSUM to SBUF."""
    nisa.tensor_scalar(
        dst=dst, data=total, op0=nl.multiply, operand0=1.0 / count, op1=nl.add, operand1=eps
    )
    nisa.activation(dst=dst, op=nl.rsqrt, data=dst)


def on_all_partitions(shares, chosen, all_numbers):
    """Every token's weights in every partition, and all expert numbers in partition 0.

    A product with ones sums over tokens; each token's row is first moved to columns of its own.

    Args:
        shares: SBUF [tokens, K], fp32.
        chosen: SBUF [tokens, K], uint32.
        all_numbers: whether expert numbers are needed in every partition too.

    Returns:
        (SBUF [128, tokens, K] fp32, SBUF [1, tokens, K] integers, and None or SBUF
        [128, tokens, K] fp32).
    """
    tokens, most = shares.shape
    everywhere = spread_tokens(shares)
    if tokens == 1 and not all_numbers:
        return everywhere, chosen.reshape((1, 1, most)), None
    values = nl.ndarray((tokens, most), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=values, src=chosen)
    numbers = spread_tokens(values)
    if tokens == 1:  # there is no need to wait for these
        return everywhere, chosen.reshape((1, 1, most)), numbers
    first = nl.ndarray((1, tokens, most), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=first, src=numbers[0:1, :, :])
    return everywhere, first, numbers


def spread_tokens(rows):
    """All rows of an SBUF tile [tokens, K] in every partition: SBUF [128, tokens, K], fp32."""
    tokens, most = rows.shape
    ones = filled((tokens, nl.tile_size.pmax), 1.0, nl.float32)
    everywhere = nl.ndarray((nl.tile_size.pmax, tokens, most), dtype=nl.float32, buffer=nl.sbuf)
    spread = rows.reshape((tokens, 1, most))
    if tokens > 1:
        spread = nl.ndarray((tokens, tokens, most), dtype=nl.float32, buffer=nl.sbuf)
        nisa.affine_select(
            dst=spread,
            pattern=[[-1, tokens], [0, most]],
            offset=0,
            channel_multiplier=1,
            on_true_tile=rows.ap(pattern=[[most, tokens], [0, tokens], [1, most]], offset=0),
            on_false_value=0.0,
            cmp_op=nl.equal,
        )
    group = max(1, nl.tile_size.psum_fmax // most)
    for first in range(0, tokens, group):
        some = min(group, tokens - first)
        total = nl.ndarray((nl.tile_size.pmax, some, most), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=total,
            stationary=ones,
            moving=spread[:, first : first + some, :],
            accumulate=False,
        )
        nisa.tensor_copy(dst=everywhere[:, first : first + some, :], src=total)
    return everywhere


def store_sum(total, out):
    """Add the other core's part, and write this core's half of the rows.

    Transposed once more, a row is `partitions` neighbours in HBM; the other way round a DMA
    would write single elements.

    Args:
        total: SBUF [partitions, tokens, tiles], fp32.
        out: HBM tensor [tokens, hidden].
    """
    partitions, tokens, tiles = total.shape
    core = nl.program_id(0)
    cores = nl.num_programs()
    rows = tokens * tiles
    flat = total.reshape((partitions, rows))
    by_row = out.reshape((rows, partitions))
    for start in range(0, rows, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, rows - start)
        turned = nl.ndarray((count, partitions), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=flat[:, start : start + count])
        result = nl.ndarray((count, partitions), dtype=out.dtype, buffer=nl.sbuf)
        if cores > 1:
            mine = nl.ndarray((count, partitions), dtype=nl.float32, buffer=nl.sbuf)
            other = nl.ndarray((count, partitions), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=mine, src=turned)
            nisa.sendrecv(
                src=mine,
                dst=other,
                send_to_rank=1 - core,
                recv_from_rank=1 - core,
                pipe_id=0,
                dma_engine=nisa.dma_engine.gpsimd_dma,
            )
            nisa.tensor_tensor(dst=result, data1=mine, data2=other, op=nl.add)
        else:
            nisa.tensor_copy(dst=result, src=turned)
        first = count * core // cores
        last = count * (core + 1) // cores
        if last > first:
            nisa.dma_copy(dst=by_row[start + first : start + last, :], src=result[first:last, :])
