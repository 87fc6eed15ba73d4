"""Sixteen float32 lanes at a time, written as LLVM's vectors: what the loops of `numba_loops` are made of.

LLVM lowers them to whatever the processor has: with AVX-512 the sixteen sign bits of a group are a mask register and a
plane is one masked addition; elsewhere it builds the masks itself. Every sum has one order, fixed when it is compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES: Final = 16
"""Columns that are worked on at a time."""
PLANES: Final = 4
"""Planes that one pass over a row adds up."""
WIDTHS: Final = (1, 2, 4, 8)
"""Ranks that a loop is compiled for; others are made of these."""

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)

SUMS: Final = 16
"""Vectors of sums that are held in registers, of the 32 that AVX-512 has."""

Body = Callable[[Any, bool, Sequence[Any]], Sequence[Any]]
"""From the offset of a group's signs, whether only one byte of them is left, and what is carried, to what is made."""


def _pointer(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    """Return a pointer to `kind` at an address, `offset` bytes further on."""
    return builder.inttoptr(address if offset is None else builder.add(address, offset), kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    return builder.load(_pointer(builder, address, kind, offset), align=1 if kind in (_I8, _I16) else 4)


def _spread(builder: Any, scalar: Any) -> Any:
    """Return a vector of one number."""
    zero = ir.Constant(_I32, 0)
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, zero)
    lanes = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), lanes)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, in one rounding where the processor can."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, (a, b, c))


def _lane_sum(builder: Any, vector: Any) -> Any:
    """Return the sum of the lanes: halves onto halves, so in one order everywhere."""
    half = LANES // 2
    while half:
        lanes = [*range(half, 2 * half), *range(half), *range(2 * half, LANES)]
        mask = ir.Constant(ir.VectorType(_I32, LANES), lanes)
        vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, mask))
        half //= 2
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _codes(builder: Any, rows: Sequence[Sequence[Any]], tail: bool, gains: Sequence[Any], place: Any) -> list[Any]:
    """Return for each row Σ_planes ±gain of one group of columns.

    Args:
        rows: for each row the addresses of its signs, one for each plane.
        tail: whether the row ends with one byte here.
        gains: vectors: of the code if the first plane is + and all others −, of all −, and of twice each further gain.
            With no planes, one vector: the code itself.
        place: offset of the group's signs from those addresses.
    """
    out = []
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    for planes in rows:
        code = gains[0]
        for number, address in enumerate(planes):
            bits = _load(builder, address, _I8 if tail else _I16, place)
            mask = builder.bitcast(builder.zext(bits, _I16) if tail else bits, _MASK)
            if number:
                code = builder.fadd(code, builder.select(mask, gains[1 + number], zero))
            else:
                code = builder.select(mask, gains[0], gains[1])
        out.append(code)
    return out


def _gains(builder: Any, address: Any, planes: int) -> list[Any]:
    """Return the vectors of `_codes` from float32 [planes] of gains; with no planes, of one number."""
    first, *more = [_load(builder, address, _F32, ir.Constant(_I64, 4 * p)) for p in range(max(planes, 1))]
    if not planes:
        return [_spread(builder, first)]
    low, high = builder.fneg(first), first
    for gain in more:
        low, high = builder.fsub(low, gain), builder.fsub(high, gain)
    return [_spread(builder, high), _spread(builder, low)] + [_spread(builder, builder.fadd(g, g)) for g in more]


