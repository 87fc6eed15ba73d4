"""The walk of the codes along the Hessian, against the plain recursion and against each element by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstack.walk import DAMPING, WIDTH, Walker, first_planes, inverse_factor, nearest
from tests.matrices import correlated

#: More than one block of columns that are walked together.
COLUMNS = WIDTH + 11
BITS = range(1, 7)


def _magnitude(weight: torch.Tensor) -> torch.Tensor:
    """A rank-one magnitude about as large as the weight [B, M, N]."""
    g = torch.Generator().manual_seed(9)
    u, v = torch.rand(weight.shape[1], generator=g) + 0.5, torch.rand(weight.shape[2], generator=g) + 0.5
    return (torch.outer(u, v) * weight.abs().mean() * 1.5).expand_as(weight).contiguous()


def _loss(weight: torch.Tensor, codes: torch.Tensor, magnitude: torch.Tensor, bits: int, h: torch.Tensor) -> float:
    error = weight.double() - codes.double() * magnitude.double() * 2.0 ** (1 - bits)
    return float(((error @ h.double()) * error).sum())


@given(st.integers(1, 4), st.integers(1, 80), st.integers(1, 6), st.integers(0, 2**31))
def test_without_coupling_each_element_is_by_itself(rows: int, columns: int, bits: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(2, rows, columns, generator=g)
    magnitude = torch.rand(2, rows, columns, generator=g) + 0.1
    walker = Walker.along(torch.diag_embed(torch.rand(2, columns, generator=g) * 5))
    assert torch.equal(walker.codes(target, magnitude, bits), nearest(target, magnitude, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_walking_lowers_the_loss(bits: int, seed: int) -> None:
    weight, hessian, _ = correlated(1, 24, COLUMNS, seed)
    magnitude = _magnitude(weight)
    walked = Walker.along(hessian).codes(weight, magnitude, bits)
    single = nearest(weight, magnitude, bits)
    assert _loss(weight, walked, magnitude, bits, hessian) < 0.9 * _loss(weight, single, magnitude, bits, hessian)


@pytest.mark.parametrize("bits", [1, 3])
def test_the_walk_is_the_textbook_recursion(bits: int) -> None:
    weight, hessian, _ = correlated(1, 5, COLUMNS)
    magnitude = _magnitude(weight)
    codes = Walker.along(hessian).codes(weight, magnitude, bits)[0]
    order = sorted(range(COLUMNS), key=lambda j: -float(hessian[0, j, j]))
    inverse = torch.linalg.inv(_damped(hessian[0]))[order][:, order]
    upper = torch.linalg.cholesky(inverse, upper=True)
    target, step = weight[0].double()[:, order], magnitude[0].double()[:, order] * 2.0 ** (1 - bits)
    top = 2**bits - 1
    for place, column in enumerate(order):
        placed = codes[:, column].double() * step[:, place]
        # The running target lies within half a distance of two codes of the one chosen, or beyond the outermost.
        off, chosen = (target[:, place] - placed) / step[:, place], codes[:, column]
        assert ((off.abs() <= 1 + 1e-3) | ((chosen.abs() == top) & (off.sign() == chosen.sign()))).all()
        error = (target[:, place] - placed) / upper[place, place]
        target[:, place + 1 :] -= error[:, None] * upper[place, place + 1 :]
    moved = weight[0].double()[:, order]
    assert (target[:, 1:] - moved[:, 1:]).abs().max() > 0.01


def test_the_order_of_columns_is_undone() -> None:
    """Columns given in another order get the same codes, in that order."""
    weight, hessian, _ = correlated(2, 7, COLUMNS)
    magnitude = _magnitude(weight)
    codes = Walker.along(hessian).codes(weight, magnitude, 3)
    shuffled = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0))
    walker = Walker.along(hessian[:, shuffled][:, :, shuffled])
    assert torch.equal(walker.codes(weight[..., shuffled], magnitude[..., shuffled], 3), codes[..., shuffled])
    diagonal = hessian[0].diagonal()[Walker.along(hessian).order[0]]
    assert (diagonal[1:] <= diagonal[:-1]).all()
    assert not torch.equal(Walker.along(hessian).order[0], torch.arange(COLUMNS))


@pytest.mark.parametrize("rows", [1, 8, 33])
def test_matrices_do_not_touch_each_other(rows: int) -> None:
    """But for codes on the brink: a product's last bits depend on where in memory its matrices begin."""

    def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
        return float((one != other).double().mean()) < 0.01

    weight, hessian, _ = correlated(3, rows, COLUMNS)
    magnitude = _magnitude(weight)
    walker = Walker.along(hessian)
    together = walker.codes(weight, magnitude, 2)
    for i in range(3):
        one = slice(i, i + 1)
        assert alike(Walker.along(hessian[one]).codes(weight[one], magnitude[one], 2), together[one])
    chosen = [2, 0]
    assert alike(walker.select(chosen).codes(weight[chosen], magnitude[chosen], 2), together[chosen])
    assert not alike(together[:1], together[1:2])


