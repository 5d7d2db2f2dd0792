"""Choosing experts on chip, shared by the router and the fused MoE kernels."""

import nki.isa as nisa
import nki.language as nl

LOWEST = -3.4028235e38
"""What a value that has been chosen is replaced by."""


def top_experts(logits, top_k, normalise, scale=None):
    """The top_k experts of each row, best first, and their softmax probabilities.

    Softmax keeps the order of the logits, so the choice is made on these: logits that differ
    never tie because their probabilities round to the same number. Of equal logits the lower
    expert number is chosen and comes first (torch.topk leaves that open).

    Args:
        logits: on-chip tile [P, E], fp32, 8 <= E; overwritten if top_k > 8.
        top_k: experts per row.
        normalise: whether the top_k probabilities are scaled to a sum of 1. If so, the sum over
            all experts cancels and is not computed.
        scale: None, or an SBUF column [P, 1], fp32 > 0: the logits' factor, applied late.

    Returns:
        (weights, experts): SBUF tiles [P, top_k rounded up to 8], fp32 and uint32, of which the
        first top_k columns count.
    """
    count = logits.shape[0]
    rounds = (top_k + 7) // 8
    values = nl.ndarray((count, 8 * rounds), dtype=nl.float32, buffer=nl.sbuf)
    experts = nl.ndarray((count, 8 * rounds), dtype=nl.uint32, buffer=nl.sbuf)
    total = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    weights = nl.ndarray((count, 8 * rounds), dtype=nl.float32, buffer=nl.sbuf)
    lowest = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    factor = 1.0 if scale == None else scale  # noqa: E711
    if not normalise:
        nisa.tensor_reduce(dst=lowest, op=nl.maximum, data=logits, axis=1, negate=True)
        if scale != None:  # noqa: E711
            nisa.tensor_scalar(dst=lowest, data=lowest, op0=nl.multiply, operand0=scale)
        everything = nl.ndarray(logits.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=everything, op=nl.exp, data=logits, bias=lowest, scale=factor, reduce_op=nl.add,
            reduce_res=total,
        )  # fmt: skip
    for r in range(rounds):
        eight = values[:, 8 * r : 8 * r + 8]
        nisa.max8(dst=eight, src=logits)
        nisa.nc_find_index8(dst=experts[:, 8 * r : 8 * r + 8], data=logits, vals=eight)
        if r + 1 < rounds:
            nisa.nc_match_replace8(dst=logits, data=logits, vals=eight, imm=LOWEST)
    chosen = values[:, 0:top_k]
    shares = weights[:, 0:top_k]
    if normalise:
        nisa.tensor_scalar(
            dst=lowest, data=values[:, 0:1], op0=nl.multiply, operand0=-1.0, op1=nl.multiply,
            operand1=factor,
        )  # fmt: skip
        nisa.activation_reduce(
            dst=shares, op=nl.exp, data=chosen, bias=lowest, scale=factor, reduce_op=nl.add,
            reduce_res=total,
        )  # fmt: skip
    else:
        nisa.activation(dst=shares, op=nl.exp, data=chosen, bias=lowest, scale=factor)
    nisa.reciprocal(dst=total, data=total)
    nisa.tensor_scalar(dst=shares, data=shares, op0=nl.multiply, operand0=total)
    return weights, experts
