"""The scaled input of a decoding step: Z = diag(x·col_scale)·V of every segment, as bytes that tensor cores multiply.

Each number becomes a whole number of 16 bits (32 for float32 input) times a scale that a slice of columns and a column
of V share. Its bytes are the *parts* of Z, the highest first. `decode` multiplies them by signs. Single entries are
multiplied here, while the rest of the device has nothing to do yet.
"""

import triton.language as tl

from .tiles import jit, load_factors
from .triton_sparse import load_entries, row_begins

# Fields of a row of a `table.Table`, in the order they lie in: what a segment is, and where its tensors are. For single
# entries, FIRST to V are the starts, the offsets and the columns, STRIDE the values, RANK their number and WIDTH the
# bytes of an offset.
KIND = tl.constexpr(0)
FIRST = tl.constexpr(1)
U = tl.constexpr(2)
V = tl.constexpr(3)
SCALE = tl.constexpr(4)
STRIDE = tl.constexpr(5)
RANK = tl.constexpr(6)
WIDTH = tl.constexpr(7)
GAIN = tl.constexpr(8)
FIELDS = tl.constexpr(12)
# Kinds: signs with float16 factors, with float8 factors, single entries.
SIGN16 = tl.constexpr(1)
SIGN8 = tl.constexpr(2)
SPARSE = tl.constexpr(3)


@jit
def address(table, field, TYPE: tl.constexpr):
    """The address in a field of a row of a table, as a pointer."""
    return tl.load(table + field).to(tl.pointer_type(TYPE))


@jit
def load_segment_factors(table, field, at, mask, FP8: tl.constexpr):
    """Load U or V of a segment as float32, whichever type they have; zero where masked."""
    if tl.load(table + KIND) == SIGN8:
        factors = load_factors(address(table, field, tl.uint8), at, mask, FP8)
    else:
        factors = load_factors(address(table, field, tl.float16), at, mask, 0)
    return factors


@jit
def segment_begins(row, rows, n_rows):
    """Where the entries of rows begin in a sparse block; those of row n_rows, which is not there, at its end."""
    starts, count = address(row, FIRST, tl.int32), tl.load(row + RANK).to(tl.int32)
    if tl.load(row + WIDTH) == 2:
        begins = row_begins(starts, address(row, U, tl.int16), rows, n_rows, count, True)
    else:
        begins = row_begins(starts, address(row, U, tl.int32), rows, n_rows, count, False)
    return begins


