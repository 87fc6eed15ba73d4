"""The reference for the value of a tensor, against a loop over single numbers in exact arithmetic."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

import bsformat
from bsformat import payload, rebuild, sparse
from bsformat.errors import FormatError
from bsformat.metadata import Form, Tensor
from tests.bsformat import encoder


def e4m3(code: int) -> Fraction:
    """One code of e4m3, from its definition (OCP 8-bit floating point, revision 1.0)."""
    sign = -1 if code & 0x80 else 1
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * Fraction(mantissa, 8) * Fraction(2) ** -6
    return sign * (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)


def loop(form: Form, rows: int, columns: int, data: bytes) -> list[list[Fraction]]:
    """S ⊙ (U diag(scale) Vᵀ), one number at a time, from the layout of the bytes."""
    row_bytes = (columns + 7) // 8
    at = rows * row_bytes
    size = 2 if form.factors == "F16" else 1

    def factor(index: int) -> Fraction:
        if size == 1:
            return e4m3(data[at + index])
        return Fraction(struct.unpack_from("<e", data, at + 2 * index)[0])

    scales_at = at + size * form.rank * (rows + columns)
    out = []
    for i in range(rows):
        row = []
        for j in range(columns):
            total = Fraction(0)
            for k in range(form.rank):
                scale = Fraction(1)
                if size == 1:
                    scale = Fraction(struct.unpack_from("<f", data, scales_at + 4 * k)[0])
                total += factor(i * form.rank + k) * scale * factor(rows * form.rank + j * form.rank + k)
            bit = data[i * row_bytes + j // 8] >> (j % 8) & 1
            row.append(total if bit else -total)
        out.append(row)
    return out


def random_payload(form: Form, rows: int, columns: int, seed: int) -> bytes:
    """Small factors with few bits, so that float64 holds every product and sum of them exactly."""
    draw = np.random.default_rng(seed)
    signs = np.packbits(draw.integers(0, 2, (rows, columns), np.uint8), axis=1, bitorder="little").tobytes()
    count = (rows + columns) * form.rank
    if form.factors == "F16":
        return signs + (draw.integers(-2047, 2048, count) / 1024).astype("<f2").tobytes()
    codes = draw.integers(0, 0x7F, count) | draw.integers(0, 2, count) << 7
    return signs + codes.astype(np.uint8).tobytes() + (2.0 ** draw.integers(-9, 9, form.rank)).astype("<f4").tobytes()


SHAPES = [(1, 1), (1, 8), (3, 7), (2, 9), (5, 17), (4, 16)]


@pytest.mark.parametrize("factors", ["F16", "F8_E4M3"])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_is_exactly_the_sum(shape: tuple[int, int], rank: int, factors: str) -> None:
    rows, columns = shape
    form = Form("sign", "none", rank, factors)
    tensor = Tensor("w", shape, "F16", group_rows=rows)
    data = random_payload(form, rows, columns, rank)
    assert len(data) == payload.length(form, tensor, rows)
    values = rebuild.block_values(form, tensor, rows, data)
    assert values.dtype == np.float64
    assert [[Fraction(x) for x in row] for row in values.tolist()] == loop(form, rows, columns, data)


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3])
def test_a_chain_is_exactly_the_scaled_sum(n_blocks: int) -> None:
    rows, columns = 3, 11
    tensor = Tensor("w", (7, columns), "F16", group_rows=rows)
    forms = [Form("sign", "none", 2, "F16"), Form("sign", "none", 1, "F8_E4M3"), Form("sign", "none", 3, "F16")]
    blocks = [(f, random_payload(f, rows, columns, i)) for i, f in enumerate(forms[:n_blocks])]
    row_scale, col_scale = np.array([0.5, -2.0, 1.25]), 2.0 ** np.arange(-5, 6)
    values = rebuild.chain_values(tensor, rows, blocks, row_scale, col_scale)
    parts = [loop(f, rows, columns, data) for f, data in blocks]
    expected = [
        [
            sum((p[i][j] for p in parts), Fraction(0)) * Fraction(row_scale[i]) * Fraction(col_scale[j])
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    assert values.shape == (rows, columns)
    assert [[Fraction(x) for x in row] for row in values.tolist()] == expected


def test_a_plane_halves_the_magnitudes_of_the_level_before() -> None:
    """Sign, plane, plane, sign, plane: of the first sign block ½ and ¼, of the second ½."""
    rows, columns = 3, 11
    tensor = Tensor("w", (rows, columns), "F16", group_rows=rows)
    first, second, plane = Form("sign", "none", 2, "F16"), Form("sign", "none", 3, "F8_E4M3"), Form("plane")
    forms = [first, plane, plane, second, plane]
    signs = [random_payload(first, rows, columns, seed)[: rows * 2] for seed in range(5)]
    factors = {f: random_payload(f, rows, columns, 9)[rows * 2 :] for f in (first, second)}
    blocks = [(f, bits + factors.get(f, b"")) for f, bits in zip(forms, signs, strict=True)]
    assert [payload.length(f, tensor, rows) for f, _ in blocks] == [len(data) for _, data in blocks]
    expected = np.zeros((rows, columns))
    for (form, part), bits in zip([(first, 1), (first, 2), (first, 4), (second, 1), (second, 2)], signs, strict=True):
        values = loop(form, rows, columns, bits + factors[form])
        expected += np.array([[float(x / part) for x in row] for row in values])
    values = rebuild.chain_values(tensor, rows, blocks, np.ones(rows), np.ones(columns))
    assert values.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="of its own"):
        rebuild.chain_values(tensor, rows, blocks[1:], np.ones(rows), np.ones(columns))


def test_a_lowrank_block_has_no_signs() -> None:
    form, plus = Form("lowrank", "none", 3, "F8_E4M3"), Form("sign", "none", 3, "F8_E4M3")
    tensor = Tensor("w", (4, 9), "F16", group_rows=4)
    data = random_payload(plus, 4, 9, 1)[4 * 2 :]
    assert payload.length(form, tensor, 4) == len(data)
    expected = loop(plus, 4, 9, b"\xff" * 8 + data)
    assert [[Fraction(x) for x in row] for row in rebuild.block_values(form, tensor, 4, data).tolist()] == expected


def test_entries_are_added_where_they_are() -> None:
    form, tensor = Form("sparse"), Tensor("w", (encoder.M, encoder.N), "F16", group_rows=encoder.M)
    expected = np.zeros((encoder.M, encoder.N))
    expected[0, 3], expected[0, 9], expected[2, 0] = 0.5 * 1, 0.5 * -0.5, 0.5 * 448
    assert rebuild.block_values(form, tensor, encoder.M, encoder.SPARSE).tolist() == expected.tolist()
    sign = Form("sign", "none", 1, "F16")
    chain = [(sign, encoder.LEVEL_0), (form, encoder.SPARSE), (form, encoder.SPARSE)]
    total = rebuild.block_values(sign, tensor, encoder.M, encoder.LEVEL_0) + expected + expected
    ones = np.ones(encoder.M), np.ones(encoder.N)
    assert rebuild.chain_values(tensor, encoder.M, chain, *ones).tolist() == total.tolist()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (63, 5), (64, 5), (65, 5), (200, 7)])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_sparse_entries_in_any_order(rows: int, columns: int, share: float) -> None:
    draw = np.random.default_rng(rows)
    places = draw.permutation(rows * columns)[: max(1, int(share * rows * columns))]
    codes = draw.integers(0, 0x7F, len(places)).astype(np.uint8)
    data = sparse.join(rows, 0.25, places // columns, places % columns, codes)
    assert len(data) == 4 + 4 * -(-rows // 64) + 2 * rows + 3 * len(places)
    tensor = Tensor("w", (rows, columns), "F16", group_rows=rows)
    assert payload.length(Form("sparse"), tensor, rows, len(data)) == len(data)
    payload.check(Form("sparse"), tensor, rows, data, False, "it", "here")
    expected = np.zeros(rows * columns)
    expected[places] = [0.25 * float(e4m3(code)) for code in codes.tolist()]
    assert rebuild.block_values(Form("sparse"), tensor, rows, data).ravel().tolist() == expected.tolist()
    # One encoding only: the entries themselves give the same bytes again.
    parts = sparse.split(rows, data)
    row = np.repeat(np.arange(rows), np.diff(parts.row_starts()))
    assert sparse.join(rows, parts.scale, row, parts.columns, parts.values) == data


@pytest.mark.parametrize(
    ("rows", "row", "column", "reason"),
    [
        (2, [], [], "block-rows"),
        (2, [2], [0], "block-rows"),
        (2, [-1], [0], "block-rows"),
        (2, [0], [-1], "block-columns"),
        (2, [0], [65536], "block-columns"),
        (2, [1, 0, 1], [3, 3, 3], "block-columns"),
        (2, [0] * 65536 + [1], [*range(65536), 0], "block-rows"),
    ],
)
def test_entries_that_no_sparse_block_can_hold(rows: int, row: list[int], column: list[int], reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        sparse.join(rows, 1.0, np.array(row, int), np.array(column, int), np.zeros(len(row), np.uint8))
    assert caught.value.reason == reason


def test_as_many_entries_in_a_tile_as_fit() -> None:
    """65535 before the last row of a tile, and a full row of 65536 after that."""
    row, column = np.repeat([0, 63], [65535, 65536]), np.concatenate([np.arange(65535), np.arange(65536)])
    data = sparse.join(64, 1.0, row, column, np.zeros(len(row), np.uint8))
    tensor = Tensor("w", (64, 65536), "F16", group_rows=64)
    payload.check(Form("sparse"), tensor, 64, data, False, "it", "here")
    assert sparse.split(64, data).row_starts().tolist() == [0] + [65535] * 63 + [131071]


def test_the_sample_by_hand(image: encoder.Image) -> None:
    """Level 0 of the sample: u = (½, 1, 2), v_j = (j + 1) / 4, and the signs as they stand in its source."""
    form = Form("sign", "none", 1, "F16")
    tensor = Tensor("w", (encoder.M, encoder.N), "F16", group_rows=encoder.M)
    signs = ["0100110110", "1011101001", "1100011111"]  # column 0 first: the low bit of the first byte
    expected = [
        [(1 if s == "1" else -1) * u * (j + 1) / 4 for j, s in enumerate(row)]
        for u, row in zip((0.5, 1.0, 2.0), signs, strict=True)
    ]
    assert rebuild.block_values(form, tensor, encoder.M, encoder.LEVEL_0).tolist() == expected


def test_rounding_follows_the_order_of_the_specification() -> None:
    """Sums over k from 0, each product rounded: another order gives other bits here."""
    rows, columns, rank = 2, 3, 40
    form = Form("sign", "none", rank, "F8_E4M3")
    tensor = Tensor("w", (rows, columns), "F16", group_rows=rows)
    draw = np.random.default_rng(3)
    codes = draw.integers(0, 0x7F, (rows + columns) * rank, np.uint8)
    scale = draw.random(rank, np.float32)
    data = b"\x07" * rows + codes.tobytes() + scale.astype("<f4").tobytes()
    value = [float(e4m3(c)) for c in codes.tolist()]

    def total(i: int, j: int, order: range) -> float:
        out = 0.0
        for k in order:
            out += value[i * rank + k] * float(scale[k]) * value[rows * rank + j * rank + k]
        return out

    values = rebuild.block_values(form, tensor, rows, data).tolist()
    assert values == [[total(i, j, range(rank)) for j in range(columns)] for i in range(rows)]
    assert values != [[total(i, j, range(rank)[::-1]) for j in range(columns)] for i in range(rows)]


def test_e4m3_is_torch_s() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).to(torch.float64).numpy()
    assert payload.E4M3.dtype == np.float64
    assert np.array_equal(payload.E4M3, expected, equal_nan=True)
    assert np.array_equal(np.signbit(payload.E4M3), np.signbit(expected))
    assert np.flatnonzero(np.isnan(payload.E4M3)).tolist() == [0x7F, 0xFF]


def test_e4m3_is_its_definition() -> None:
    finite = [code for code in range(256) if code & 0x7F != 0x7F]
    assert [Fraction(payload.E4M3[code]) for code in finite] == [e4m3(code) for code in finite]


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "width"),
    [
        ("F64", torch.float64, 8),
        ("F32", torch.float32, 4),
        ("F16", torch.float16, 2),
        ("BF16", torch.bfloat16, 2),
        ("F8_E4M3", torch.float8_e4m3fn, 1),
    ],
)
def test_elements_of_every_float_type(dtype: str, torch_dtype: torch.dtype, width: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 1024 * width, np.uint8)
    expected = torch.from_numpy(data.copy()).view(torch_dtype).to(torch.float64).numpy()
    values = payload.as_float(data, dtype)
    assert values.dtype == np.float64
    assert np.array_equal(values, expected, equal_nan=True)


def nearest(value: float, bits: int, least: int, most: Fraction) -> float:
    """``value`` rounded to ``bits`` significant bits, ties to even; ``least`` is the exponent of the smallest step."""
    exact = abs(Fraction(value))
    if not exact:
        return value
    exponent = math.frexp(value)[1] - bits
    step = Fraction(2) ** max(exponent, least)
    steps = exact / step
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
    rounded = whole * step
    return math.copysign(float(rounded) if rounded <= most else math.inf, value)


TYPES = {
    "F32": (24, -149, Fraction(2) ** 128 - Fraction(2) ** 104),
    "F16": (11, -24, Fraction(65504)),
    "BF16": (8, -133, Fraction(2) ** 128 - Fraction(2) ** 120),
}


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_rounded_once(dtype: str) -> None:
    """Values beside the middle of two neighbours: rounding to float32 on the way would go wrong there."""
    bits, least, most = TYPES[dtype]
    draw = np.random.default_rng(0)
    exponents = draw.integers(max(least, -1000), 20 if dtype == "F16" else 130, 3000)
    # An odd multiple of half a step, and its neighbours in float64.
    middles = (2.0 * draw.integers(1 << bits - 1, 1 << bits, 3000) + 1) * 2.0 ** (exponents - bits - 1)
    small = (2.0 * draw.integers(0, 1 << bits - 1, 500) + 1) * 2.0 ** (least - 1)
    values = np.concatenate([middles, small, draw.standard_normal(1000), [0.0, float(most), 2.0 * float(most), 5e-324]])
    values = np.concatenate([values, np.nextafter(values, np.inf), np.nextafter(values, 0)])
    values = np.concatenate([values, -values])
    expected = [nearest(x, bits, least, most) for x in values.tolist()]
    rounded = rebuild.round_to(values, dtype)
    assert rounded.dtype == {"F32": np.float32, "F16": np.float16, "BF16": np.float32}[dtype]
    assert rounded.astype(np.float64).tolist() == expected
    assert np.array_equal(np.signbit(rounded), np.signbit(values))


def test_float64_is_not_rounded() -> None:
    values = np.random.default_rng(0).standard_normal(10)
    assert rebuild.round_to(values, "F64").tolist() == values.tolist()


def test_bfloat16_all_codes() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16).to(torch.float64).numpy()
    assert np.array_equal(payload.as_float(codes.view(np.uint8), "BF16"), expected, equal_nan=True)


@pytest.mark.parametrize("factors", ["F16", "F8_E4M3"])
def test_join_is_the_inverse_of_split(factors: str) -> None:
    form, tensor = Form("sign", "none", 3, factors), Tensor("w", (5, 13), "F16", group_rows=5)
    data = random_payload(form, 5, 13, 0)
    parts = payload.split(form, tensor, 5, data)
    assert (parts.signs.shape, parts.u.shape, parts.v.shape) == ((5, 2), (5, 3), (13, 3))
    assert (parts.scale is None) == (factors == "F16")
    assert payload.join(parts.signs, parts.u, parts.v, parts.scale) == data
    big = [None if p is None else p.astype(p.dtype.newbyteorder(">")) for p in (parts.u, parts.v, parts.scale)]
    assert payload.join(parts.signs, big[0], big[1], big[2]) == data
    lowrank = payload.split(Form("lowrank", "none", 3, factors), tensor, 5, data[10:])
    assert (lowrank.signs.shape, lowrank.u.shape, lowrank.v.shape) == ((5, 0), (5, 3), (13, 3))
    assert payload.join_lowrank(lowrank.u, lowrank.v, lowrank.scale) == data[10:]
    plane = payload.split(Form("plane"), tensor, 5, data[:10])
    assert (plane.u.shape, plane.v.shape, plane.scale) == ((5, 0), (13, 0), None)
    assert payload.join_plane(plane.signs) == data[:10]


def test_lengths() -> None:
    tensor = Tensor("w", (6, 17), "BF16", group_rows=4)
    assert payload.length(Form("sign", rank=3, factors="F16"), tensor, 4) == 4 * 3 + 2 * 3 * (4 + 17)
    assert payload.length(Form("sign", rank=3, factors="F8_E4M3"), tensor, 2) == 2 * 3 + 3 * (2 + 17) + 12
    assert payload.length(Form("lowrank", rank=3, factors="F16"), tensor, 4) == 2 * 3 * (4 + 17)
    assert payload.length(Form("lowrank", rank=3, factors="F8_E4M3"), tensor, 2) == 3 * (2 + 17) + 12
    assert payload.length(Form("plane"), tensor, 4) == 4 * 3
    fixed = 4 + 4 + 2 * 4
    near = {0: 1, fixed: 1, fixed + 5: 1, fixed + 6: 2, fixed + 3 * 68: 68, fixed + 3 * 69: 68, 1 << 40: 68}
    for size, entries in near.items():
        assert payload.length(Form("sparse"), tensor, 4, size) == fixed + 3 * entries
    assert payload.length(bsformat.Form("raw"), Tensor("n", (6, 17), "F64"), 6) == 6 * 17 * 8
