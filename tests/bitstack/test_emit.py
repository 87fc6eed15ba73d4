"""Payloads: what a reader rebuilds of them is what they were made from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstack.emit import pack_signs, planes, sign_bytes, sparse_block
from bitstack.lowrank import Factors, low_rank, store
from bitstack.walk import first_planes
from bsformat import Form, Tensor, payload, rebuild, sparse
from bsformat.registry import KINDS

ROWS, COLUMNS = 37, 27


def _tensor(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return Tensor("w", (rows, columns), "F32", rows, 0, 1)


def _codes(bits: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g) * 2 + 1 - 2**bits
    return codes.to(torch.int8)


def _factors(kind: str, rank: int, rows: int = ROWS, columns: int = COLUMNS) -> Factors:
    matrix = torch.rand(rows, columns, generator=torch.Generator().manual_seed(3)) + 0.1
    return store(*low_rank(matrix, rank, seed=0), kind)


def _valid(form: Form, tensor: Tensor, data: bytes, follows: bool = False) -> None:
    assert form.kind in KINDS
    assert len(data) == payload.length(form, tensor, tensor.rows) or form.kind == "sparse"
    payload.check(form, tensor, tensor.rows, data, False, "a block", "")


# Planes


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3"])
@pytest.mark.parametrize("bits", range(1, 7))
def test_every_prefix_is_rebuilt_to_the_last_bit(kind: str, bits: int) -> None:
    """Of rank one: products of 8- and 16-bit factors and codes of 6 bits have room in a float64."""
    codes, factors, ones = _codes(bits), _factors(kind, 1), np.ones(1)
    blocks = list(planes(codes, bits, factors))
    assert [form.kind for form, _ in blocks] == ["sign"] + ["plane"] * (bits - 1)
    assert (blocks[0][0].rank, blocks[0][0].factors) == (1, kind)
    magnitude = rebuild.magnitudes(blocks[0][0], _tensor(), ROWS, blocks[0][1])
    for count in range(1, bits + 1):
        rebuilt = rebuild.chain_values(_tensor(), ROWS, blocks[:count], ones, ones)
        wanted = first_planes(codes, bits, count).double().numpy() * magnitude * 2.0 ** (1 - bits)
        assert np.array_equal(rebuilt, wanted)
        _valid(*blocks[count - 1][:1], _tensor(), blocks[count - 1][1])


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3"])
def test_what_is_computed_with_is_what_is_rebuilt(kind: str) -> None:
    codes, factors = _codes(3), _factors(kind, 6)
    row, col = torch.linspace(0.5, 3, ROWS), torch.linspace(2, 0.25, COLUMNS)
    mine = codes.double() * factors.product(row, col).double() / 4
    blocks = list(planes(codes, 3, factors))
    rebuilt = rebuild.chain_values(_tensor(), ROWS, blocks, row.double().numpy(), col.double().numpy())
    np.testing.assert_allclose(mine.numpy(), rebuilt, rtol=0, atol=1e-5 * float(mine.abs().max()))


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3"])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (7, 8, 3), (8, 9, 2), (65, 17, 4)])
def test_sizes_are_those_of_the_payloads(kind: str, rows: int, columns: int, rank: int) -> None:
    factors = _factors(kind, rank, rows, columns)
    first, *rest = planes(_codes(3, rows, columns), 3, factors)
    assert len(first[1]) == sign_bytes(rows, columns, factors)
    assert {len(data) for _, data in rest} == {sign_bytes(rows, columns, None)}
    for form, data in (first, *rest):
        _valid(form, _tensor(rows, columns), data)


@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_signs_are_packed_as_a_plain_loop_packs_them(rows: int, columns: int, seed: int) -> None:
    positive = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = np.zeros((rows, (columns + 7) // 8), np.uint8)
    for i in range(rows):
        for j in range(columns):
            if positive[i, j]:
                expected[i, j // 8] |= 1 << (j % 8)
    packed = pack_signs(positive)
    assert packed.dtype == np.uint8
    assert np.array_equal(packed, expected)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 63])
def test_padding_bits_are_zero(columns: int) -> None:
    last = pack_signs(torch.ones(3, columns, dtype=torch.bool))[:, -1]
    assert set(last.tolist()) == {(1 << ((columns - 1) % 8 + 1)) - 1}


# Sparse blocks


def _scales(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(0.5, 3, rows).half().float(), torch.linspace(2, 0.25, columns).half().float()


def _rebuilt(data: bytes, rows: int, columns: int, row: torch.Tensor, col: torch.Tensor) -> np.ndarray:
    form, tensor = Form("sparse"), _tensor(rows, columns)
    _valid(form, tensor, data)
    return rebuild.chain_values(tensor, rows, [(form, data)], row.double().numpy(), col.double().numpy())


@given(st.integers(1, 130), st.integers(1, 40), st.floats(0.001, 1), st.integers(0, 2**32 - 1))
def test_a_sparse_block_is_rebuilt(rows: int, columns: int, share: float, seed: int) -> None:
    residual = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    row, col = _scales(rows, columns)
    values, data = sparse_block(residual, row, col, share)
    # Three products in float32 against the same in float64.
    np.testing.assert_allclose(values.numpy(), _rebuilt(data, rows, columns, row, col), rtol=4 * 2.0**-24, atol=0)
    count = max(1, int(share * residual.numel()))
    assert len(data) == sparse.fixed_bytes(rows) + 3 * count
    assert int((values != 0).sum()) <= count


def test_it_holds_the_largest_elements_of_the_scaled_space() -> None:
    g = torch.Generator().manual_seed(0)
    residual = torch.randn(70, 30, generator=g) ** 3
    row, col = _scales(70, 30)
    values, data = sparse_block(residual, row, col, 0.05)
    scaled = (residual / row[:, None] / col).abs()
    held = sparse.split(70, data)
    where = torch.zeros(70, 30, dtype=torch.bool)
    where[np.repeat(np.arange(70), np.diff(held.row_starts())), held.columns.astype(np.int64)] = True
    assert int(where.sum()) == 105
    assert float(scaled[where].min()) >= float(scaled[~where].max())
    # e4m3 is within a sixteenth of every value in its normal range, and the rest of the residual is untouched.
    large = where & (scaled > scaled.max() / 1000)
    assert ((residual - values)[large].abs() <= residual[large].abs() / 16).all()
    assert not values[~where].any()


def test_no_more_in_a_tile_than_can_be_counted() -> None:
    """64 rows hold 65535 entries at most, however many there are that are large."""
    columns = 1100  # 70400 elements in 64 rows
    residual = torch.rand(100, columns, generator=torch.Generator().manual_seed(0)) + 0.5
    residual[:64] += 10
    row, col = torch.ones(100), torch.ones(columns)
    values, data = sparse_block(residual, row, col, 0.7)  # 77000
    held = sparse.split(100, data)
    assert held.row_starts()[[0, 64, 100]].tolist() == [0, 65535, 65535 + 77000 - 70400]
    np.testing.assert_allclose(values.numpy(), _rebuilt(data, 100, columns, row, col), rtol=4 * 2.0**-24)


def test_all_of_a_large_tile() -> None:
    row, col = torch.ones(64), torch.ones(2048)
    _, data = sparse_block(torch.ones(64, 2048), row, col, 1.0)
    assert len(sparse.split(64, data).columns) == 65535
    _rebuilt(data, 64, 2048, row, col)


@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e-30, 1e30])
def test_a_sparse_block_of_extreme_values(factor: float) -> None:
    residual = torch.randn(10, 12, generator=torch.Generator().manual_seed(0)) * factor
    row, col = torch.ones(10), torch.ones(12)
    values, data = sparse_block(residual, row, col, 0.1)
    assert torch.isfinite(values).all()
    np.testing.assert_allclose(values.numpy(), _rebuilt(data, 10, 12, row, col), rtol=4 * 2.0**-24, atol=1e-44)
    assert bool((values != 0).any()) == (factor > 0)
