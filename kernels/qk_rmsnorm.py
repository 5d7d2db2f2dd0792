"""RMS normalisation of queries and keys, per head (Qwen3 normalises both before RoPE)."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.tiling import broadcast_row, reciprocal_root


@nki.jit
def nki_qk_rmsnorm_kernel(q, k, q_weight, k_weight, eps=1e-6):
    """Normalise every head of q and of k: x / sqrt(mean(x^2) + eps) * weight, in fp32.

    Tokens go 128 at a time, one per partition; a token's heads lie side by side in its
    partition, so that one instruction serves them all. The factors of the heads and the
    weights of the head dimension are repeated by access patterns with a step of 0.

    Args:
        q: HBM tensor [tokens, query heads, head_dim], fp32 or bf16.
        k: HBM tensor [tokens, key heads, head_dim], q's dtype.
        q_weight: HBM tensor [head_dim].
        k_weight: HBM tensor [head_dim].
        eps: compile-time float > 0.

    Returns:
        (q, k) normalised: HBM tensors of q's and k's shapes and dtypes.

    Limits: heads * head_dim <= 8192 each.
    HBM bytes: 2 * (q + k) + 256 * head_dim * itemsize. MACs on the Tensor engine: none.
    """
    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)
    assert q.shape[0] == k.shape[0], "nki_qk_rmsnorm_kernel: q and k must have as many tokens"
    assert q.shape[2] == k.shape[2], "nki_qk_rmsnorm_kernel: q and k must have one head_dim"
    normalise_heads(q, q_weight, eps, q_out)
    normalise_heads(k, k_weight, eps, k_out)
    return q_out, k_out


def normalise_heads(x, weight, eps, out):
    """Write the normalised heads of x [tokens, heads, head_dim] to out, both in HBM."""
    tokens, heads, head_dim = x.shape
    assert heads * head_dim <= 8192, "nki_qk_rmsnorm_kernel: heads * head_dim is above 8192"
    assert weight.shape[0] == head_dim, (
        "nki_qk_rmsnorm_kernel: a weight must have head_dim elements"
    )
    weight_tile = broadcast_row(weight, min(tokens, nl.tile_size.pmax), head_dim)
    for start in range(0, tokens, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, tokens - start)
        tile = nl.ndarray((count, heads, head_dim), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[start : start + count, :, :])
        work = nl.ndarray((count, heads, head_dim), dtype=nl.float32, buffer=nl.sbuf)
        factor = nl.ndarray((count, heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=work, op=nl.square, data=tile)
        nisa.tensor_reduce(dst=factor, op=nl.add, data=work, axis=2)
        reciprocal_root(factor, head_dim, eps)
        nisa.tensor_tensor(
            dst=work,
            data1=tile,
            data2=factor.ap(pattern=[[heads, count], [1, heads], [0, head_dim]], offset=0),
            op=nl.multiply,
        )
        result = nl.ndarray((count, heads, head_dim), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=result,
            data1=work,
            data2=weight_tile.ap(pattern=[[head_dim, count], [0, heads], [1, head_dim]], offset=0),
            op=nl.multiply,
        )
        nisa.dma_copy(dst=out[start : start + count, :, :], src=result)
