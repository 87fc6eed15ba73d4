"""Sparse blocks with Triton: one program owns its rows, so every sum has one order."""

from typing import Final

import torch
import triton
import triton.language as tl

from .sparse import SparseBlock
from .tiles import jit, load_factors, raw_factors

ROWS: Final = 16
ENTRIES: Final = 32


@jit
def _row_begins(starts, offsets, rows, m, count, SHORT: tl.constexpr):
    """Load where rows begin; from row m on, the number of entries."""
    mask = rows < m
    inside = tl.load(offsets + rows, mask=mask, other=0).to(tl.int32)
    if SHORT:
        inside = inside & 0xFFFF
    return tl.where(mask, tl.load(starts + (rows >> 6), mask=mask, other=0) + inside, count)


@jit
def _load_entries(indices, values, scale, at, mask):
    """Load columns as int32 and scaled values as float32; zero where masked."""
    columns = tl.load(indices + at, mask=mask, other=0).to(tl.int32) & 0xFFFF
    return columns, load_factors(values, at, mask, True) * tl.load(scale)


@jit
def _decode_sparse(
    x,
    row_scale,
    col_scale,
    starts,
    offsets,
    indices,
    values,
    scale,
    partial,
    y,
    m,
    n,
    count,
    SHORT: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BM: tl.constexpr,
    BE: tl.constexpr,
):
    """Add the entries' part of one token's y for BM rows; the sum starts at FIRST and is scaled and stored at LAST."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    token = tl.program_id(1).to(tl.int64)
    row_mask = rows < m
    begin = _row_begins(starts, offsets, rows, m, count, SHORT)
    length = _row_begins(starts, offsets, rows + 1, m, count, SHORT) - begin
    total = tl.zeros((BM,), dtype=tl.float32)
    for e0 in range(0, tl.max(length), BE):
        es = e0 + tl.arange(0, BE)
        mask = es[None, :] < length[:, None]
        columns, weights = _load_entries(indices, values, scale, begin[:, None] + es[None, :], mask)
        xs = tl.load(x + token * n + columns, mask=mask, other=0).to(tl.float32)
        xs *= tl.load(col_scale + columns, mask=mask, other=0).to(tl.float32)
        total += tl.sum(xs * weights, axis=1)
    place = token * m + rows
    if not FIRST:
        total += tl.load(partial + place, mask=row_mask, other=0)
    if LAST:
        total *= tl.load(row_scale + rows, mask=row_mask, other=0).to(tl.float32)
        tl.store(y + place, total.to(y.dtype.element_ty), mask=row_mask)
    else:
        tl.store(partial + place, total, mask=row_mask)


@jit
def _rebuild_sparse(
    starts,
    offsets,
    indices,
    values,
    scale,
    w,
    first,
    stop,
    m,
    n,
    count,
    SHORT: tl.constexpr,
    BM: tl.constexpr,
    BE: tl.constexpr,
):
    """Add the entries of BM rows, of those from `first` to `stop`, to unscaled float32 rows; no place occurs twice."""
    rows = first + tl.program_id(0) * BM + tl.arange(0, BM)
    begin = _row_begins(starts, offsets, rows, m, count, SHORT)
    length = tl.where(rows < stop, _row_begins(starts, offsets, rows + 1, m, count, SHORT) - begin, 0)
    for e0 in range(0, tl.max(length), BE):
        es = e0 + tl.arange(0, BE)
        mask = es[None, :] < length[:, None]
        columns, weights = _load_entries(indices, values, scale, begin[:, None] + es[None, :], mask)
        place = (rows - first).to(tl.int64)[:, None] * n + columns
        tl.store(w + place, tl.load(w + place, mask=mask, other=0) + weights, mask=mask)


def decode(
    x: torch.Tensor,
    row_scale: torch.Tensor,
    col_scale: torch.Tensor,
    block: SparseBlock,
    partial: torch.Tensor,
    y: torch.Tensor,
    *,
    first: bool,
    last: bool,
) -> None:
    """Add a block's part of x·Wᵀ, for x [tokens, columns], to `partial`; FIRST and LAST as in the kernel."""
    grid = (triton.cdiv(block.rows, ROWS), len(x))
    _decode_sparse[grid](
        x,
        row_scale,
        col_scale,
        block.starts,
        block.offsets,
        block.indices,
        raw_factors(block.values),
        block.scale,
        partial,
        y,
        block.rows,
        block.columns,
        block.entries,
        SHORT=block.offsets.dtype == torch.int16,
        FIRST=first,
        LAST=last,
        BM=ROWS,
        BE=ENTRIES,
    )


def rebuild(block: SparseBlock, start: int, w: torch.Tensor) -> None:
    """Add the entries of the rows from `start` on to `w`, float32 [rows of the tile, columns], contiguous."""
    _rebuild_sparse[(triton.cdiv(len(w), ROWS),)](
        block.starts,
        block.offsets,
        block.indices,
        raw_factors(block.values),
        block.scale,
        w,
        start,
        start + len(w),
        block.rows,
        block.columns,
        block.entries,
        SHORT=block.offsets.dtype == torch.int16,
        BM=ROWS,
        BE=ENTRIES,
    )
