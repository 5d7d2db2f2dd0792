"""Some of kda-for-trainium's variants of NKIBench kernels (trn2), for ratios only.

Their published times are about half of what one core can do (see the table's notes), so only
variant / baseline is compared. fp32 throughout.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import P, load, sbuf


@nki.jit
def silu(x, slices=1, parts=1, in_place=False):
    """x * sigmoid(x) in one Scalar instruction per tile.

    Args:
        x: HBM tensor [128, count, columns] fp32.
        slices: slices per tile; the last tile may hold fewer.
        parts: tiles per slice, if `slices` is 1.
        in_place: the result overwrites the loaded tile.

    Returns:
        HBM tensor like x.
    """
    _, count, columns = x.shape
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    width = columns // parts
    for first in range(0, count, slices):
        group = slice(first, min(first + slices, count))
        for left in range(0, columns, width):
            at = slice(left, left + width)
            tile = load(x[:, group, at])
            result = tile if in_place else sbuf(tile.shape)
            nisa.activation(dst=result, op=nl.silu, data=tile)
            nisa.dma_copy(dst=out[:, group, at], src=result)
    return out


@nki.jit
def adamw(theta, gradient, first, second, columns=2048):
    """AdamW as four fused Vector and two Scalar instructions per [128, columns] tile.

    Args:
        theta: HBM tensor of 128 * n elements fp32, taken as 128 long rows; the others alike.
        gradient: as theta.
        first: first moment.
        second: second moment.
        columns: of a tile; divides n.

    Returns:
        HBM tensor [128, n].
    """
    length = theta.size // P
    out = nl.ndarray((P, length), dtype=theta.dtype, buffer=nl.shared_hbm)
    sources = [source.reshape((P, length)) for source in (theta, gradient, first, second)]
    for left in range(0, length, columns):
        at = slice(left, left + columns)
        old, g, m, v = [load(source[:, at]) for source in sources]
        square, variance, inverse = sbuf(g.shape), sbuf(g.shape), sbuf(g.shape)
        mean, step, result = sbuf(g.shape), sbuf(g.shape), sbuf(g.shape)
        nisa.activation(dst=square, op=nl.square, data=g)
        _fused(variance, v, 999.0, nl.add, square)
        nisa.activation(dst=inverse, op=nl.rsqrt, data=variance)
        _fused(mean, m, 9.0, nl.add, g)
        _fused(step, mean, 0.001, nl.multiply, inverse)
        _fused(result, old, 0.99999, nl.subtract, step)
        nisa.dma_copy(dst=out[:, at], src=result)
    return out


def _fused(dst, data, scale, op, other):
    """dst = (data * scale) op other."""
    nisa.scalar_tensor_tensor(
        dst=dst, data=data, op0=nl.multiply, operand0=scale, op1=op, operand1=other
    )


@nki.jit
def rope(x, cos, sin, width=2048):
    """Rotary embedding with both halves loaded to partition 0, `width` tokens at a time.

    Args:
        x: HBM tensor [128, tokens] fp32.
        cos: HBM tensor [64, tokens]; sin alike.
        sin: as cos.
        width: divides tokens.

    Returns:
        HBM tensor like x.
    """
    half = P // 2
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for start in range(0, x.shape[1], width):
        at = slice(start, start + width)
        even, odd = load(x[0:half, at]), load(x[half:P, at])
        cosine, sine = load(cos[:, at]), load(sin[:, at])
        for rows, a, b, op in (
            (slice(0, half), (even, cosine), (odd, sine), nl.subtract),
            (slice(half, P), (odd, cosine), (even, sine), nl.add),
        ):
            result, products = sbuf((half, width)), []
            for one, other in (a, b):
                product = sbuf((half, width))
                nisa.tensor_tensor(dst=product, data1=one, data2=other, op=nl.multiply)
                products.append(product)
            nisa.tensor_tensor(dst=result, data1=products[0], data2=products[1], op=op)
            nisa.dma_copy(dst=out[rows, at], src=result)
    return out
