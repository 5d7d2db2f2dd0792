"""Choosing experts on chip, shared by the router and the fused MoE kernels."""

import nki.isa as nisa
import nki.language as nl

LOWEST = -3.4028235e38
"""What a value that has been chosen is replaced by."""


def best_experts(logits, top_k):
    """The top_k largest logits of each row, and their expert numbers, best first.

    Of equal logits the lower expert number is chosen and comes first (torch.topk leaves that
    open).

    Args:
        logits: on-chip tile [P, E], fp32, 8 <= E; overwritten if top_k > 8.
        top_k: experts per row.

    Returns:
        (values, experts): SBUF tiles [P, top_k rounded up to 8], fp32 and uint32, of which the
        first top_k columns count.
    """
    count = logits.shape[0]
    rounds = (top_k + 7) // 8
    values = nl.ndarray((count, 8 * rounds), dtype=nl.float32, buffer=nl.sbuf)
    experts = nl.ndarray((count, 8 * rounds), dtype=nl.uint32, buffer=nl.sbuf)
    for r in range(rounds):
        eight = values[:, 8 * r : 8 * r + 8]
        nisa.max8(dst=eight, src=logits)
        nisa.nc_find_index8(dst=experts[:, 8 * r : 8 * r + 8], data=logits, vals=eight)
        if r + 1 < rounds:
            nisa.nc_match_replace8(dst=logits, data=logits, vals=eight, imm=LOWEST)
    return values, experts


def sum_of_all(logits, scale=None):
    """The sum over all experts of exp(scale * (logit - largest logit)): SBUF column [P, 1].

    Args:
        logits: on-chip tile [P, E], fp32.
        scale: None, or an SBUF column [P, 1], fp32 > 0: a factor of the logits.
    """
    count = logits.shape[0]
    lowest = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    everything = nl.ndarray(logits.shape, dtype=nl.float32, buffer=nl.sbuf)
    factor = 1.0 if scale == None else scale  # noqa: E711
    nisa.tensor_reduce(dst=lowest, op=nl.maximum, data=logits, axis=1, negate=True)
    nisa.tensor_scalar(dst=lowest, data=lowest, op0=nl.multiply, operand0=factor)
    nisa.activation_reduce(
        dst=everything, op=nl.exp, data=logits, bias=lowest, scale=factor, reduce_op=nl.add,
        reduce_res=total,
    )  # fmt: skip
    return total


def softmax_shares(values, total=None, scale=None):
    """The weights of chosen experts: softmax over them, or their part of all experts' sum.

    Softmax keeps the order of the logits, so experts are chosen by logits: those that differ
    never tie because their probabilities round to the same number. If the weights are
    normalised over the chosen ones, the sum over all cancels and is not computed.

    Args:
        values: SBUF [P, K], fp32: the chosen logits, the largest first.
        total: None to normalise, or `sum_of_all` (which is overwritten).
        scale: None, or an SBUF column [P, 1], fp32 > 0: a factor of the logits.

    Returns:
        SBUF tile [P, K], fp32.
    """
    count, most = values.shape
    shares = nl.ndarray((count, most), dtype=nl.float32, buffer=nl.sbuf)
    lowest = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    factor = 1.0 if scale == None else scale  # noqa: E711
    nisa.tensor_scalar(
        dst=lowest, data=values[:, 0:1], op0=nl.multiply, operand0=-1.0, op1=nl.multiply,
        operand1=factor,
    )  # fmt: skip
    if total == None:  # noqa: E711
        total = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=shares, op=nl.exp, data=values, bias=lowest, scale=factor, reduce_op=nl.add,
            reduce_res=total,
        )  # fmt: skip
    else:
        nisa.activation(dst=shares, op=nl.exp, data=values, bias=lowest, scale=factor)
    nisa.reciprocal(dst=total, data=total)
    nisa.tensor_scalar(dst=shares, data=shares, op0=nl.multiply, operand0=total)
    return shares
