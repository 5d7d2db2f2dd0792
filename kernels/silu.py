"""SiLU, the gate activation of the experts."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def nki_silu_kernel(x, tile_columns=2048):
    """out = x * sigmoid(x), element by element, in fp32 with one final cast.

    The op has no structure, so a tensor whose size divides by 128 is taken as 128 long rows:
    all partitions work and DMA descriptors are long, whatever shape it had. On two cores (LNC2)
    each takes half of the columns of these, or else half of the rows.

    Args:
        x: HBM tensor [rows, columns], fp32 or bf16.
        tile_columns: compile-time int, columns of a tile, 1 to 16384.

    Returns:
        HBM tensor [rows, columns] of x's dtype.

    HBM bytes: 2 * rows * columns * itemsize. MACs on the Tensor engine: none.
    """
    assert 1 <= tile_columns <= 16384, "nki_silu_kernel: tile_columns must be 1 to 16384"
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    rows, columns = x.shape
    source = x
    destination = out
    if rows * columns % nl.tile_size.pmax == 0:
        columns = rows * columns // nl.tile_size.pmax
        rows = nl.tile_size.pmax
        source = x.reshape((rows, columns))
        destination = out.reshape((rows, columns))
    core = nl.program_id(0)
    cores = nl.num_programs()
    first, last = rows * core // cores, rows * (core + 1) // cores
    begin, end = 0, columns
    if rows == nl.tile_size.pmax:
        first, last = 0, rows
        begin, end = columns * core // cores, columns * (core + 1) // cores
    for start in range(first, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        for left in range(begin, end, tile_columns):
            width = min(tile_columns, end - left)
            tile = nl.ndarray((count, width), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=source[start : start + count, left : left + width])
            result = nl.ndarray((count, width), dtype=x.dtype, buffer=nl.sbuf)
            nisa.activation(dst=result, op=nl.silu, data=tile)
            nisa.dma_copy(dst=destination[start : start + count, left : left + width], src=result)
    return out
