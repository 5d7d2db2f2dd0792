"""What the old compiler (`neuronxcc.nki`, SDK 2.20–2.27) makes of a kernel, as rules.

Kernels of that time name few buffers and fewer engines; the compiler decides. These rules are
read off the ten published trn2 profiles of trainium-kernel-fusion and the HBM, spill and flop
counters that NKIBench publishes with its latencies; none is read off a latency.

1. A copy, or an activation-like `tensor_scalar`, without an engine goes to whichever of Vector
   and Scalar has less to do so far.
2. A PSUM tile that the next instruction can read in place is not copied, as long as half of the
   banks are free.
3. Transposes of 128 columns fill a bank before one copy empties it.
4. A broadcast over partitions is a matmul with a row of ones, into PSUM.
5. Loops without dependency are split, so that one instruction kind runs over a block of tiles.
6. Loads of one place are issued once if the tiles fit into SBUF, else again at each use. Loads
   and stores of neighbouring tiles are merged into transfers of up to 512 KiB.
7. Elementwise work that does not change in the innermost loop moves out of it; transposes and
   broadcasts on the Tensor engine do not (NKIBench's flops count them in every iteration).
"""

import nki.isa as nisa
import nki.language as nl

P = 128
"""Partitions."""
BANK = 512
"""fp32 columns of a PSUM bank."""
TRANSFER = 512 * 1024
"""Bytes up to which neighbouring tiles are moved by one DMA (rule 6)."""


class Balance:
    """Rule 1: columns given to Vector and Scalar so far, and the choice between them."""

    def __init__(self):
        self.columns = {"vector": 0, "scalar": 0}

    def add(self, engine, columns):
        """Note work that has no choice."""
        self.columns[engine] += columns

    def choose(self, columns):
        """The less loaded engine (Scalar on a tie), which gets the work."""
        name = "vector" if self.columns["vector"] < self.columns["scalar"] else "scalar"
        self.columns[name] += columns
        return nisa.engine.vector if name == "vector" else nisa.engine.scalar


def sbuf(shape, dtype=nl.float32):
    """An SBUF tile."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def psum(columns=BANK, dtype=nl.float32, partitions=P):
    """A PSUM tile of one bank."""
    return nl.ndarray((partitions, columns), dtype=dtype, buffer=nl.psum)


def load(source, shape=None):
    """An SBUF tile with the contents of an HBM view."""
    tile = sbuf(source.shape if shape is None else shape, source.dtype)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def load_tiles(source, tiles, left, width):
    """Rule 6: the tiles source[128 t : 128 (t+1), left : left + width] for t in `tiles`."""
    each = P * width * source.dtype.itemsize
    group = max(1, TRANSFER // each)
    columns = source.shape[1]
    loaded = []
    for first in range(tiles.start, tiles.stop, group):
        count = min(group, tiles.stop - first)
        block = sbuf((P, count, width), source.dtype)
        view = source.ap(
            pattern=[[columns, P], [P * columns, count], [1, width]],
            offset=first * P * columns + left,
        )
        nisa.dma_copy(dst=block, src=view)
        loaded += [block[:, i, :] for i in range(count)]
    return loaded


def copied(source, balance, dtype=None):
    """The SBUF copy of a PSUM tile, on the engine that rule 1 chooses."""
    tile = sbuf(source.shape, source.dtype if dtype is None else dtype)
    nisa.tensor_copy(dst=tile, src=source, engine=balance.choose(source.shape[1]))
    return tile


def transposed(source, destination, balance):
    """Rule 3: destination[:, 128 j : 128 (j+1)] = source[:, 128 j : 128 (j+1)].T, by banks."""
    columns = source.shape[1]
    for start in range(0, columns, BANK):
        width = min(BANK, columns - start)
        bank = psum(width, source.dtype)
        for at in range(0, width, P):
            nisa.nc_transpose(
                dst=bank[:, at : at + P],
                data=source[:, start + at : start + at + P],
                engine=nisa.engine.tensor,
            )
        nisa.tensor_copy(
            dst=destination[:, start : start + width], src=bank, engine=balance.choose(width)
        )


def ones_row(dtype=nl.float32):
    """The stationary operand of rule 4: [1, 128] ones."""
    row = sbuf((1, P), dtype)
    nisa.memset(dst=row, value=1.0)
    return row


def broadcast(ones, row):
    """Rule 4: a [1, columns] row on all partitions, in PSUM; columns <= 512."""
    bank = psum(row.shape[1])
    nisa.nc_matmul(dst=bank, stationary=ones, moving=row, accumulate=False)
    return bank