@jit
def sum_entries(
    x, col_scale, row, rows, n_rows, columns, token, ROWS: tl.constexpr, ENTRIES: tl.constexpr, FP8: tl.constexpr
):
    """Σ over the entries of each row of value · x · col_scale, float32 [ROWS]."""
    begin = segment_begins(row, rows, n_rows)
    length = segment_begins(row, rows + 1, n_rows) - begin
    indices, values, scale = address(row, V, tl.int16), address(row, STRIDE, tl.uint8), address(row, SCALE, tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for e0 in range(0, tl.max(length), ENTRIES):
        es = e0 + tl.arange(0, ENTRIES)
        mask = es[None, :] < length[:, None]
        at, value = load_entries(indices, values, scale, begin[:, None] + es[None, :], mask, FP8)
        xs = tl.load(x + token * columns + at, mask=mask, other=0).to(tl.float32)
        total += tl.sum(xs * tl.load(col_scale + at, mask=mask, other=0).to(tl.float32) * value, axis=1)
    return total


@jit
def scaled_factors(x, col_scale, row, column, columns, ks, rank, within, FP8: tl.constexpr):
    """Rows of V of a segment times x and col_scale, float32; zero past the last column."""
    inside = column < columns
    v_at = column.to(tl.int64)[:, None] * rank + ks[None, :]
    v = load_segment_factors(row, V, v_at, inside[:, None] & within[None, :], FP8)
    xs = tl.load(x + column, mask=inside, other=0).to(tl.float32)
    return v * (xs * tl.load(col_scale + column, mask=inside, other=0).to(tl.float32))[:, None]


@jit
def scale_input(
    x,
    col_scale,
    table,
    counts,
    z,
    z_scale,
    partial,
    arrived,
    all_rows,
    chain_rows,
    columns,
    col_stride,
    slices,
    capacity,
    tiles,
    FP8: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    CHUNK: tl.constexpr,
    BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    PARTS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Make one chunk of a slice of Z for one segment of one chain; program (chunk or tile of rows, segment, chain).

    Z is stored as [chain, segment, slice, tile, bit, part, token, rank, byte]: what one product with one bit of BYTES
    bytes of signs takes is contiguous. A segment of single entries is multiplied, a tile of rows by each program. Also
    clears the counters of arrivals of `decode.multiply`.
    """
    part = tl.program_id(0)
    segment = tl.program_id(1)
    chain = tl.program_id(2)
    if segment == 0:
        for start in range(part * 128, tiles, tl.num_programs(0) * 128):
            at = start + tl.arange(0, 128)
            tl.store(arrived + chain * tiles + at, tl.zeros((128,), tl.int32), mask=at < tiles)
    place = chain * capacity + segment
    row = table + place.to(tl.int64) * FIELDS
    kind = tl.load(row + KIND)
    own_scale = col_scale + chain.to(tl.int64) * col_stride
    if segment < tl.load(counts + 2 * chain):
        if kind == SPARSE:
            n_rows = tl.minimum(chain_rows, all_rows - chain * chain_rows)
            inner = tl.arange(0, ROWS)
            if (part < tiles) & (part * ROWS < n_rows):
                sums = partial + ((chain * tiles + part).to(tl.int64) * capacity + segment) * (slices * TOKENS * ROWS)
                for token in tl.static_range(TOKENS):
                    total = sum_entries(
                        x, own_scale, row, part * ROWS + inner, n_rows, columns, token, ROWS, ENTRIES, FP8
                    )
                    tl.store(sums + token * ROWS + inner, total)
        elif part * CHUNK < slices * SLICE:
            rank = tl.load(row + RANK)
            ks = tl.arange(0, RANKS)
            inside_chunk = tl.arange(0, CHUNK)
            within = ks < tl.load(row + WIDTH)
            numbers: tl.constexpr = PARTS * TOKENS * RANKS
            top: tl.constexpr = 127.0 * (1 << (8 * PARTS - 8))
            first = part * CHUNK // SLICE * SLICE
            base = place.to(tl.int64) * slices + part * CHUNK // SLICE
            column = part * CHUNK + inside_chunk
            inside = column < columns
            v_at = column.to(tl.int64)[:, None] * rank + ks[None, :]
            v = load_segment_factors(row, V, v_at, inside[:, None] & within[None, :], FP8)
            c = tl.load(own_scale + column, mask=inside, other=0).to(tl.float32)
            # Where its columns lie, as [tile, bit, k, byte]: what one product takes is contiguous.
            tiles_here: tl.constexpr = CHUNK // (8 * BYTES)
            tile = (part * CHUNK - first) // (8 * BYTES) + tl.arange(0, tiles_here)
            lines = (tile[:, None] * 8 + tl.arange(0, 8)[None, :]) * (numbers * BYTES)
            for token in tl.static_range(TOKENS):
                # The largest of the slice, of which this chunk may be a part.
                largest = tl.zeros((RANKS,), tl.float32)
                broken = tl.zeros((RANKS,), tl.int32)
                for start in range(first, tl.minimum(first + SLICE, columns), CHUNK):
                    value = scaled_factors(
                        x + token * columns, own_scale, row, start + inside_chunk, columns, ks, rank, within, FP8
                    )
                    largest = tl.maximum(largest, tl.max(tl.abs(value), axis=0))
                    odd = (value != value) | (tl.abs(value) == float("inf"))
                    broken = tl.maximum(broken, tl.max(odd.to(tl.int32), axis=0))
                # Where something is infinite or not a number, so is the scale, and with it the result.
                some = (largest > 1e-30) & (broken == 0)
                step = tl.where(some, largest / top, 0.0)
                step = tl.where(broken > 0, float("nan"), step)
                xs = tl.load(x + token * columns + column, mask=inside, other=0).to(tl.float32)
                whole = v * (xs * c)[:, None] * (top / tl.where(some, largest, 1.0))[None, :]
                whole = tl.where(some[None, :], whole, 0.0)
                number = tl.where(whole < 0, whole - 0.5, whole + 0.5).to(tl.int32)
                for low in tl.static_range(PARTS):
                    n = ((PARTS - 1 - low) * TOKENS + token) * RANKS + ks
                    tl.store(z_scale + base * numbers + n, step * (1 << (8 * low)))
                    digit = ((number + 128) & 255) - 128
                    number = (number - digit) >> 8
                    by_byte = tl.reshape(digit.to(tl.int8), (tiles_here, BYTES, 8, RANKS))
                    by_byte = tl.permute(by_byte, (0, 2, 3, 1))
                    at = (
                        lines[:, :, None, None]
                        + (n * BYTES)[None, None, :, None]
                        + tl.arange(0, BYTES)[None, None, None, :]
                    )
                    tl.store(z + base * (SLICE * numbers) + at, by_byte)
