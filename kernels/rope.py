"""Rotary position embedding of queries and keys (half rotation)."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def nki_rope_kernel(q, k, cos, sin, offsets=None, sum_on_tensor=True, elements=2304):
    """out = x * cos + rotate_half(x) * sin for every head of q and of k.

    rotate_half swaps the halves of a head and negates the new first one: (a, b) -> (-b, a).
    Token t of sequence b stands at position offsets[b] + t, and takes that row of the caches.
    Positions must be rows of the caches; the chip raises an error otherwise.

    Every partition has one or more neighbouring tokens, with all of their heads; an access
    pattern with a step of 0 repeats a token's cos and sin over its heads. In bf16, the two
    products are rounded to bf16, as the PyTorch model's are, and their sum is a product with
    the identity that accumulates in PSUM: the Vector engine, which would bound the kernel, has
    one pass less. On two cores (LNC2) each takes half of a sequence's tokens, or half of the
    sequences if they are of one token.

    Args:
        q: HBM tensor [batch, tokens, heads, head_dim], fp32 or bf16.
        k: HBM tensor [batch, tokens, key heads, head_dim], q's dtype.
        cos: HBM tensor [positions, head_dim], fp32 or bf16; as HF's, both halves are the same.
        sin: HBM tensor [positions, head_dim], cos's dtype.
        offsets: None for position 0, or HBM tensor [batch, 1] int32: where a sequence's first
            token stands (decode: its prior length).
        sum_on_tensor: whether bf16 sums go to the Tensor engine; fp32 ones never do.
        elements: numbers of q and k to a partition at a time, at most 6144: how many
            neighbouring tokens share one, which makes DMAs fewer and longer.

    Returns:
        (q, k) rotated: HBM tensors of q's and k's shapes and dtypes.

    Limits: head_dim even and <= 512; (heads + key heads) * head_dim <= 6144.
    HBM bytes: 2 * (q + k) + 2 * tokens * head_dim * itemsize. MACs that count: none.
    """
    batch, tokens, heads, head_dim = q.shape
    groups = k.shape[2]
    assert head_dim % 2 == 0, "nki_rope_kernel: q has an odd head_dim"
    assert head_dim <= 512, "nki_rope_kernel: q has a head_dim above 512"
    assert tuple(k.shape) == (batch, tokens, groups, head_dim), (
        "nki_rope_kernel: k must have q's batch, tokens and head_dim"
    )
    assert k.dtype == q.dtype, "nki_rope_kernel: k must have q's dtype"
    assert (heads + groups) * head_dim <= 6144, (
        "nki_rope_kernel: the heads of q and k together have more than 6144 numbers"
    )
    assert cos.shape[1] == head_dim, "nki_rope_kernel: cos must have rows of head_dim"
    assert tuple(sin.shape) == tuple(cos.shape), "nki_rope_kernel: sin must have cos's shape"
    assert elements <= 6144, "nki_rope_kernel: elements must be at most 6144"
    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    cores = nl.num_programs()
    identity = None
    if sum_on_tensor and q.dtype == nl.bfloat16:
        identity = nl.shared_identity_matrix(nl.tile_size.pmax, dtype=nl.bfloat16)
    if tokens == 1:
        last = batch * (core + 1) // cores
        for start in range(batch * core // cores, last, nl.tile_size.pmax):
            count = min(nl.tile_size.pmax, last - start)
            tables = rows_by_number(cos, sin, offsets, start, count)
            rotate_tokens(q, q_out, start, count, 1, tables, identity)
            rotate_tokens(k, k_out, start, count, 1, tables, identity)
        return q_out, k_out
    if offsets == None:  # noqa: E711
        assert tokens <= cos.shape[0], "nki_rope_kernel: cos has fewer rows than q has tokens"
    most = max(1, elements // ((heads + groups) * head_dim))
    start = tokens * core // cores
    last = tokens * (core + 1) // cores
    while start < last:
        count = min(nl.tile_size.pmax, last - start)
        each = max(1, min(most, (last - start) // nl.tile_size.pmax))
        tables = None
        for b in range(batch):
            if offsets != None or tables == None:  # noqa: E711
                tables = rows_from(cos, sin, offsets, b, start, count, each)
            first = b * tokens + start
            rotate_tokens(q, q_out, first, count, each, tables, identity)
            rotate_tokens(k, k_out, first, count, each, tables, identity)
        start += count * each
    return q_out, k_out


def rotate_tokens(x, out, start, count, each, tables, identity):
    """Rotate tokens [start, start + count * each) of batch * tokens, `each` to a partition."""
    tile = nl.ndarray((count, each, x.shape[2], x.shape[3]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=tokens_of(x, start, count, each))
    rotate(tile, tables, identity)
    nisa.dma_copy(dst=tokens_of(out, start, count, each), src=tile)


def tokens_of(x, start, count, each):
    """Tokens [start, start + count * each) of an HBM tensor [batch, tokens, heads, head_dim].

    Returns:
        A view [count, each, heads, head_dim] of them.
    """
    heads, width = x.shape[2], x.shape[3]
    row = heads * width
    return x.ap(
        pattern=[[each * row, count], [row, each], [width, heads], [1, width]], offset=start * row
    )


def rows_from(cos, sin, offsets, sequence, start, count, each):
    """Rows [offset + start, … + count * each) of both caches: SBUF tiles [count, each, head_dim].

    The first half of sin is negated: the rotation's sign is paid for once per token, not head.
    """
    width = cos.shape[1]
    pattern = [[each * width, count], [width, each], [1, width]]
    offset = None
    if offsets != None:  # noqa: E711
        offset = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=offset, src=offsets[sequence : sequence + 1, :])
    tables = []
    for cache in (cos, sin):
        tile = nl.ndarray((count, each, width), dtype=cache.dtype, buffer=nl.sbuf)
        rows = cache.ap(pattern=pattern, offset=start * width)
        if offset != None:  # noqa: E711
            rows = cache.ap(
                pattern=pattern, offset=start * width, scalar_offset=offset, indirect_dim=0
            )
        nisa.dma_copy(dst=tile, src=rows)
        tables.append(tile)
    return tables[0], with_sign(tables[1])


def rows_by_number(cos, sin, offsets, start, count):
    """As `rows_from`, of sequences [start, start + count), each at its own position."""
    width = cos.shape[1]
    tables = []
    numbers = None
    if offsets != None:  # noqa: E711
        numbers = nl.ndarray((count, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=numbers, src=offsets[start : start + count, :])
    for cache in (cos, sin):
        tile = nl.ndarray((count, 1, width), dtype=cache.dtype, buffer=nl.sbuf)
        rows = cache.ap(pattern=[[0, count], [1, width]], offset=0)
        if numbers != None:  # noqa: E711
            rows = cache.ap(
                pattern=[[width, count], [1, width]],
                offset=0,
                vector_offset=numbers,
                indirect_dim=0,
            )
        nisa.dma_copy(dst=tile, src=rows)
        tables.append(tile)
    return tables[0], with_sign(tables[1])


def with_sign(sin):
    """Negate the first half of each row, in place."""
    half = sin.shape[2] // 2
    first = sin[:, :, 0:half]
    nisa.tensor_scalar(dst=first, data=first, op0=nl.multiply, operand0=-1.0)
    return sin


def rotate(x, tables, identity):
    """x * cos + swapped x * sin, where sin has its sign already.

    Args:
        x: SBUF tile [count, each, heads, head_dim]; overwritten by the result.
        tables: SBUF tiles [count, each, head_dim].
        identity: None, or SBUF [128, 128] bf16: sum on the Tensor engine.
    """
    cos, sin = tables
    count, each, heads, width = x.shape
    half = width // 2
    row = each * width
    crossed = nl.ndarray((count, each, heads, width), dtype=x.dtype, buffer=nl.sbuf)
    straight = nl.ndarray((count, each, heads, width), dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=straight,
        data1=x,
        data2=cos.ap(pattern=[[row, count], [width, each], [0, heads], [1, width]], offset=0),
        op=nl.multiply,
    )
    for first in (0, half):
        other = half - first
        nisa.tensor_tensor(
            dst=crossed[:, :, :, first : first + half],
            data1=x[:, :, :, other : other + half],
            data2=sin.ap(
                pattern=[[row, count], [width, each], [0, heads], [1, half]], offset=first
            ),
            op=nl.multiply,
        )
    if identity == None:  # noqa: E711
        nisa.tensor_tensor(dst=x, data1=straight, data2=crossed, op=nl.add)
        return
    left = straight.reshape((count, each * heads, width))
    right = crossed.reshape((count, each * heads, width))
    result = x.reshape((count, each * heads, width))
    unit = identity[0:count, 0:count]
    group = nl.tile_size.psum_fmax // width
    for first in range(0, each * heads, group):
        last = min(first + group, each * heads)
        total = nl.ndarray((count, last - first, width), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=total, stationary=unit, moving=left[:, first:last, :], accumulate=False)
        nisa.nc_matmul(dst=total, stationary=unit, moving=right[:, first:last, :], accumulate=True)
        nisa.tensor_copy(dst=result[:, first:last, :], src=total, engine=nisa.engine.scalar)
