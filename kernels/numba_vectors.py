"""Sixteen float32 lanes at a time, written as LLVM's vectors: what the loops of `numba_loops` are made of.

LLVM lowers them to whatever the processor has: with AVX-512 eight bytes of signs are a mask register and a plane is one
masked addition of 64 bytes; elsewhere it builds the masks itself. Every sum has one order, fixed when it is compiled.
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
_ARGUMENTS = [types.int64] * 4 + [types.float32] + [types.int64] * 3

SUMS: Final = 16
"""Vectors of sums that are held in registers, of the 32 that AVX-512 has."""

Body = Callable[[Any, int, Sequence[Any]], Sequence[Any]]
"""From the offset of some columns' signs, their bytes, and what is carried, to what is made."""


def _pointer(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    """Return a pointer to `kind` at an address, `offset` bytes further on."""
    return builder.inttoptr(address if offset is None else builder.add(address, offset), kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    return builder.load(_pointer(builder, address, kind, offset), align=4 if kind in (_F32, _VECTOR) else 1)


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


def _constant(kind: Any, number: float) -> Any:
    """Return a vector of one number that is known now."""
    return ir.Constant(kind, [number] * kind.count)


def _codes(builder: Any, planes: Sequence[Any], unit: int, place: Any) -> list[Any]:
    """Return the codes of some columns of one row, Σ_planes ±2^(planes to come), as one vector for each group.

    Args:
        planes: the address of the row's signs in every plane; with none, all codes are 1.
        unit: bytes of signs to read: 8, 2, or 1 where a row ends with half a group.
        place: offset of these bytes.
    """
    lanes = max(LANES, 8 * unit)
    if not planes:
        return [_constant(_VECTOR, 1.0)] * (lanes // LANES)
    masks = []
    for address in planes:
        bits = _load(builder, address, ir.IntType(8 * unit), place)
        whole = builder.zext(bits, _I16) if unit == 1 else bits
        masks.append(builder.bitcast(whole, ir.VectorType(ir.IntType(1), lanes)))
    if len(planes) == 1 and lanes == LANES:
        return [builder.select(masks[0], _constant(_VECTOR, 1.0), _constant(_VECTOR, -1.0))]
    # Added up in bytes, of which a register holds four groups.
    kind = ir.VectorType(_I8, lanes)
    first, rest = 1 << len(planes) - 1, (1 << len(planes) - 1) - 1
    code = builder.select(masks[0], _constant(kind, first - rest), _constant(kind, -first - rest))
    for number, mask in enumerate(masks[1:], 2):
        code = builder.add(code, builder.select(mask, _constant(kind, 2 << len(planes) - number), _constant(kind, 0)))
    groups = []
    for start in range(0, lanes, LANES):
        part = ir.Constant(ir.VectorType(_I32, LANES), list(range(start, start + LANES)))
        own = builder.shuffle_vector(code, code, part) if lanes > LANES else code
        groups.append(builder.sitofp(own, _VECTOR))
    return groups


def _over_columns(builder: Any, row_bytes: Any, planes: int, carried: Sequence[Any], body: Body) -> Sequence[Any]:
    """Run a body on all columns, with what is carried from one to the next; return what the last one made."""
    start = ir.Constant(_I64, 0)
    for unit in (8, 2, 1) if planes > 1 else (2, 1):
        stop = builder.and_(row_bytes, ir.Constant(_I64, -unit))
        before = builder.block
        head, inside, done = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        place, *phis = [builder.phi(kind) for kind in (_I64, *[_VECTOR] * len(carried))]
        for phi, value in zip([place, *phis], [start, *carried], strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_unsigned("<", place, stop), inside, done)
        builder.position_at_end(inside)
        made = body(place, unit, phis)
        following = builder.add(place, ir.Constant(_I64, unit))
        for phi, value in zip([place, *phis], [following, *made], strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        start, carried = stop, phis
    return carried


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


def _sums(builder: Any, row_bytes: Any, starts: Sequence[Sequence[Any]], z: Any, k: int) -> Sequence[Any]:
    """Return Σ_j code[j] · z[j] for every row and each of `k` ranks, as vectors, row after row."""

    def columns(place: Any, unit: int, sums: Sequence[Any]) -> Sequence[Any]:
        codes = [_codes(builder, planes, unit, place) for planes in starts]
        for group in range(len(codes[0])):
            zs = _z_vectors(builder, z, builder.add(place, ir.Constant(_I64, 2 * group)), k)
            sums = [_fused(builder, codes[i // k][group], zs[i % k], total) for i, total in enumerate(sums)]
        return sums

    zeros = [_constant(_VECTOR, 0.0)] * (len(starts) * k)
    return _over_columns(builder, row_bytes, len(starts[0]), zeros, columns)


def _add_to_y(builder: Any, sums: Sequence[Any], row: int, gain: Any, u: Any, y: Any) -> None:
    """y[row] += gain · Σ_k u[row, k] · the lanes of sums[k]."""
    total = _constant(_VECTOR, 0.0)
    for number, vector in enumerate(sums):
        factor = _load(builder, u, _F32, ir.Constant(_I64, 4 * (row * len(sums) + number)))
        total = _fused(builder, _spread(builder, factor), vector, total)
    target = _pointer(builder, y, _F32, ir.Constant(_I64, 4 * row))
    product = builder.fmul(gain, _lane_sum(builder, total))
    builder.store(builder.fadd(builder.load(target, align=4), product), target, align=4)


def _dot(rows: int) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        planes, width, signs, row_bytes, gain, z, u, y = args

        def body(p: int, k: int) -> None:
            starts = _rows_of_signs(builder, signs, row_bytes, p, rows)
            # As many sums at a time as there are registers for.
            step = max(1, min(rows, SUMS // k))
            for r in range(0, rows, step):
                sums = _sums(builder, row_bytes, starts[r : r + step], z, k)
                for number in range(step):
                    _add_to_y(builder, sums[number * k : (number + 1) * k], r + number, gain, u, y)

        _for_each_kind(builder, planes, width, body)
        return context.get_dummy_value()

    @intrinsic
    def dot(ctx: Any, planes: Any, width: Any, signs: Any, row_bytes: Any, gain: Any, z: Any, u: Any, y: Any) -> Any:
        return types.void(*_ARGUMENTS), emit

    return dot


dot_one = _dot(1)
"""Add to one row of y what the signs of that row make of z; the arguments are those of `dot_many`."""

ROWS: Final = 4
"""Rows that `dot_many` works on, so that z is read once for all of them."""

dot_many = _dot(ROWS)
"""y[r] += gain · Σ_k u[r, k] · Σ_j code[r, j] · z[k, j] for ROWS rows.

The arguments are planes, width, signs, row_bytes, gain (float32), z, u, y; all others int64, most of them addresses.
`signs` is int64 [planes], the addresses of each plane's first row here; a code is a sum of ±1 for the last plane, ±2
for the one before and so on, 1 for no planes; so gain is the last one's. z is float32 [groups of columns, width, 16],
zero past the last column; u is float32 [rows, width], y float32 [rows].
"""


@intrinsic
def add_row(ctx: Any, planes: Any, width: Any, signs: Any, row_bytes: Any, gain: Any, z: Any, u: Any, w: Any) -> Any:
    """w[j] += gain · code[j] · Σ_k u[k] · z[k, j] for all columns of a row, filled up to groups; as `dot_many`."""

    def emit(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        planes, width, signs, row_bytes, gain, z, u, w = args

        def body(p: int, k: int) -> None:
            (starts,) = _rows_of_signs(builder, signs, row_bytes, p, 1)
            numbers = [_load(builder, u, _F32, ir.Constant(_I64, 4 * j)) for j in range(k)]
            factors = [_spread(builder, builder.fmul(gain, number)) for number in numbers]

            def columns(place: Any, unit: int, carried: Sequence[Any]) -> Sequence[Any]:
                for group, code in enumerate(_codes(builder, starts, unit, place)):
                    own = builder.add(place, ir.Constant(_I64, 2 * group))
                    zs = _z_vectors(builder, z, own, k)
                    total = builder.fmul(factors[0], zs[0])
                    for factor, vector in zip(factors[1:], zs[1:], strict=True):
                        total = _fused(builder, factor, vector, total)
                    target = _pointer(builder, w, _VECTOR, builder.mul(own, ir.Constant(_I64, 2 * LANES)))
                    builder.store(_fused(builder, code, total, builder.load(target, align=4)), target, align=4)
                return carried

            _over_columns(builder, row_bytes, p, [], columns)

        _for_each_kind(builder, planes, width, body)
        return context.get_dummy_value()

    return types.void(*_ARGUMENTS), emit
