"""Low-rank magnitudes: the head of the singular value decomposition, and factors as they are stored."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bitstack.lowrank import E4M3_MAX, Factors, low_rank, store
from bsformat import payload


def _decaying(rows: int = 80, columns: int = 50) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(rows, columns, generator=g)).Q
    v = torch.linalg.qr(torch.randn(columns, columns, generator=g)).Q
    return (u * 0.7 ** torch.arange(columns)) @ v.T


@pytest.mark.parametrize("rank", [1, 4, 16, 50])
@pytest.mark.parametrize("flip", [False, True])
def test_low_rank_is_the_head_of_the_svd(rank: int, flip: bool) -> None:
    matrix = _decaying().T.contiguous() if flip else _decaying()
    u, s, v = low_rank(matrix, rank, seed=0)
    assert (u.shape, s.shape, v.shape) == ((matrix.shape[0], rank), (rank,), (matrix.shape[1], rank))
    best_u, best_s, best_v = torch.linalg.svd(matrix, full_matrices=False)
    # Eight more columns and three power iterations leave (0.7⁹)⁷ of the next singular value: nothing.
    torch.testing.assert_close(s, best_s[:rank], rtol=1e-3, atol=1e-6)
    clear = s > 1e-3  # of the others float32 leaves no direction
    for basis in (u[:, clear], v[:, clear]):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-2)
    best = (best_u[:, :rank] * best_s[:rank]) @ best_v[:rank]
    assert (matrix - (u * s) @ v.T).norm() <= 1.001 * (matrix - best).norm() + 1e-5


def test_low_rank_of_a_lower_rank_matrix() -> None:
    matrix = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 6))
    u, s, v = low_rank(matrix, 3, seed=0)
    torch.testing.assert_close((u * s) @ v.T, matrix, rtol=1e-5, atol=1e-4)
    assert (s[1:] < 1e-4 * s[0]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 4)])
def test_the_rank_is_cut_to_the_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = low_rank(matrix, 7, seed=0)
    assert s.shape == (min(shape),)
    torch.testing.assert_close((u * s) @ v.T, matrix, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e6])
def test_constant_matrices_stay_finite(value: float) -> None:
    u, s, v = low_rank(torch.full((12, 20), value), 4, seed=0)
    assert all(torch.isfinite(t).all() for t in (u, s, v))
    torch.testing.assert_close((u * s) @ v.T, torch.full((12, 20), value), rtol=1e-3, atol=0)


def test_matrices_of_a_stack_do_not_touch_each_other() -> None:
    """But for rounding: a product's last bits depend on where in memory its matrices begin."""
    stack = torch.stack([_decaying() * (i + 1) for i in range(4)] + [torch.zeros(80, 50)])
    together = low_rank(stack, 6, seed=3)
    for i, matrix in enumerate(stack):
        alone = low_rank(matrix[None], 6, seed=3)
        torch.testing.assert_close(alone[1][0], together[1][i], rtol=1e-5, atol=0)
        products = [(u * s[:, None, :]) @ v.mT for u, s, v in (alone, together)]
        torch.testing.assert_close(products[0][0], products[1][i], rtol=0, atol=1e-5)


def test_the_same_stack_gives_the_same_bits() -> None:
    stack = torch.randn(5, 60, 41, generator=torch.Generator().manual_seed(0)).abs()
    for one, again in zip(low_rank(stack, 6, seed=3), low_rank(stack.clone(), 6, seed=3), strict=True):
        assert torch.equal(one, again)


def test_low_rank_depends_on_nothing_but_its_arguments() -> None:
    matrix = _decaying()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = low_rank(matrix, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: low_rank(matrix, 5, seed=3), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


# Factors


def _factors(kind: str, rank: int = 5) -> tuple[torch.Tensor, Factors]:
    matrix = torch.rand(30, 22, generator=torch.Generator().manual_seed(2)) + 0.1
    return matrix, store(*low_rank(matrix, rank, seed=0), kind)


@pytest.mark.parametrize(("kind", "off"), [("F16", 2.0**-10), ("F8_E4M3", 2.0**-3)])
def test_stored_factors_are_near_the_exact_ones(kind: str, off: float) -> None:
    matrix, factors = _factors(kind, 22)
    product = factors.product(torch.ones(30), torch.ones(22))
    # Each factor is rounded to so many bits; the products of a sum err by twice that, and partly cancel.
    assert float((product - matrix).norm() / matrix.norm()) < off
    assert (factors.scale is None) == (kind == "F16")


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3"])
def test_the_product_is_that_of_the_arrays(kind: str) -> None:
    """What is computed with here is what a payload holds."""
    _, factors = _factors(kind)
    u, v, scale = factors.arrays()
    u, v = (payload.as_float(a.view(np.uint8).reshape(-1), kind).reshape(a.shape) for a in (u, v))
    row, col = torch.linspace(0.5, 2, 30), torch.linspace(3, 1, 22)
    wanted = (u * (1.0 if scale is None else scale.astype(np.float64))) @ v.T * row.double().numpy()[:, None]
    wanted = wanted * col.double().numpy()
    np.testing.assert_allclose(factors.product(row, col).numpy(), wanted, rtol=1e-5)


def test_columns_of_8_bit_factors_use_their_range() -> None:
    _, factors = _factors("F8_E4M3")
    for factor in (factors.u, factors.v):
        assert torch.equal(factor.float().abs().amax(0), torch.full((5,), E4M3_MAX))


@pytest.mark.parametrize(("kind", "off"), [("F16", 4 * 2.0**-11), ("F8_E4M3", 2.0**-22)])
def test_stretched(kind: str, off: float) -> None:
    _, factors = _factors(kind)
    ones = torch.ones(30), torch.ones(22)
    plain, larger = factors.product(*ones), factors.stretched(1.25).product(*ones)
    assert float((larger - 1.25 * plain).norm() / plain.norm()) < off
    assert float((larger - plain).norm() / plain.norm()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3"])
def test_factors_of_nothing(kind: str) -> None:
    factors = store(*low_rank(torch.zeros(8, 6), 2, seed=0), kind)
    product = factors.product(torch.ones(8), torch.ones(6))
    assert torch.equal(product, torch.zeros(8, 6))
