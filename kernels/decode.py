"""y = x·Wᵀ for few tokens: one launch for the scaled input, one for all blocks of a matrix.

Signs become ±64 as bytes, by one shift and one logic operation for four of them, and are multiplied by the bytes of Z
on the tensor cores; the sums are exact. W is never written out. Each program takes a tile of rows, a slice of columns
and a segment of the chain; the last one to arrive at a tile of rows adds up what all of them left, in one order.
"""

import os
from typing import Final

import torch
import triton
import triton.language as tl

from .configs import Config, choose
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
    address,
    load_segment_factors,
    scale_input,
)
from .table import Table
from .tiles import float8_decoding, jit


@jit
def spread(bytes_, BIT: tl.constexpr, NATIVE: tl.constexpr):
    """Bit BIT of each byte as -64 where it is set and 64 where not, int8."""
    if NATIVE:
        low = tl.full(bytes_.shape, 7 - BIT, tl.int8)
        sign = tl.full(bytes_.shape, -128, tl.int8)
        size = tl.full(bytes_.shape, 64, tl.int8)
        out = tl.inline_asm_elementwise(
            "{ .reg .b32 t; .reg .b32 k; and.b32 k, $2, 7; shl.b32 t, $1, k; lop3.b32 $0, t, $3, $4, 0xEA; }",
            "=r,r,r,r,r",
            [bytes_, low, sign, size],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    else:
        out = tl.where(((bytes_.to(tl.int32) >> BIT) & 1) > 0, -64, 64).to(tl.int8)
    return out


@jit
def multiply(
    x,
    row_scale,
    col_scale,
    bias,
    table,
    counts,
    z,
    z_scale,
    partial,
    arrived,
    y,
    all_rows,
    chain_rows,
    columns,
    col_stride,
    row_bytes,
    slices,
    capacity,
    EVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    PARTS: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (tile of rows, slice, chain · capacity + segment); see the module, and `scaled.scale_input` for Z."""
    tile = tl.program_id(0)
    part = tl.program_id(1)
    place = tl.program_id(2)
    chain = place // capacity
    segment = place % capacity
    n_segments = tl.load(counts + 2 * chain)
    n_signs = tl.load(counts + 2 * chain + 1)
    n_rows = tl.minimum(chain_rows, all_rows - chain * chain_rows)
    inner = tl.arange(0, ROWS)
    rows = tile * ROWS + inner
    inside = rows < n_rows
    row = table + place.to(tl.int64) * FIELDS
    tiles = tl.num_programs(0)
    sums = partial + (chain * tiles + tile).to(tl.int64) * (capacity * slices * TOKENS * ROWS)
    numbers: tl.constexpr = PARTS * TOKENS * RANKS
    # With no signs to multiply, nobody arrives, and one program ends the work.
    last = (n_signs == 0) & (segment == 0) & (part == 0) & (tile * ROWS < n_rows)
    if (segment < n_segments) & (tile * ROWS < n_rows) & (tl.load(row + KIND) != SPARSE):
        # Rows past the end are read from the last one: their sums are not used.
        stride = tl.multiple_of(tl.load(row + STRIDE), ALIGN)
        signs = tl.multiple_of(tl.load(row + FIRST).to(tl.pointer_type(tl.int8)), ALIGN)
        at = tl.minimum(rows, n_rows - 1).to(tl.int64) * stride
        byte = tl.arange(0, BYTES)
        n = tl.arange(0, numbers)
        base = signs + at[:, None] + (part * (SLICE // 8) + byte)[None, :]
        zs = z + (place.to(tl.int64) * slices + part) * (SLICE * numbers)
        acc = tl.zeros((ROWS, numbers), dtype=tl.int32)
        for t in tl.range(0, SLICE // (8 * BYTES), num_stages=STAGES):
            if EVEN:
                word = tl.load(base + t * BYTES)
            else:
                here = part * (SLICE // 8) + t * BYTES + byte < row_bytes
                word = tl.load(base + t * BYTES, mask=here[None, :], other=0)
            for bit in tl.static_range(8):
                b = tl.load(zs + ((t * 8 + bit) * numbers + n[:, None]) * BYTES + byte[None, :])
                acc = tl.dot(spread(word, bit, NATIVE), tl.trans(b), acc, out_dtype=tl.int32)
        unit = tl.load(z_scale + (place.to(tl.int64) * slices + part) * numbers + n)
        total = tl.reshape(acc.to(tl.float32) * unit[None, :], (ROWS, PARTS, TOKENS * RANKS))
        total = tl.reshape(tl.sum(total, axis=1), (ROWS, TOKENS, RANKS))
        k = tl.arange(0, RANKS)
        narrow = k < tl.load(row + WIDTH)
        u_at = rows.to(tl.int64)[:, None] * tl.load(row + RANK) + k[None, :]
        factor = load_segment_factors(row, U, u_at, inside[:, None] & narrow[None, :], FP8)
        gain = tl.load(row + GAIN).to(tl.int32).to(tl.float32, bitcast=True) * (-0.015625)
        size = tl.full((RANKS,), 1.0, tl.float32)
        if tl.load(row + SCALE) != 0:
            size = tl.load(address(row, SCALE, tl.float32) + k, mask=narrow, other=0)
        total = tl.sum(total * (factor * (size * gain)[None, :])[:, None, :], axis=2)
        token = tl.arange(0, TOKENS)
        slot = sums + (segment * slices + part) * (TOKENS * ROWS)
        tl.store(slot + inner[:, None] + token[None, :] * ROWS, total)
        tl.debug_barrier()
        before = tl.atomic_add(arrived + chain * tiles + tile, 1, sem="acq_rel")
        last = before == n_signs * slices - 1
    if last:
        tl.debug_barrier()
        slots = tl.arange(0, SLOTS)
        scale = tl.load(row_scale + chain * chain_rows + rows, mask=inside, other=0).to(tl.float32)
        for token in tl.static_range(TOKENS):
            total = tl.zeros((ROWS,), dtype=tl.float32)
            for s in range(0, n_segments * slices, SLOTS):
                slot = s + slots
                taken = slot < n_segments * slices
                kind = tl.load(
                    table + (chain * capacity + slot // slices).to(tl.int64) * FIELDS + KIND, mask=taken, other=0
                )
                # Single entries have one sum for all slices.
                taken = taken & ((kind != SPARSE) | (slot % slices == 0))
                total += tl.sum(
                    tl.load(
                        sums + slot[:, None] * (TOKENS * ROWS) + token * ROWS + inner[None, :],
                        mask=taken[:, None],
                        other=0,
                        cache_modifier=".cg",
                    ),
                    axis=0,
                )
            total *= scale
            if bias is not None:
                total += tl.load(bias + chain * chain_rows + rows, mask=inside, other=0).to(tl.float32)
            out = token * all_rows + chain * chain_rows + rows
            tl.store(y + out, total.to(y.dtype.element_ty), mask=inside)


NATIVE: Final = os.environ.get("TRITON_INTERPRET") != "1"
"""Whether kernels are compiled: the interpreter knows no assembly."""
_BYTES: Final = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4}
"""Bytes of a number of Z, by the type of x: 16 bits hold more than half precision does."""
_SLOTS: Final = 16


def multiply_few(
    x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor, config: Config | None = None
) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns], by a few tokens at a time.

    Capturable in a CUDA graph: what is resident is read from the table when the graph is replayed. All sums have one
    order, so that the same input gives the same bits.
    """
    parts = _BYTES[x.dtype]
    config = choose(x.device) if config is None else config
    with on_device(x.device):
        for start in range(0, len(x), config.tokens):
            _multiply(x[start : start + config.tokens], table, bias, out[start : start + config.tokens], parts, config)


def _multiply(
    x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor, parts: int, config: Config
) -> None:
    x = x.contiguous()
    tokens = 1 << (len(x) - 1).bit_length()
    if tokens != len(x):
        x = torch.cat([x, x.new_zeros(tokens - len(x), x.shape[1])])
        result = out.new_empty(tokens, out.shape[1])
    else:
        result = out
    slices = triton.cdiv(table.columns, config.slice)
    tiles = triton.cdiv(table.chain_rows, config.rows)
    numbers = parts * tokens * table.ranks
    places = table.n_chains * table.capacity
    z = torch.empty(places * slices * config.slice * numbers, dtype=torch.int8, device=x.device)
    z_scale = torch.empty(places * slices * numbers, dtype=torch.float32, device=x.device)
    partial = torch.empty(tiles * places * slices * tokens * config.rows, dtype=torch.float32, device=x.device)
    arrived = torch.empty(table.n_chains * tiles, dtype=torch.int32, device=x.device)
    shape = {"SLICE": config.slice, "BYTES": config.bytes, "TOKENS": tokens, "RANKS": table.ranks, "PARTS": parts}
    fp8 = float8_decoding(x.device)
    chunks = slices * (config.slice // config.chunk)
    scale_input[(max(chunks, tiles) if table.sparse else chunks, table.capacity, table.n_chains)](
        x,
        table.col_scale,
        table.rows_of_table,
        table.counts,
        z,
        z_scale,
        partial,
        arrived,
        table.rows,
        table.chain_rows,
        table.columns,
        table.col_stride,
        slices,
        table.capacity,
        tiles,
        FP8=fp8,
        ROWS=config.rows,
        CHUNK=config.chunk,
        ENTRIES=8,
        num_warps=config.scale_warps,
        **shape,
    )
    multiply[(tiles, slices, places)](
        x,
        table.row_scale,
        table.col_scale,
        bias,
        table.rows_of_table,
        table.counts,
        z,
        z_scale,
        partial,
        arrived,
        result,
        table.rows,
        table.chain_rows,
        table.columns,
        table.col_stride,
        table.row_bytes,
        slices,
        table.capacity,
        EVEN=table.columns % config.slice == 0,
        ALIGN=table.align,
        FP8=fp8,
        NATIVE=NATIVE,
        ROWS=config.rows,
        SLOTS=_SLOTS,
        STAGES=config.stages,
        num_warps=config.warps,
        **shape,
    )
    if result is not out:
        out.copy_(result[: len(out)])
