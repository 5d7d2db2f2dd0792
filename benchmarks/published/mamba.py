"""The Mamba state-space scan: AWS's three tutorial versions, autocomp's steps, NKIBench's shape.

out[c, t] = Σ_s C[s, t] h_s[c, t],  h_s[c, t] = exp(delta[c, t] A[c, s]) h_s[c, t-1]
                                              + delta[c, t] u[c, t] B[s, t].

B and C rows reach all partitions by a ones matmul into PSUM (legacy rule 4); the published
counters of NKIBench's mamba say so: 117,440,512 flops, all of them broadcasts. A row of at most
one bank is read there by the only instruction that needs it (rule 2); a longer one is copied to
SBUF bank by bank. delta * u does not change with the state and moves out of a state loop inside
a channel loop (rule 7).
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import BANK, Balance, P, broadcast, load, ones_row, sbuf


def _spread(ones, row_hbm, columns, balance):
    """An HBM row [1, columns] on all partitions: in PSUM, or in SBUF if it needs several banks."""
    row = load(row_hbm)
    if columns <= BANK:
        return broadcast(ones, row)
    result = sbuf((P, columns))
    for start in range(0, columns, BANK):
        at = slice(start, min(start + BANK, columns))
        bank = broadcast(ones, row[:, at])
        engine = balance.choose(at.stop - at.start)
        nisa.tensor_copy(dst=result[:, at], src=bank, engine=engine)
    return result


def _product(a, b):
    result = sbuf(a.shape)
    nisa.tensor_tensor(dst=result, data1=a, data2=b, op=nl.multiply)
    return result


def _step(delta, a, delta_u, b, c, initial, total, balance):
    """One state of one tile: exp, ·B, scan, ·C, added to `total`. Returns the scan."""
    decay, scan = sbuf(delta.shape), sbuf(delta.shape)
    nisa.activation(dst=decay, op=nl.exp, data=delta, scale=a)
    balance.add("scalar", delta.shape[1])
    balance.add("vector", 8 * delta.shape[1])
    nisa.tensor_tensor_scan(
        dst=scan,
        data0=decay,
        data1=_product(delta_u, b),
        initial=initial,
        op0=nl.multiply,
        op1=nl.add,
    )
    nisa.tensor_tensor(dst=total, data1=total, data2=_product(scan, c), op=nl.add)
    return scan


def _zeros(shape, buffer=nl.sbuf):
    tile = nl.ndarray(shape, dtype=nl.float32, buffer=buffer)
    nisa.memset(dst=tile, value=0.0)
    return tile


@nki.jit
def states_outside(delta, u, a, b, c):
    """Tutorial version 1: states outside, channel tiles inside; delta and u are loaded anew.

    Args:
        delta: HBM tensor [channels, time] fp32, channels a multiple of 128; u alike.
        u: as delta.
        a: HBM tensor [channels, states].
        b: HBM tensor [states, time]; c alike.
        c: as b.

    Returns:
        HBM tensor [channels, time].
    """
    channels, time = delta.shape
    out = nl.ndarray((channels, time), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones, balance = ones_row(), Balance()
    totals = [_zeros((P, time)) for _ in range(channels // P)]
    for s in range(a.shape[1]):
        for tile, total in enumerate(totals):
            rows = slice(tile * P, (tile + 1) * P)
            delta_i, u_i, a_i = load(delta[rows, :]), load(u[rows, :]), load(a[rows, s : s + 1])
            b_all = _spread(ones, b[s : s + 1, :], time, balance)
            c_all = _spread(ones, c[s : s + 1, :], time, balance)
            _step(delta_i, a_i, _product(delta_i, u_i), b_all, c_all, 0.0, total, balance)
    for tile, total in enumerate(totals):
        nisa.dma_copy(dst=out[tile * P : (tile + 1) * P, :], src=total)
    return out


@nki.jit
def channels_outside(delta, u, a, b, c, load_a_once=False):
    """Tutorial version 2: channel tiles outside, states inside; delta and u are loaded once.

    autocomp's second step hoists delta * u by hand: the same instructions.

    Args:
        delta: HBM tensor [channels, time] fp32, channels a multiple of 128; u alike.
        u: as delta.
        a: HBM tensor [channels, states].
        b: HBM tensor [states, time]; c alike.
        c: as b.
        load_a_once: all states of `a` in one DMA (autocomp's third step).

    Returns:
        HBM tensor [channels, time].
    """
    channels, time = delta.shape
    out = nl.ndarray((channels, time), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones, balance = ones_row(), Balance()
    for tile in range(channels // P):
        rows = slice(tile * P, (tile + 1) * P)
        total = _zeros((P, time))
        delta_i, u_i = load(delta[rows, :]), load(u[rows, :])
        delta_u = _product(delta_i, u_i)
        a_all = load(a[rows, :]) if load_a_once else None
        for s in range(a.shape[1]):
            a_i = load(a[rows, s : s + 1]) if a_all is None else a_all[:, s : s + 1]
            b_all = _spread(ones, b[s : s + 1, :], time, balance)
            c_all = _spread(ones, c[s : s + 1, :], time, balance)
            _step(delta_i, a_i, delta_u, b_all, c_all, 0.0, total, balance)
        nisa.dma_copy(dst=out[rows, :], src=total)
    return out


@nki.jit
def time_tiled(delta, u, a, b, c, width=512):
    """Tutorial version 3: as version 2, with time in tiles whose last column starts the next.

    Args:
        delta: HBM tensor [channels, time] fp32, channels a multiple of 128, time of `width`.
        u: as delta.
        a: HBM tensor [channels, states].
        b: HBM tensor [states, time]; c alike.
        c: as b.
        width: columns of a time tile.

    Returns:
        HBM tensor [channels, time].
    """
    channels, time = delta.shape
    out = nl.ndarray((channels, time), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones, balance = ones_row(), Balance()
    for tile in range(channels // P):
        rows = slice(tile * P, (tile + 1) * P)
        total = _zeros((P, time))
        delta_i, u_i = load(delta[rows, :]), load(u[rows, :])
        delta_u = _product(delta_i, u_i)
        for s in range(a.shape[1]):
            a_i = load(a[rows, s : s + 1])
            carry = _zeros((P, 1))
            for start in range(0, time, width):
                at = slice(start, start + width)
                b_all = _spread(ones, b[s : s + 1, at], width, balance)
                c_all = _spread(ones, c[s : s + 1, at], width, balance)
                scan = _step(
                    delta_i[:, at], a_i, delta_u[:, at], b_all, c_all, carry, total[:, at], balance
                )
                nisa.tensor_copy(
                    dst=carry, src=scan[:, width - 1 : width], engine=nisa.engine.vector
                )
        nisa.dma_copy(dst=out[rows, :], src=total)
    return out


@nki.jit
def carried(delta, u, a, b, c, chunk_loads=False, width=512):
    """autocomp's steps 4 to 7: time tiles outside states, sums in PSUM, one carry per state.

    Args:
        delta: HBM tensor [channels, time] fp32, channels a multiple of 128, time of `width`.
        u: as delta.
        a: HBM tensor [channels, states].
        b: HBM tensor [states, time]; c alike.
        c: as b.
        chunk_loads: delta and u are loaded per time tile and not per channel tile.
        width: columns of a time tile.

    Returns:
        HBM tensor [channels, time].
    """
    channels, time = delta.shape
    states = a.shape[1]
    out = nl.ndarray((channels, time), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones, balance = ones_row(), Balance()
    for tile in range(channels // P):
        rows = slice(tile * P, (tile + 1) * P)
        if not chunk_loads:
            delta_all, u_all = load(delta[rows, :]), load(u[rows, :])
            product_all = _product(delta_all, u_all)
        a_all = load(a[rows, :])
        carry = _zeros((P, states))
        for start in range(0, time, width):
            at = slice(start, start + width)
            if chunk_loads:
                delta_i, u_i = load(delta[rows, at]), load(u[rows, at])
                product = _product(delta_i, u_i)
            else:
                delta_i, product = delta_all[:, at], product_all[:, at]
            total = _zeros((P, width), nl.psum)
            for s in range(states):
                b_all = _spread(ones, b[s : s + 1, at], width, balance)
                c_all = _spread(ones, c[s : s + 1, at], width, balance)
                column = slice(s, s + 1)
                scan = _step(
                    delta_i,
                    a_all[:, column],
                    product,
                    b_all,
                    c_all,
                    carry[:, column],
                    total,
                    balance,
                )
                nisa.tensor_copy(
                    dst=carry[:, column],
                    src=scan[:, width - 1 : width],
                    engine=nisa.engine.vector,
                )
            result = sbuf((P, width))
            nisa.tensor_copy(dst=result, src=total, engine=nisa.engine.vector)
            nisa.dma_copy(dst=out[rows, at], src=result)
    return out
