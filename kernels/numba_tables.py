"""Products by look-up: for sign blocks of rank 8 with few planes, on matrices of enough rows.

A sign byte selects one of 256 sums of eight entries of Z; all of them are tabulated for every byte column, eight ranks
side by side, and a row's product is the sum of the entries that its bytes select. An entry costs a load and an addition
of eight lanes, where `numba_vectors` multiplies eight vectors of sixteen.
"""

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .numba_items import load_u, padded, read_number
from .numba_memory import compiled, read_f32, read_i64, write_f32

WIDTH: Final = 8
"""Ranks that lie side by side in the table."""
TABLE_ROWS: Final = 2048
"""A table pays from about this number of rows."""
TABLE_PLANES: Final = 2
"""Up to this number of planes look-ups are cheaper than codes."""
TABLE_BYTES: Final = 36
"""Byte columns that are tabulated at a time, 8 KiB each: a table stays in the second cache."""
TABLE_FLOATS: Final = TABLE_BYTES * 256 * WIDTH + 8 * WIDTH
"""Float32 of scratch for a table and the Z of one byte column.

Every thread makes its own: to read what another processor wrote takes longer than to make it.
"""
TABLE_STEP: Final = 4
"""Rows that are worked on at a time, so that their additions do not wait for each other."""

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, WIDTH)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1 if kind is _I8 else 4)


@intrinsic
def _add_eight(ctx: Any, target: Any, source: Any, addend: Any) -> Any:
    """target[k] = source[k] + addend[k] for eight float32 at addresses."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        total = builder.fadd(_at(builder, args[1], _VECTOR), _at(builder, args[2], _VECTOR))
        builder.store(total, builder.inttoptr(args[0], _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


def _look_up(rows: int) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        signs, row_bytes, count, table, u, gain, y = args
        zero, one = ir.Constant(_I64, 0), ir.Constant(_I64, 1)
        before = builder.block
        head, inside, done = (builder.append_basic_block() for _ in range(3))
        starts = [builder.add(signs, builder.mul(row_bytes, ir.Constant(_I64, r))) for r in range(rows)]
        builder.branch(head)
        builder.position_at_end(head)
        byte = builder.phi(_I64)
        byte.add_incoming(zero, before)
        sums = [builder.phi(_VECTOR) for _ in range(rows)]
        for total in sums:
            total.add_incoming(ir.Constant(_VECTOR, [0.0] * WIDTH), before)
        builder.cbranch(builder.icmp_unsigned("<", byte, count), inside, done)
        builder.position_at_end(inside)
        own = builder.add(table, builder.mul(byte, ir.Constant(_I64, 1024 * WIDTH)))
        for total, start in zip(sums, starts, strict=True):
            entry = builder.zext(_at(builder, builder.add(start, byte), _I8), _I64)
            place = builder.add(own, builder.mul(entry, ir.Constant(_I64, 4 * WIDTH)))
            total.add_incoming(builder.fadd(total, _at(builder, place, _VECTOR)), inside)
        byte.add_incoming(builder.add(byte, one), inside)
        builder.branch(head)
        builder.position_at_end(done)
        for r, total in enumerate(sums):
            factors = _at(builder, builder.add(u, ir.Constant(_I64, 4 * WIDTH * r)), _VECTOR)
            product = builder.fmul(factors, total)
            half = WIDTH // 2
            while half:
                lanes = [*range(half, 2 * half), *range(half), *range(2 * half, WIDTH)]
                mask = ir.Constant(ir.VectorType(_I32, WIDTH), lanes)
                product = builder.fadd(product, builder.shuffle_vector(product, product, mask))
                half //= 2
            target = builder.inttoptr(builder.add(y, ir.Constant(_I64, 4 * r)), _F32.as_pointer())
            part = builder.fmul(gain, builder.extract_element(product, ir.Constant(_I32, 0)))
            builder.store(builder.fadd(builder.load(target, align=4), part), target, align=4)
        return context.get_dummy_value()

    @intrinsic
    def look_up(ctx: Any, signs: Any, row_bytes: Any, count: Any, table: Any, u: Any, gain: Any, y: Any) -> Any:
        return types.void(*[types.int64] * 5, types.float32, types.int64), emit

    return look_up


_look_up_one = _look_up(1)
_look_up_many = _look_up(TABLE_STEP)


@compiled
def by_table(plan: int, item: int) -> bool:
    """Whether an item is multiplied by look-ups."""
    planes = read_i64(item + 8)
    return (
        read_i64(item) == 0
        and 1 <= planes <= TABLE_PLANES
        and padded(read_i64(item + 16)) % WIDTH == 0
        and read_i64(plan) >= TABLE_ROWS
    )


@compiled
def fill_table(plan: int, item: int, first: int, byte: int, count: int, x: int, table: int, e4m3: int) -> None:
    """Tabulate `count` byte columns from `byte` on for ranks `first` to `first` + 7: float32 [count, 256, 8]."""
    columns, rank, kind = read_i64(plan + 8), read_i64(item + 16), read_i64(item + 24)
    v, scale = read_i64(item + 40), read_i64(item + 48)
    twice = table + 1024 * WIDTH * count
    for b in range(count):
        own = table + 1024 * WIDTH * b
        for k in range(WIDTH):
            write_f32(own + 4 * k, types.float32(0))
        for bit in range(8):
            j = 8 * (byte + b) + bit
            for k in range(WIDTH):
                value = types.float32(0)
                if j < columns and first + k < rank:
                    factor = read_f32(scale + 4 * (first + k)) if scale else types.float32(1)
                    value = read_f32(x + 4 * j) * read_number(v, j * rank + first + k, kind, e4m3) * factor
                write_f32(own + 4 * k, read_f32(own + 4 * k) - value)
                write_f32(twice + 4 * (WIDTH * bit + k), value + value)
        for bit in range(8):
            half = 1 << bit
            for entry in range(half):
                _add_eight(own + 4 * WIDTH * (half + entry), own + 4 * WIDTH * entry, twice + 4 * WIDTH * bit)


@compiled
def add_by_table(
    plan: int, item: int, first: int, byte: int, count: int, table: int, a: int, b: int, u: int, y: int, e4m3: int
) -> None:
    """Add to rows a … b − 1 of y what a table makes of their signs; `u` is scratch of float32 [rows, 8]."""
    row_bytes = read_i64(plan + 16)
    for i in range(a, b):
        load_u(item, i, first, WIDTH, types.float32(1), u + 4 * WIDTH * (i - a), e4m3)
    for plane in range(read_i64(item + 8)):
        signs = read_i64(item + 64 + 8 * plane) + byte
        gain = read_f32(read_i64(item + 56) + 4 * plane)
        i = a
        while i < b:
            start, own = signs + i * row_bytes, u + 4 * WIDTH * (i - a)
            if i + TABLE_STEP <= b:
                _look_up_many(start, row_bytes, count, table, own, gain, y + 4 * i)
                i += TABLE_STEP
            else:
                _look_up_one(start, row_bytes, count, table, own, gain, y + 4 * i)
                i += 1
