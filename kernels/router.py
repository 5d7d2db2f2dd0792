"""The router: which experts a token goes to, and with what weights."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import evict, load_contraction, multiply, transpose_interleaved
from kernels.routing import best_experts, softmax_shares, sum_of_all
from kernels.tiling import core_share, load_rows


@nki.jit
def nki_expert_router_kernel(x, router_weight=None, top_k=8, normalise=True, evict_engine="vector"):
    """weights, experts = topk(softmax(x @ router_weight)), row by row, softmax in fp32.

    Tokens go 128 at a time, one per partition. The product stays in fp32 in PSUM. The top 8
    come out of two Vector instructions (the 8 largest values, and where they are); for more,
    the found ones are replaced by the lowest number and the search is repeated.

    On two cores (LNC2) each takes half of the tokens.

    Of experts with equal logits the lower number is chosen and comes first; torch.topk leaves
    their order open.

    Args:
        x: HBM tensor [tokens, hidden] fp32 or bf16; without router_weight the logits
            [tokens, experts].
        router_weight: HBM tensor [hidden, experts] of x's dtype, or None.
        top_k: compile-time int, experts per token, 1 to experts.
        normalise: compile-time bool: the top_k weights are scaled to a sum of 1
            (Qwen3-MoE's norm_topk_prob); else they are probabilities among all experts.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.

    Returns:
        (weights [tokens, top_k] fp32, experts [tokens, top_k] int32), best first, in HBM.

    Limits: 8 <= experts <= 16384 (512 with router_weight: one PSUM bank); hidden <= 8192, and
    above 128 divisible into ceil(hidden / 128) equal parts.
    HBM bytes: x + router_weight + 8 * tokens * top_k. MACs: tokens * hidden * experts.
    """
    tokens, hidden = x.shape
    experts = hidden
    multiplies = router_weight != None  # noqa: E711  (`is` compares values in nki's parser)
    if multiplies:
        experts = router_weight.shape[1]
        assert experts <= 512, "nki_expert_router_kernel: router_weight has more than 512 experts"
        assert router_weight.shape[0] == hidden, (
            "nki_expert_router_kernel: router_weight must have x's hidden dimension"
        )
        assert hidden <= 8192, "nki_expert_router_kernel: x has a hidden dimension above 8192"
    assert experts >= 8, "nki_expert_router_kernel: fewer than 8 experts"
    assert experts <= 16384, "nki_expert_router_kernel: x has more than 16384 experts"
    assert 1 <= top_k <= experts, (
        "nki_expert_router_kernel: top_k must be 1 to the number of experts"
    )
    weights_out = nl.ndarray((tokens, top_k), dtype=nl.float32, buffer=nl.shared_hbm)
    experts_out = nl.ndarray((tokens, top_k), dtype=nl.int32, buffer=nl.shared_hbm)
    matrix = None
    if multiplies:
        matrix = load_contraction(router_weight, 0, experts)
    first, last = core_share(tokens)
    for start in range(first, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        rows = load_rows(x, start, count)
        logits = nl.ndarray((count, experts), dtype=nl.float32, buffer=nl.sbuf)
        if multiplies:
            product = nl.ndarray((count, experts), dtype=nl.float32, buffer=nl.psum)
            multiply(product, transpose_interleaved(rows, evict_engine), matrix)
            evict(logits, product, evict_engine)
        else:
            nisa.tensor_copy(dst=logits, src=rows)
        total = None if normalise else sum_of_all(logits)
        values, chosen = best_experts(logits, top_k)
        weights = softmax_shares(values[:, 0:top_k], total)
        numbers = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=numbers, src=chosen[:, 0:top_k])
        nisa.dma_copy(dst=weights_out[start : start + count, :], src=weights)
        nisa.dma_copy(dst=experts_out[start : start + count, :], src=numbers)
    return weights_out, experts_out
