"""W itself with Triton: all of it for many tokens, or the rows that an embedding looks up. One launch for all factors.

The columns of a tile are worked on by their place in a byte of signs: eight small products, then one shift and one
logic operation for each sign.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from .devices import on_device
from .scaled import (
    FIELDS,
    FIRST,
    GAIN,
    KIND,
    RANK,
    SCALE,
    SPARSE,
    STRIDE,
    WIDTH,
    U,
    V,
    address,
    load_segment_factors,
    segment_begins,
)
from .table import RANKS, Table
from .tiles import float8_decoding, jit
from .triton_sparse import load_entries

ROWS: Final = 64
COLUMNS: Final = 128
ENTRY_ROWS: Final = 16
ENTRIES: Final = 32


@jit
def segment_size(row, ks, within):
    """What U of a segment is multiplied by, float32 [ranks]: its scale and its gain."""
    gain = tl.load(row + GAIN).to(tl.int32).to(tl.float32, bitcast=True)
    size = tl.where(within, gain, 0.0)
    if tl.load(row + SCALE) != 0:
        size *= tl.load(address(row, SCALE, tl.float32) + ks, mask=within, other=0)
    return size


@jit
def flip(value, bytes_, bit):
    """Values with their signs turned where the bit of the byte is clear."""
    mask = ((bytes_ ^ 255) << (31 - bit)) & -2147483648
    return (value.to(tl.int32, bitcast=True) ^ mask).to(tl.float32, bitcast=True)


@jit
def rebuild_products(
    row_scale,
    col_scale,
    table,
    counts,
    w,
    first_row,
    all_rows,
    chain_rows,
    columns,
    col_stride,
    row_bytes,
    capacity,
    FP8: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Write a tile of W, but for single entries; program (tile of rows, tile of columns, chain)."""
    chain = tl.program_id(2)
    n_rows = tl.minimum(chain_rows, all_rows - chain * chain_rows)
    rows = first_row + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < n_rows
    ks = tl.arange(0, RANKS)
    bytes_: tl.constexpr = COLUMNS // 8
    bit = tl.arange(0, 8)
    byte = tl.program_id(1) * bytes_ + tl.arange(0, bytes_)
    column = byte[None, :] * 8 + bit[:, None]
    inside = column < columns
    acc = tl.zeros((8, ROWS, bytes_), dtype=tl.float32)
    for segment in range(tl.load(counts + 2 * chain)):
        row = table + (chain * capacity + segment).to(tl.int64) * FIELDS
        if tl.load(row + KIND) != SPARSE:
            within = ks < tl.load(row + WIDTH)
            rank = tl.load(row + RANK)
            size = segment_size(row, ks, within)
            u_at = rows.to(tl.int64)[:, None] * rank + ks[None, :]
            u = load_segment_factors(row, U, u_at, row_mask[:, None] & within[None, :], FP8)
            v_at = column.to(tl.int64)[:, None, :] * rank + ks[None, :, None]
            v = load_segment_factors(row, V, v_at, inside[:, None, :] & within[None, :, None], FP8)
            if EXACT:
                left = tl.broadcast_to((u * size[None, :])[None, :, :], (8, ROWS, RANKS))
                product = tl.dot(left, v, input_precision="ieee")
            else:
                # The largest size goes outside, so that half precision holds the rest.
                unit = tl.max(tl.abs(size), axis=0)
                inner = size / tl.where(unit > 0, unit, 1.0)
                left = tl.broadcast_to((u * inner[None, :]).to(tl.float16)[None, :, :], (8, ROWS, RANKS))
                product = tl.dot(left, v.to(tl.float16)) * unit
            stride = tl.load(row + STRIDE)
            mask = row_mask[:, None] & (byte < row_bytes)[None, :]
            signs = tl.load(
                address(row, FIRST, tl.uint8) + rows.to(tl.int64)[:, None] * stride + byte[None, :], mask=mask, other=0
            )
            acc += flip(product, signs.to(tl.int32)[None, :, :], bit[:, None, None])
    scale = tl.load(row_scale + chain * chain_rows + rows, mask=row_mask, other=0).to(tl.float32)
    own = col_scale + chain.to(tl.int64) * col_stride
    across = tl.load(own + column, mask=inside, other=0).to(tl.float32)
    acc = acc * scale[None, :, None] * across[:, None, :]
    out = tl.reshape(tl.permute(acc.to(w.dtype.element_ty), (1, 2, 0)), (ROWS, COLUMNS))
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = (chain.to(tl.int64) * chain_rows + rows - first_row)[:, None] * columns + at[None, :]
    tl.store(w + place, out, mask=row_mask[:, None] & (at < columns)[None, :])