def test_matrices_with_one_hessian() -> None:
    weight, hessian, _ = correlated(3, 6, COLUMNS)
    magnitude = _magnitude(weight)
    shared, each = Walker.along(hessian[:1]), Walker.along(hessian[:1].expand(3, -1, -1).contiguous())
    assert float((shared.codes(weight, magnitude, 2) != each.codes(weight, magnitude, 2)).double().mean()) < 0.01
    assert shared.select([1, 2]) is shared


def test_what_is_given_stays_as_it_is() -> None:
    weight, hessian, _ = correlated(1, 6, COLUMNS)
    magnitude = _magnitude(weight)
    copies = [t.clone() for t in (weight, hessian, magnitude)]
    Walker.along(hessian).codes(weight, magnitude, 2)
    nearest(weight, magnitude, 2)
    assert all(torch.equal(a, b) for a, b in zip((weight, hessian, magnitude), copies, strict=True))


@pytest.mark.parametrize("bits", BITS)
def test_no_magnitude_is_no_nan(bits: int) -> None:
    weight, hessian, _ = correlated(1, 4, COLUMNS)
    top = 2**bits - 1
    for codes in (
        Walker.along(hessian).codes(weight, torch.zeros_like(weight), bits),
        nearest(weight, torch.zeros_like(weight), bits),
        nearest(torch.zeros_like(weight), torch.zeros_like(weight), bits),
    ):
        assert codes.dtype == torch.int8
        assert set(codes.unique().tolist()) <= set(range(-top, top + 1, 2))


# Codes


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), st.floats(0.125, 4, width=32), st.integers(1, 6))
def test_nearest_is_the_nearest(values: list[float], magnitude: float, bits: int) -> None:
    target = torch.tensor(values, dtype=torch.float32)
    codes = nearest(target, torch.full_like(target, magnitude), bits)
    all_ = np.arange(1 - 2**bits, 2**bits, 2) * magnitude * 2.0 ** (1 - bits)
    off = np.abs(target.double().numpy()[:, None] - all_)
    mine = np.abs(target.double().numpy() - codes.double().numpy() * magnitude * 2.0 ** (1 - bits))
    assert (mine <= off.min(1) + 1e-6 * magnitude).all()


@pytest.mark.parametrize("bits", BITS)
def test_first_planes_are_the_code_cut_off(bits: int) -> None:
    """A code is a sum of signed powers of two, one for each plane; without the last planes their terms are missing."""
    codes = torch.arange(1 - 2**bits, 2**bits, 2, dtype=torch.int8)
    for planes in range(1, bits + 1):
        wanted = []
        for code in codes.tolist():
            # Bit p of (code + 2^bits - 1) / 2, from the highest, is the sign of plane p.
            signs = f"{(code + 2**bits - 1) // 2:0{bits}b}"
            wanted.append(sum((1 if s == "1" else -1) << (bits - 1 - p) for p, s in enumerate(signs[:planes])))
        assert first_planes(codes, bits, planes).tolist() == wanted
    assert torch.equal(first_planes(codes, bits, bits), codes)


# The factor of the inverse Hessian


def _damped(hessian: torch.Tensor) -> torch.Tensor:
    mean = hessian.double().diagonal().mean()
    return hessian.double() + torch.eye(len(hessian)).double() * (DAMPING * mean if mean > 0 else 1.0)


@pytest.mark.parametrize("size", [1, 2, 17, 64, 130])
def test_inverse_factor_is_the_cholesky_factor_of_the_inverse(size: int) -> None:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size))
    hessian = x.T @ x / len(x)
    before = hessian.clone()
    factor = inverse_factor(hessian)
    assert torch.equal(hessian, before)
    assert factor.dtype == torch.float32
    assert torch.equal(factor, factor.triu())
    expected = torch.linalg.cholesky(torch.linalg.inv(_damped(hessian)), upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "hessian",
    [
        torch.zeros(9, 9),
        torch.ones(9, 9),
        torch.outer(torch.arange(9.0), torch.arange(9.0)),
        torch.eye(9) * 1e-30,
        torch.diag(torch.tensor([1e8, 0, 0, 0, 1e-8])),
        torch.zeros(1, 1),
        torch.full((1, 1), 1e-12),
    ],
    ids=["zero", "ones", "rank-1", "tiny", "spread", "zero-1x1", "tiny-1x1"],
)
def test_inverse_factor_survives_degenerate_hessians(hessian: torch.Tensor) -> None:
    factor = inverse_factor(hessian).double()
    assert torch.isfinite(factor).all()
    assert (factor.diagonal() > 0).all()
    product = factor.T @ factor @ _damped(hessian)
    torch.testing.assert_close(product, torch.eye(len(hessian)).double(), rtol=0, atol=1e-4)
