"""The kernels that benchmarks/simulator.py replays, beside those of kernels/."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


def _load(source, shape):
    tile = nl.ndarray(shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def _tiles(source, width):
    """The rows of an HBM tensor [rows, width] as SBUF tiles of 128 rows."""
    rows = source.shape[0]
    return [_load(source[i : i + P, :], (min(P, rows - i), width)) for i in range(0, rows, P)]


@nki.jit
def matmul_kernel(lhs_t, rhs):
    """out[M, N] = lhs_t[K, M].T @ rhs[K, N]; K and M multiples of 128, N of 512."""
    contraction, rows = lhs_t.shape
    columns = rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    left = _tiles(lhs_t, rows)
    right = _tiles(rhs, columns)
    for m in range(0, rows, P):
        for n in range(0, columns, 512):
            total = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            for k in range(contraction // P):
                nisa.nc_matmul(
                    dst=total,
                    stationary=left[k][:, m : m + P],
                    moving=right[k][:, n : n + 512],
                    accumulate=k > 0,
                )
            result = nl.ndarray((P, 512), dtype=lhs_t.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=result, src=total)
            nisa.dma_copy(dst=out[m : m + P, n : n + 512], src=result)
    return out


@nki.jit
def attention_kernel(q_t, k_t, v, block=256):
    """softmax(q k^T / sqrt(d)) v for one head, keys in blocks, with a running maximum and sum.

    Args:
        q_t: [d, queries], d <= 128.
        k_t: [d, keys].
        v: [keys, d].
        block: keys at a time, a multiple of 128 up to 512.
    """
    width, queries = q_t.shape
    keys = k_t.shape[1]
    scale = width**-0.5
    out = nl.ndarray((queries, width), dtype=v.dtype, buffer=nl.shared_hbm)
    all_q = _load(q_t, (width, queries))
    all_k = _load(k_t, (width, keys))
    values = _tiles(v, width)
    for q in range(0, queries, P):
        highest = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
        mixed = nl.ndarray((P, width), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=highest, value=3.0e38)  # minus the maximum so far
        nisa.memset(dst=total, value=0.0)
        nisa.memset(dst=mixed, value=0.0)
        for k in range(0, keys, block):
            _attend(all_q, all_k, values, q, k, block, scale, highest, total, mixed)
        nisa.reciprocal(dst=total, data=total)
        result = nl.ndarray((P, width), dtype=v.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=result, data=mixed, op0=nl.multiply, operand0=total)
        nisa.dma_copy(dst=out[q : q + P, :], src=result)
    return out


def _attend(all_q, all_k, values, q, k, block, scale, highest, total, mixed):
    """One block of keys: scores, exponentials, and their part of the result."""
    width = all_q.shape[0]
    scores = nl.ndarray((P, block), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=scores, stationary=all_q[:, q : q + P], moving=all_k[:, k : k + block], accumulate=False
    )
    new = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=new, op=nl.maximum, data=scores, axis=1, negate=True)
    nisa.tensor_scalar(dst=new, data=new, op0=nl.multiply, operand0=scale)
    nisa.tensor_tensor(dst=new, data1=new, data2=highest, op=nl.minimum)
    weights = nl.ndarray((P, block), dtype=values[0].dtype, buffer=nl.sbuf)
    part = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=weights, op=nl.exp, data=scores, bias=new, scale=scale, reduce_op=nl.add,
        reduce_res=part,
    )  # fmt: skip
    shrink = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=shrink, op=nl.exp, data=highest, scale=-1.0, bias=new)
    nisa.scalar_tensor_tensor(
        dst=total, data=total, op0=nl.multiply, operand0=shrink, op1=nl.add, operand1=part
    )
    product = nl.ndarray((P, width), dtype=nl.float32, buffer=nl.psum)
    for i in range(0, block, P):
        turned = nl.ndarray((P, P), dtype=weights.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=weights[:, i : i + P])
        kept = nl.ndarray((P, P), dtype=weights.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=kept, src=turned)
        nisa.nc_matmul(dst=product, stationary=kept, moving=values[(k + i) // P], accumulate=i > 0)
    nisa.scalar_tensor_tensor(
        dst=mixed, data=mixed, op0=nl.multiply, operand0=shrink, op1=nl.add, operand1=product
    )
    nisa.tensor_copy(dst=highest, src=new)


@nki.jit
def expert_mlp_kernel(x_t, gate, up, down):
    """(silu(x gate) * (x up)) down for up to 128 tokens.

    Args:
        x_t: [hidden, tokens].
        gate: [hidden, intermediate].
        up: [hidden, intermediate].
        down: [intermediate, hidden].
    """
    hidden, tokens = x_t.shape
    width = gate.shape[1]
    out = nl.ndarray((tokens, hidden), dtype=x_t.dtype, buffer=nl.shared_hbm)
    x_tiles = _tiles(x_t, tokens)
    gates, ups = _tiles(gate, width), _tiles(up, width)
    downs = _tiles(down, hidden)
    inner = []
    for n in range(0, width, P):  # transposed: intermediate on partitions
        both = []
        for weights in (gates, ups):
            total = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.psum)
            for k in range(hidden // P):
                nisa.nc_matmul(
                    dst=total,
                    stationary=weights[k][:, n : n + P],
                    moving=x_tiles[k],
                    accumulate=k > 0,
                )
            both.append(total)
        activated = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=activated, op=nl.silu, data=both[0])
        product = nl.ndarray((P, tokens), dtype=x_t.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=product, data1=activated, data2=both[1], op=nl.multiply)
        inner.append(product)
    for n in range(0, hidden, 512):
        total = nl.ndarray((tokens, 512), dtype=nl.float32, buffer=nl.psum)
        for k in range(width // P):
            nisa.nc_matmul(
                dst=total,
                stationary=inner[k],
                moving=downs[k][:, n : n + 512],
                accumulate=k > 0,
            )
        result = nl.ndarray((tokens, 512), dtype=x_t.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=result, src=total)
        nisa.dma_copy(dst=out[:, n : n + 512], src=result)
    return out


@nki.jit
def router_kernel(logits):
    """The 8 largest softmax probabilities of each row, normalised, and their indices.

    Args:
        logits: [tokens, experts].
    """
    tokens, experts = logits.shape
    weights = nl.ndarray((tokens, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    indices = nl.ndarray((tokens, 8), dtype=nl.uint32, buffer=nl.shared_hbm)
    for start in range(0, tokens, P):
        count = min(P, tokens - start)
        tile = _load(logits[start : start + count, :], (count, experts))
        highest = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=highest, op=nl.maximum, data=tile, axis=1, negate=True)
        chances = nl.ndarray((count, experts), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=chances, op=nl.exp, data=tile, bias=highest, reduce_op=nl.add, reduce_res=total
        )
        nisa.reciprocal(dst=total, data=total)
        nisa.tensor_scalar(dst=chances, data=chances, op0=nl.multiply, operand0=total)
        top = nl.ndarray((count, 8), dtype=nl.float32, buffer=nl.sbuf)
        where = nl.ndarray((count, 8), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.max8(dst=top, src=chances)
        nisa.nc_find_index8(dst=where, data=chances, vals=top)
        share = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=share, op=nl.add, data=top, axis=1)
        nisa.reciprocal(dst=share, data=share)
        nisa.tensor_scalar(dst=top, data=top, op0=nl.multiply, operand0=share)
        nisa.dma_copy(dst=weights[start : start + count, :], src=top)
        nisa.dma_copy(dst=indices[start : start + count, :], src=where)
    return weights, indices