@jit
def add_entries(
    row_scale,
    col_scale,
    table,
    counts,
    w,
    first_row,
    stop_row,
    all_rows,
    chain_rows,
    columns,
    col_stride,
    capacity,
    FP8: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Add single entries to rows of W, block after block; program (tile of rows, chain)."""
    chain = tl.program_id(1)
    n_rows = tl.minimum(chain_rows, all_rows - chain * chain_rows)
    rows = first_row + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < tl.minimum(n_rows, stop_row)
    scale = tl.load(row_scale + chain * chain_rows + rows, mask=inside, other=0).to(tl.float32)
    own = col_scale + chain.to(tl.int64) * col_stride
    start = (chain.to(tl.int64) * chain_rows + rows - first_row) * columns
    for segment in range(tl.load(counts + 2 * chain)):
        row = table + (chain * capacity + segment).to(tl.int64) * FIELDS
        if tl.load(row + KIND) == SPARSE:
            begin = segment_begins(row, rows, n_rows)
            length = tl.where(inside, segment_begins(row, rows + 1, n_rows) - begin, 0)
            for e0 in range(0, tl.max(length), ENTRIES):
                es = e0 + tl.arange(0, ENTRIES)
                mask = es[None, :] < length[:, None]
                at, value = load_entries(
                    address(row, V, tl.int16),
                    address(row, STRIDE, tl.uint8),
                    address(row, SCALE, tl.float32),
                    begin[:, None] + es[None, :],
                    mask,
                    FP8,
                )
                value *= scale[:, None] * tl.load(own + at, mask=mask, other=0).to(tl.float32)
                place = w + start[:, None] + at
                value += tl.load(place, mask=mask, other=0).to(tl.float32)
                tl.store(place, value.to(w.dtype.element_ty), mask=mask)
            tl.debug_barrier()


@jit
def look_up(
    ids,
    row_scale,
    col_scale,
    table,
    counts,
    w,
    all_rows,
    chain_rows,
    columns,
    col_stride,
    row_bytes,
    capacity,
    FP8: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Write a part of one row of W that an id names; program (number of the id, tile of columns)."""
    number = tl.program_id(0).to(tl.int64)
    wanted = tl.load(ids + number)
    wanted = tl.where(wanted < 0, wanted + all_rows, wanted)
    chain = wanted // chain_rows
    local = wanted - chain * chain_rows
    n_rows = tl.minimum(chain_rows, all_rows - chain * chain_rows)
    ks = tl.arange(0, RANKS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    acc = tl.zeros((COLUMNS,), dtype=tl.float32)
    for segment in range(tl.load(counts + 2 * chain)):
        row = table + (chain * capacity + segment) * FIELDS
        if tl.load(row + KIND) == SPARSE:
            begin = segment_begins(row, local, n_rows)
            end = segment_begins(row, local + 1, n_rows)
            for e0 in range(begin, end, ENTRIES):
                es = e0 + tl.arange(0, ENTRIES)
                mask = es < end
                at, value = load_entries(
                    address(row, V, tl.int16),
                    address(row, STRIDE, tl.uint8),
                    address(row, SCALE, tl.float32),
                    es,
                    mask,
                    FP8,
                )
                acc += tl.sum(tl.where((at[None, :] == column[:, None]) & mask[None, :], value[None, :], 0.0), axis=1)
        else:
            within = ks < tl.load(row + WIDTH)
            rank = tl.load(row + RANK)
            u = load_segment_factors(row, U, local * rank + ks, within, FP8) * segment_size(row, ks, within)
            v_at = column.to(tl.int64)[:, None] * rank + ks[None, :]
            v = load_segment_factors(row, V, v_at, inside[:, None] & within[None, :], FP8)
            signs = tl.load(
                address(row, FIRST, tl.uint8) + local * tl.load(row + STRIDE) + column // 8, mask=inside, other=0
            )
            acc += flip(tl.sum(u[None, :] * v, axis=1), signs.to(tl.int32), column % 8)
    acc *= tl.load(row_scale + wanted).to(tl.float32)
    acc *= tl.load(col_scale + chain * col_stride + column, mask=inside, other=0).to(tl.float32)
    tl.store(w + number * columns + column, acc.to(w.dtype.element_ty), mask=inside)


def rebuild(table: Table, out: torch.Tensor, start: int = 0, stop: int | None = None) -> None:
    """Write W to `out` [rows, columns], summed in float32.

    Rounded once, and once more for each sparse block where it has an entry. From half precision on, factors are
    multiplied in half precision, with float32 sums.

    Args:
        table: the matrix.
        out: contiguous [rows, columns]; of one chain only, also a part of its rows.
        start: the first row of the part.
        stop: the row after its last.
    """
    rows = (table.chain_rows if stop is None else stop) - start
    fp8 = float8_decoding(out.device)
    shared = (table.row_scale, table.col_scale, table.rows_of_table, table.counts, out, start)
    last = table.rows if stop is None else stop
    with on_device(out.device):
        rebuild_products[(triton.cdiv(rows, ROWS), triton.cdiv(table.columns, COLUMNS), table.n_chains)](
            *shared,
            min(last, table.rows),
            table.chain_rows,
            table.columns,
            table.col_stride,
            table.row_bytes,
            table.capacity,
            FP8=fp8,
            EXACT=out.dtype == torch.float32,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANKS=RANKS,  # also where segments have 8: tensor cores take 16 at least
        )
        if table.sparse:
            add_entries[(triton.cdiv(rows, ENTRY_ROWS), table.n_chains)](
                *shared,
                start + rows,
                table.rows,
                table.chain_rows,
                table.columns,
                table.col_stride,
                table.capacity,
                FP8=fp8,
                ROWS=ENTRY_ROWS,
                ENTRIES=ENTRIES,
            )


def rows(table: Table, ids: torch.Tensor, out: torch.Tensor) -> None:
    """Write the rows `ids` (int64 [n]) of W to `out` [n, columns], summed in float32 and rounded once."""
    columns = 256
    with on_device(out.device):
        look_up[(len(ids), triton.cdiv(table.columns, columns))](
            ids,
            table.row_scale,
            table.col_scale,
            table.rows_of_table,
            table.counts,
            out,
            table.rows,
            table.chain_rows,
            table.columns,
            table.col_stride,
            table.row_bytes,
            table.capacity,
            FP8=float8_decoding(out.device),
            COLUMNS=columns,
            RANKS=table.ranks,
            ENTRIES=ENTRIES,
        )
