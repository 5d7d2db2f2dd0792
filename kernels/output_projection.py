"""The attention's output projection, with the residual sum."""

import nki
import nki.language as nl

from kernels.projection import check_tuning, check_weight, project


@nki.jit
def nki_output_projection_kernel(
    x,
    weight,
    residual=None,
    scale=None,
    split="auto",
    column_block=1024,
    pieces=8,
    evict_engine="both",
    warm_up=8,
):
    """out = x @ weight + residual, products and sum in fp32 with one final cast.

    With an fp8 weight (kernels/quantise.py, one scale for each column), the product's columns
    are scaled before the sum. Under tensor parallelism only one rank adds the residual.

    On two cores (LNC2) each takes half of the columns, or half of the tokens (`split`).

    Args:
        x: HBM tensor [tokens, heads * head_dim], fp32 or bf16 (bf16 with an fp8 weight).
        weight: HBM tensor [heads * head_dim, hidden], x's dtype, or one-byte float8_e4m3 (also
            as uint8, or float8_e4m3fn whose values are at most 240).
        residual: None, or HBM tensor [tokens, hidden], x's dtype.
        scale: with an fp8 weight, HBM tensor [hidden] fp32.
        split: "columns", "tokens", or "auto": columns up to 512 tokens.
        column_block: columns at a time, at most 1536 (three PSUM banks).
        pieces: DMAs for a block of columns.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.
        warm_up: products of zeros that raise the Tensor engine's clock, up to 32 tokens.

    Returns:
        HBM tensor [tokens, hidden] of x's dtype.

    Limits: heads * head_dim above 128 divides into ceil(n / 128) equal parts, and is at most
    8192.
    HBM bytes: weight + tokens * (heads * head_dim + hidden, twice with a residual) * itemsize.
    MACs: tokens * heads * head_dim * hidden.
    """
    tokens, size = x.shape
    hidden = weight.shape[1]
    assert size <= 8192, "nki_output_projection_kernel: x has more than 8192 columns"
    view = check_weight(x, weight, scale, "nki_output_projection_kernel")
    if residual != None:  # noqa: E711
        assert tuple(residual.shape) == (tokens, hidden), (
            "nki_output_projection_kernel: residual must be [x's tokens, weight's columns]"
        )
        assert residual.dtype == x.dtype, (
            "nki_output_projection_kernel: residual must have x's dtype"
        )
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    check_tuning(pieces, evict_engine, "nki_output_projection_kernel")
    options = (split, column_block, pieces, evict_engine, warm_up)
    project(x, view, scale, None, 0.0, residual, (out,), options)
    return out
