"""autocomp's depthwise convolution: one output column at a time, a product and a sum of three.

131,072 Vector instructions on 3 elements per partition and one column out: what is measured is
the least interval between instructions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import BANK, P, load, sbuf


def _padded(image, n, top):
    """Image n, channels top to top + 128, with a zero column on either side."""
    width = image.shape[2]
    tile = sbuf((P, width + 2))
    nisa.memset(dst=tile, value=0.0)
    nisa.dma_copy(dst=tile[:, 1 : width + 1], src=image[n, top : top + P, :])
    return tile


def _column(tile, at, weights, dst):
    """dst[128, 1] = Σ_f tile[:, at + f] * weights[:, f]."""
    taps = weights.shape[1]
    product = sbuf((P, taps))
    nisa.tensor_tensor(dst=product, data1=tile[:, at : at + taps], data2=weights, op=nl.multiply)
    nisa.tensor_reduce(dst=dst, op=nl.add, data=product, axis=1)


@nki.jit
def streamed(image, filters, filters_outside=False):
    """One image tile at a time: load, all columns, store.

    The published first steps load everything first and store everything last; 270 KiB per
    partition do not fit, so loads and stores move to their use (legacy rule 6).

    Args:
        image: HBM tensor [images, channels, width] fp32, channels a multiple of 128.
        filters: HBM tensor [channels, 3].
        filters_outside: channel tiles outside and the filter, once per tile, in PSUM.

    Returns:
        HBM tensor like image.
    """
    images, channels, width = image.shape
    out = nl.ndarray(image.shape, dtype=image.dtype, buffer=nl.shared_hbm)
    pairs = [(n, top) for n in range(images) for top in range(0, channels, P)]
    if filters_outside:
        pairs = [(n, top) for top in range(0, channels, P) for n in range(images)]
    held_top, weights = None, None
    for n, top in pairs:
        tile = _padded(image, n, top)
        if not filters_outside or top != held_top:
            weights = load(filters[top : top + P, :])
            held_top = top
            if filters_outside:
                in_psum = nl.ndarray((P, 3), dtype=nl.float32, buffer=nl.psum)
                nisa.tensor_copy(dst=in_psum, src=weights, engine=nisa.engine.vector)
                weights = in_psum
        result = sbuf((P, width))
        for at in range(width):
            _column(tile, at, weights, result[:, at : at + 1])
        nisa.dma_copy(dst=out[n, top : top + P, :], src=result)
    return out


@nki.jit
def psum_blocks(image, filters):
    """As `streamed`; each column's sum is added to a zeroed PSUM block of 512 outputs.

    Args:
        image: HBM tensor [images, channels, width] fp32, channels a multiple of 128, width of 512.
        filters: HBM tensor [channels, 3].

    Returns:
        HBM tensor like image.
    """
    images, channels, width = image.shape
    out = nl.ndarray(image.shape, dtype=image.dtype, buffer=nl.shared_hbm)
    for n in range(images):
        for top in range(0, channels, P):
            tile = _padded(image, n, top)
            weights = load(filters[top : top + P, :])
            for start in range(0, width, BANK):
                block = nl.ndarray((P, BANK), dtype=nl.float32, buffer=nl.psum)
                nisa.memset(dst=block, value=0.0)
                for at in range(BANK):
                    column = sbuf((P, 1))
                    _column(tile, start + at, weights, column)
                    cell = block[:, at : at + 1]
                    nisa.tensor_tensor(dst=cell, data1=cell, data2=column, op=nl.add)
                result = sbuf((P, BANK))
                nisa.tensor_copy(dst=result, src=block, engine=nisa.engine.vector)
                nisa.dma_copy(dst=out[n, top : top + P, start : start + BANK], src=result)
    return out
