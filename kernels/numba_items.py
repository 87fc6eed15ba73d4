"""What a chain's plan holds, and the compiled functions that read one item of it.

A plan is an array of int64, most of them addresses: HEAD numbers for the chain, then ITEM for each run of planes on the
same factors, each low-rank block and each sparse block. `numba_path.Plan` writes it.
"""

from typing import Any, Final

from numba import types

from .numba_memory import (
    compiled,
    float_of_bits,
    read_f16,
    read_f32,
    read_i32,
    read_i64,
    read_u8,
    read_u16,
    write_f32,
    write_i64,
)
from .numba_vectors import LANES

HEAD: Final = 8
"""Numbers of a plan before its items.

Rows, columns, bytes of a row of signs, row scale, its type, column scale, its type, how many items.
"""
ITEM: Final = 12
"""Numbers of an item.

A product: 0, planes, rank, type of the factors, U, V, scale or 0, gains, four planes of signs.
A sparse block: 1, entries, whether offsets have 32 bits, scale, starts, offsets, columns, values.
"""
F32: Final = 0
F16: Final = 1
BF16: Final = 2
F8: Final = 3
"""Types of numbers in a plan."""


@compiled
def width_of(rank: int) -> int:
    """Return the width of the next loop, of those that are compiled, for what is left of a rank."""
    if rank > 4:
        return 8
    return 4 if rank > 2 else rank


@compiled
def padded(rank: int) -> int:
    """Return the ranks that all loops over a rank work on together."""
    last = rank & 7
    return rank - last + (width_of(last) if last else 0)


@compiled
def read_number(address: int, index: int, kind: int, e4m3: int) -> float:
    """Return number `index` of those at an address; `e4m3` is the address of the 256 values of that type."""
    if kind == F8:
        return read_f32(e4m3 + 4 * read_u8(address + index))
    if kind == F16:
        return read_f16(address + 2 * index)
    if kind == BF16:
        return float_of_bits(read_u16(address + 2 * index) << 16)
    return read_f32(address + 4 * index)


@compiled
def z_floats(plan: int, item: int) -> int:
    """Return how many float32 of z an item needs for one token."""
    if read_i64(item):
        return 0
    groups = (read_i64(plan + 8) + LANES - 1) // LANES
    return groups * LANES * padded(read_i64(item + 16))


@compiled
def fill_z(plan: int, item: int, x: int, z: int, e4m3: int) -> None:
    """Write z[k, j] = x[j] · V[j, k] · scale[k] in groups: for each eight k, [groups, k, 16 columns]."""
    columns, rank, kind = read_i64(plan + 8), read_i64(item + 16), read_i64(item + 24)
    v, scale = read_i64(item + 40), read_i64(item + 48)
    groups = (columns + LANES - 1) // LANES
    first = 0
    while first < rank:
        width = width_of(rank - first)
        for k in range(width):
            if first + k >= rank:
                for g in range(groups):
                    for lane in range(LANES):
                        write_f32(z + 4 * ((g * width + k) * LANES + lane), types.float32(0))
                continue
            factor = read_f32(scale + 4 * (first + k)) if scale else types.float32(1)
            for j in range(groups * LANES):
                value = types.float32(0)
                if j < columns:
                    value = read_f32(x + 4 * j) * read_number(v, j * rank + first + k, kind, e4m3) * factor
                write_f32(z + 4 * (((j >> 4) * width + k) * LANES + (j & 15)), value)
        z += 4 * groups * LANES * width
        first += width


@compiled
def load_u(item: int, row: int, first: int, width: int, factor: Any, target: int, e4m3: int) -> None:
    """Write factor (a float32) · U[row, first … first + width − 1] to float32 [width], zeros past the rank."""
    rank, kind, u = read_i64(item + 16), read_i64(item + 24), read_i64(item + 32)
    for k in range(width):
        value = types.float32(0)
        if first + k < rank:
            value = factor * read_number(u, row * rank + first + k, kind, e4m3)
        write_f32(target + 4 * k, value)


@compiled
def last_gain(item: int) -> float:
    """Return the gain of the last plane, or 1."""
    return read_f32(read_i64(item + 56) + 4 * max(0, read_i64(item + 8) - 1))


@compiled
def place_signs(item: int, row: int, row_bytes: int, target: int) -> None:
    """Write where the signs of a row begin in every plane."""
    for plane in range(read_i64(item + 8)):
        write_i64(target + 8 * plane, read_i64(item + 64 + 8 * plane) + row * row_bytes)


@compiled
def entries_begin(item: int, row: int) -> int:
    """Return the first entry of a row of a sparse block."""
    offsets = read_i64(item + 40)
    own = read_i32(offsets + 4 * row) if read_i64(item + 16) else read_u16(offsets + 2 * row)
    return read_i32(read_i64(item + 32) + 4 * (row >> 6)) + own


@compiled
def entries_end(item: int, row: int, rows: int) -> int:
    """Return the entry after the last one of a row of a sparse block."""
    return entries_begin(item, row + 1) if row + 1 < rows else read_i64(item + 8)