def _over_groups(builder: Any, row_bytes: Any, carried: Sequence[Any], body: Body) -> list[Any]:
    """Run a body on every group, with what is carried from group to group; return what the last one made."""
    full = builder.and_(row_bytes, ir.Constant(_I64, -2))
    before = builder.block
    head, inside, after, tail, done = (builder.append_basic_block() for _ in range(5))
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(_I64)
    place.add_incoming(ir.Constant(_I64, 0), before)
    phis = [builder.phi(_VECTOR) for _ in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("<", place, full), inside, after)
    builder.position_at_end(inside)
    made = body(place, False, phis)
    place.add_incoming(builder.add(place, ir.Constant(_I64, 2)), builder.block)
    for phi, value in zip(phis, made, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    builder.cbranch(builder.icmp_unsigned("<", full, row_bytes), tail, done)
    builder.position_at_end(tail)
    made = body(full, True, phis)
    last = builder.block
    builder.branch(done)
    builder.position_at_end(done)
    out = []
    for phi, value in zip(phis, made, strict=True):
        joined = builder.phi(_VECTOR)
        joined.add_incoming(phi, after)
        joined.add_incoming(value, last)
        out.append(joined)
    return out


def _for_each_kind(builder: Any, planes: Any, width: Any, emit: Callable[[int, int], None]) -> None:
    """Emit a body for every number of planes and every width, and a jump to the one that is asked for."""
    done = builder.append_basic_block()
    start = builder.block
    bodies = {}
    for p in range(PLANES + 1):
        for k in WIDTHS:
            bodies[16 * p + k] = builder.append_basic_block()
            builder.position_at_end(bodies[16 * p + k])
            emit(p, k)
            builder.branch(done)
    builder.position_at_end(start)
    kind = builder.add(builder.mul(planes, ir.Constant(_I64, 16)), width)
    switch = builder.switch(kind, done)
    for value, block in bodies.items():
        switch.add_case(ir.Constant(_I64, value), block)
    builder.position_at_end(done)


def _rows_of_signs(builder: Any, signs: Any, row_bytes: Any, planes: int, rows: int) -> list[list[Any]]:
    """Return the address of every row's signs in every plane, from int64 [planes] of those of the first row."""
    first = [_load(builder, signs, _I64, ir.Constant(_I64, 8 * p)) for p in range(planes)]
    return [[builder.add(a, builder.mul(row_bytes, ir.Constant(_I64, r))) for a in first] for r in range(rows)]


def _z_vectors(builder: Any, z: Any, place: Any, width: int) -> list[Any]:
    """Return the vectors of one group from float32 [groups, width, 16]; `place` counts bytes of signs, two a group."""
    base = builder.add(z, builder.mul(place, ir.Constant(_I64, 2 * LANES * width)))
    return [_load(builder, base, _VECTOR, ir.Constant(_I64, 4 * LANES * k)) for k in range(width)]


def _sums(builder: Any, row_bytes: Any, starts: Sequence[Any], gains: Sequence[Any], z: Any, k: int) -> list[Any]:
    """Return Σ_groups code · z for every row and each of `k` ranks, as vectors, row after row."""
    zero = ir.Constant(_VECTOR, [0.0] * LANES)

    def group(place: Any, tail: bool, sums: Sequence[Any]) -> list[Any]:
        zs = _z_vectors(builder, z, place, k)
        codes = _codes(builder, starts, tail, gains, place)
        return [_fused(builder, codes[i // k], zs[i % k], total) for i, total in enumerate(sums)]

    return _over_groups(builder, row_bytes, [zero] * (len(starts) * k), group)


def _add_to_y(builder: Any, sums: Sequence[Any], row: int, u: Any, y: Any) -> None:
    """y[row] += Σ_k u[row, k] · the lanes of sums[k]."""
    total = ir.Constant(_VECTOR, [0.0] * LANES)
    for number, vector in enumerate(sums):
        factor = _load(builder, u, _F32, ir.Constant(_I64, 4 * (row * len(sums) + number)))
        total = _fused(builder, _spread(builder, factor), vector, total)
    target = _pointer(builder, y, _F32, ir.Constant(_I64, 4 * row))
    builder.store(builder.fadd(builder.load(target, align=4), _lane_sum(builder, total)), target, align=4)


def _dot(rows: int) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        planes, width, signs, row_bytes, gains, z, u, y = args

        def body(p: int, k: int) -> None:
            starts = _rows_of_signs(builder, signs, row_bytes, p, rows)
            codes = _gains(builder, gains, p)
            # As many sums at a time as there are registers for.
            step = max(1, min(rows, SUMS // k))
            for r in range(0, rows, step):
                sums = _sums(builder, row_bytes, starts[r : r + step], codes, z, k)
                for number in range(step):
                    _add_to_y(builder, sums[number * k : (number + 1) * k], r + number, u, y)

        _for_each_kind(builder, planes, width, body)
        return context.get_dummy_value()

    @intrinsic
    def dot(ctx: Any, planes: Any, width: Any, signs: Any, row_bytes: Any, gains: Any, z: Any, u: Any, y: Any) -> Any:
        return types.void(*[types.int64] * 8), emit

    return dot


dot_one = _dot(1)
"""Add to one row of y what the signs of that row make of z; the arguments are those of `dot_many`."""

ROWS: Final = 4
"""Rows that `dot_many` works on, so that z is read once for all of them."""

dot_many = _dot(ROWS)
"""(planes, width, signs, row_bytes, gains, z, u, y): y[r] += Σ_k u[r, k] · Σ_j code[r, j] · z[k, j] for ROWS rows.

All are int64, most of them addresses. `signs` is int64 [planes], the addresses of each plane's first row here; code is
Σ_planes ±gain, or gain for no planes. z is float32 [groups of 16 columns, width, 16], zero past the last column; u is
float32 [rows, width], y float32 [rows].
"""


@intrinsic
def add_row(ctx: Any, planes: Any, width: Any, signs: Any, row_bytes: Any, gains: Any, z: Any, u: Any, w: Any) -> Any:
    """w[j] += code[j] · Σ_k u[k] · z[k, j] for the columns of one row, filled up to groups; arguments as `dot_many`."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        planes, width, signs, row_bytes, gains, z, u, w = args

        def body(p: int, k: int) -> None:
            starts = _rows_of_signs(builder, signs, row_bytes, p, 1)
            codes = _gains(builder, gains, p)
            factors = [_spread(builder, _load(builder, u, _F32, ir.Constant(_I64, 4 * j))) for j in range(k)]

            def group(place: Any, tail: bool, carried: Sequence[Any]) -> list[Any]:
                zs = _z_vectors(builder, z, place, k)
                total = builder.fmul(factors[0], zs[0])
                for factor, vector in zip(factors[1:], zs[1:], strict=True):
                    total = _fused(builder, factor, vector, total)
                target = _pointer(builder, w, _VECTOR, builder.mul(place, ir.Constant(_I64, 2 * LANES)))
                (code,) = _codes(builder, starts, tail, codes, place)
                builder.store(_fused(builder, code, total, builder.load(target, align=4)), target, align=4)
                return []

            _over_groups(builder, row_bytes, [], group)

        _for_each_kind(builder, planes, width, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), emit
