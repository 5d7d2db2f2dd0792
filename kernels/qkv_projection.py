"""Queries, keys and values from the hidden state."""

import nki
import nki.language as nl

from kernels.projection import check_tuning, check_weight, project


@nki.jit
def nki_qkv_projection_kernel(
    x,
    weight,
    kv_width,
    norm_weight=None,
    scale=None,
    eps=1e-6,
    split="auto",
    column_block=768,
    pieces=8,
    evict_engine="both",
    warm_up=8,
):
    """(q, k, v) = the columns of norm(x) @ weight, products in fp32 with one final cast.

    With norm_weight, norm is the RMS normalisation of the layer's input, x / sqrt(mean(x^2) +
    eps) * norm_weight, rounded to x's dtype; without, x itself. With an fp8 weight
    (kernels/quantise.py, one scale for each column), the result's columns are scaled.

    On two cores (LNC2) each takes half of the columns if the weight is what costs (`split`), so
    that each reads half of it; else half of the tokens.

    Args:
        x: HBM tensor [tokens, hidden], fp32 or bf16 (bf16 with an fp8 weight).
        weight: HBM tensor [hidden, q width + 2 * kv_width]: columns of all queries, of all
            keys, of all values; x's dtype, or one-byte float8_e4m3 (also as uint8, or
            float8_e4m3fn whose values are at most 240).
        kv_width: key heads * head_dim.
        norm_weight: None, or HBM tensor [hidden], x's dtype.
        scale: with an fp8 weight, HBM tensor [q width + 2 * kv_width] fp32.
        eps: compile-time float > 0.
        split: "columns", "tokens", or "auto": columns up to 512 tokens.
        column_block: columns at a time, at most 1536 (three PSUM banks).
        pieces: DMAs for a block of columns.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.
        warm_up: products of zeros that raise the Tensor engine's clock, up to 32 tokens.

    Returns:
        (q, k, v): HBM tensors [tokens, q width], [tokens, kv_width], [tokens, kv_width], x's
        dtype.

    Limits: hidden above 128 divides into ceil(hidden / 128) equal parts; hidden <= 8192 (fp32:
    4096 with a norm).
    HBM bytes: weight + tokens * (hidden + q width + 2 kv_width) * itemsize; x twice if cores
    share columns, the weight twice if they share tokens.
    MACs: tokens * hidden * (q width + 2 kv_width).
    """
    tokens, hidden = x.shape
    columns = weight.shape[1]
    name = "nki_qkv_projection_kernel"
    assert hidden <= 8192, "nki_qkv_projection_kernel: x has a hidden dimension above 8192"
    view = check_weight(x, weight, scale, name)
    assert 0 < 2 * kv_width < columns, (
        "nki_qkv_projection_kernel: kv_width must leave columns of weight for queries"
    )
    if norm_weight != None:  # noqa: E711
        assert x.dtype == nl.bfloat16 or hidden <= 4096, (
            "nki_qkv_projection_kernel: x has a hidden dimension above 4096 (fp32 with a norm)"
        )
        assert tuple(norm_weight.shape) == (hidden,), (
            "nki_qkv_projection_kernel: norm_weight must have x's hidden dimension"
        )
    q = nl.ndarray((tokens, columns - 2 * kv_width), dtype=x.dtype, buffer=nl.shared_hbm)
    k = nl.ndarray((tokens, kv_width), dtype=x.dtype, buffer=nl.shared_hbm)
    v = nl.ndarray((tokens, kv_width), dtype=x.dtype, buffer=nl.shared_hbm)
    check_tuning(pieces, evict_engine, "nki_qkv_projection_kernel")
    options = (split, column_block, pieces, evict_engine, warm_up)
    project(x, view, scale, norm_weight, eps, None, (q, k, v), options)
    return q, k, v
