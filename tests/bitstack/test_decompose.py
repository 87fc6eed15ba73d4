"""One matrix as a chain of blocks: signs, factors, scales, and what the loss feels of the error."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstack import kernels
from bitstack.calibrate import LinearStatistics, TokenStatistics
from bitstack.decompose import (
    COLUMN_FLOOR,
    DAMPING,
    ROW_FLOOR,
    Options,
    Scales,
    SignLevel,
    chain,
    check_finite,
    inverse_factor,
    low_rank,
    pack_signs,
)
from bitstack.measure import LinearMeasure, TokenMeasure
from bsformat import Tensor, payload, rebuild
from bsformat.errors import ModelError

ROWS, COLUMNS = 96, 75
RANKS = (8, 4, 4, 2, 2, 1, 1, 1)
FACTORS = ("F8_E4M3", "F16")


def _problem(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> tuple[torch.Tensor, LinearMeasure]:
    """A weight with heavy tails, and statistics of correlated inputs of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g) ** 3 * 0.1
    mix = torch.randn(columns, columns, generator=g) * torch.logspace(-2, 1, columns)[:, None]
    x = torch.randn(512, columns, generator=g) @ mix.T + torch.randn(512, columns, generator=g) * 0.05
    output = torch.rand(rows, generator=g, dtype=torch.float64) * 10 + 0.01
    return weight, LinearMeasure(LinearStatistics(x.T @ x / len(x), output))


def _levels(weight: torch.Tensor, measure: LinearMeasure, options: Options, seed: int = 0) -> list[SignLevel]:
    return list(chain(weight, measure.scales(), options, seed=seed, inverse=measure.inverse()))


def _residuals(weight: torch.Tensor, levels: list[SignLevel]) -> list[torch.Tensor]:
    out = [weight]
    for level in levels:
        out.append(out[-1] - level.values)
    return out


def _falls(values: list[float]) -> bool:
    return all(b < a for a, b in pairwise(values))


@pytest.mark.parametrize("factors", FACTORS)
def test_every_level_lowers_the_frobenius_error(factors: str) -> None:
    weight = _problem()[0]
    flat = Scales.of(torch.ones(ROWS), torch.ones(COLUMNS))
    levels = list(chain(weight, flat, Options(RANKS, factors, stretch=1.0), seed=0))
    errors = [float(r.norm() / weight.norm()) for r in _residuals(weight, levels)]
    assert _falls(errors), errors
    assert errors[-1] < 0.25  # measured: 0.21


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("walk", [True, False])
def test_every_level_lowers_the_estimated_loss(factors: str, walk: bool) -> None:
    weight, measure = _problem()
    levels = _levels(weight, measure, Options(RANKS, factors, walk=walk))
    losses = [measure.loss(r, 0) for r in _residuals(weight, levels)]
    assert _falls(losses), losses
    assert losses[-1] < 0.02 * losses[0]


def test_every_level_lowers_the_loss_of_a_token_matrix() -> None:
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 24, generator=g)
    terms = [(torch.rand(64, generator=g).double() ** 4, torch.rand(24, generator=g).double()) for _ in range(2)]
    measure = TokenMeasure(TokenStatistics(terms))
    levels = list(chain(weight, measure.scales(), Options(RANKS), seed=0, inverse=measure.inverse()))
    assert _falls([measure.loss(r, 0) for r in _residuals(weight, levels)])


@pytest.mark.parametrize("seed", range(5))
def test_walking_lowers_the_loss(seed: int) -> None:
    weight, measure = _problem(seed)
    losses = {}
    for walk in (True, False):
        levels = _levels(weight, measure, Options(RANKS[:4], walk=walk))
        losses[walk] = [measure.loss(r, 0) for r in _residuals(weight, levels)]
    assert all(a < b for a, b in zip(losses[True][1:], losses[False][1:], strict=True)), losses


def test_no_hessian_no_walk() -> None:
    weight, measure = _problem()
    with_option = list(chain(weight, measure.scales(), Options((4, 2), walk=True), seed=0))
    without = list(chain(weight, measure.scales(), Options((4, 2), walk=False), seed=0, inverse=measure.inverse()))
    assert [level.data for level in with_option] == [level.data for level in without]


def test_walk_is_the_textbook_recursion() -> None:
    weight, measure = _problem(rows=5)  # 75 columns: more than one block of the walk
    inverse = measure.inverse()
    (level,) = _levels(weight, measure, Options((2,)))
    target, upper = weight.double().clone(), inverse.double()
    for j in range(COLUMNS):
        # The sign that is closer to the running target, to rounding.
        placed = level.values[:, j].double()
        assert ((target[:, j] - placed).abs() <= (target[:, j] + placed).abs() + 1e-6).all()
        error = (target[:, j] - placed) / upper[j, j]
        target[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    assert (target[:, 1:] != weight[:, 1:]).any()


def test_stretch_multiplies_the_magnitudes() -> None:
    weight, measure = _problem()
    plain, larger = (_levels(weight, measure, Options((1,), "F16", stretch=s, walk=False))[0] for s in (1.0, 1.25))
    # Two factors rounded to float16 on either side: 4 · 2⁻¹¹, and float32 rounding.
    torch.testing.assert_close(larger.values, plain.values * 1.25, rtol=4 * 2.0**-11 + 1e-5, atol=0.0)


def test_ranks_are_the_levels_and_are_cut_to_the_matrix() -> None:
    weight, measure = _problem(rows=6)
    levels = _levels(weight, measure, Options((9, 3, 6, 1), "F16"))
    assert [level.form.rank for level in levels] == [6, 3, 6, 1]
    assert {(level.form.kind, level.form.factors, level.form.codec) for level in levels} == {("sign", "F16", "none")}


def test_a_higher_rank_fits_better() -> None:
    weight, measure = _problem()
    errors = [measure.loss(weight - _levels(weight, measure, Options((rank,)))[0].values, 0) for rank in (1, 4, 16, 64)]
    assert _falls(errors), errors


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (1, 1), (1, 17), (23, 1), (7, 64)])
def test_what_is_measured_is_what_readers_rebuild(factors: str, rows: int, columns: int) -> None:
    weight, measure = _problem(rows=rows, columns=columns)
    scales = measure.scales()
    levels = _levels(weight, measure, Options((5, 3, 2), factors))
    tensor = Tensor("w", (rows, columns), "F32", rows, 0, 1)
    said = sum(level.values.double() for level in levels).numpy()
    row, col = scales.row.double().numpy(), scales.col.double().numpy()

    blocks = [(level.form, level.data) for level in levels]
    exact = rebuild.chain_values(tensor, rows, blocks, row, col)
    chained = kernels.Chain(
        rows,
        columns,
        scales.row,
        scales.col,
        tuple(
            kernels.SignBlock.from_bytes(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), rows, columns, form.rank, form.factors
            )
            for form, data in blocks
        ),
    )
    # Each product of a sum over k takes at most five float32 roundings (three scales, the product, the other factor),
    # the sum k of them, the sum over blocks three: all relative to the sum of absolute products.
    absolute = np.zeros((rows, columns))
    for form, data in blocks:
        parts = payload.split(form, tensor, rows, data)
        u, v = (
            np.abs(payload.as_float(np.ascontiguousarray(p).view(np.uint8).reshape(-1), factors)).reshape(p.shape)
            for p in (parts.u, parts.v)
        )
        absolute += (u * (1.0 if parts.scale is None else np.abs(parts.scale))) @ v.T
    bound = absolute * row[:, None] * col * (5 + 5 + 3) * 2.0**-24
    assert (np.abs(said - exact) <= bound).all()
    assert (np.abs(kernels.rebuild(chained).double().numpy() - exact) <= bound).all()
    assert np.abs(exact).max() > 0


@pytest.mark.parametrize("factors", FACTORS)
def test_payloads_are_valid(factors: str) -> None:
    weight, measure = _problem()
    tensor = Tensor("w", (ROWS, COLUMNS), "F32", ROWS, 0, 1)
    for matrix in (weight, torch.zeros_like(weight), weight * 1e-30, weight * 1e6, torch.ones_like(weight)):
        for level in _levels(matrix, measure, Options(RANKS, factors)):
            assert len(level.data) == payload.length(level.form, tensor, ROWS)
            payload.check(level.form, tensor, ROWS, level.data, False, "w", "")
            assert torch.isfinite(level.values).all()


def test_a_matrix_of_zeros_stays_zero() -> None:
    weight, measure = _problem()
    for level in _levels(torch.zeros_like(weight), measure, Options(RANKS)):
        assert not level.values.any()


def test_the_weight_is_left_alone_and_the_seed_decides() -> None:
    weight, measure = _problem()
    before = weight.clone()
    first, again = (_levels(weight, measure, Options(RANKS), seed=7) for _ in range(2))
    assert torch.equal(weight, before)
    assert [level.data for level in first] == [level.data for level in again]


# Signs


@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_signs_are_packed_as_a_plain_loop_packs_them(rows: int, columns: int, seed: int) -> None:
    positive = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8)
    for i in range(rows):
        for j in range(columns):
            if positive[i, j]:
                expected[i, j // 8] |= 1 << (j % 8)
    packed = pack_signs(positive)
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, expected)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 63])
def test_padding_bits_are_zero(columns: int) -> None:
    last = pack_signs(torch.ones(3, columns, dtype=torch.bool))[:, -1]
    assert set(last.tolist()) == {(1 << ((columns - 1) % 8 + 1)) - 1}


# Low rank


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
    for basis in (u, v):
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank), rtol=0, atol=1e-4)
    best = (best_u[:, :rank] * best_s[:rank]) @ best_v[:rank]
    assert (matrix - (u * s) @ v.T).norm() <= 1.001 * (matrix - best).norm() + 1e-5


def test_low_rank_of_a_lower_rank_matrix() -> None:
    matrix = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 6))
    u, s, v = low_rank(matrix, 3, seed=0)
    torch.testing.assert_close((u * s) @ v.T, matrix, rtol=1e-5, atol=1e-4)
    assert (s[1:] < 1e-4 * s[0]).all()


def test_low_rank_depends_on_nothing_but_its_arguments() -> None:
    matrix = _decaying()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = low_rank(matrix, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: low_rank(matrix, 5, seed=3), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


# Hessian


def _damped(hessian: torch.Tensor) -> torch.Tensor:
    mean = hessian.double().diagonal().mean()
    return hessian.double() + torch.eye(len(hessian)) * (DAMPING * mean if mean > 0 else 1.0)


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


# Scales


def _weights(**kinds: torch.Tensor) -> list[object]:
    return [pytest.param(value, id=name) for name, value in kinds.items()]


@pytest.mark.parametrize(
    "weight",
    _weights(
        ordinary=torch.linspace(0.1, 3, 9),
        dead_channels=torch.tensor([0.0, 1, 2, 0, 3]),
        all_dead=torch.zeros(5),
        constant=torch.full((5,), 7.0),
        one_giant=torch.cat([torch.ones(99_999), torch.tensor([1e30])]),
        huge=torch.full((4,), 1e30),
        tiny=torch.full((4,), 1e-30),
        single=torch.tensor([3.0]),
        float64=torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    ),
)
def test_scales_are_finite_and_positive(weight: torch.Tensor) -> None:
    scales = Scales.of(weight, weight)
    for values, floor in ((scales.row, ROW_FLOOR), (scales.col, COLUMN_FLOOR)):
        assert values.dtype == torch.float16
        assert values.shape == weight.shape
        assert torch.isfinite(values).all()
        assert (values >= 2.0**-14).all()  # the smallest normal float16: nothing loses precision
        assert float(values.max()) <= 1.001 / floor


def test_scales_are_reciprocals_relative_to_the_mean() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0, 9.0])
    scales = Scales.of(weight, weight * 1e9)
    torch.testing.assert_close(scales.row.float(), 4.0 / weight, rtol=2.0**-11, atol=0)
    assert torch.equal(scales.row, scales.col)


def test_dead_channels_get_the_floor() -> None:
    scales = Scales.of(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    assert scales.row[0] == torch.tensor(1 / ROW_FLOOR).half()
    assert scales.col[0] == torch.tensor(1 / COLUMN_FLOOR).half()


def test_linear_scales_come_from_inputs_and_gradients() -> None:
    measure = LinearMeasure(LinearStatistics(torch.diag(torch.tensor([4.0, 16.0])), torch.tensor([1.0, 9.0]).double()))
    scales = measure.scales()
    assert scales.col.tolist() == pytest.approx([3 / 2, 3 / 4], rel=1e-3)  # rms 2 and 4, mean 3
    assert scales.row.tolist() == pytest.approx([2 / 1, 2 / 3], rel=1e-3)  # rms 1 and 3, mean 2


def test_linear_loss_is_the_trace() -> None:
    weight, measure = _problem()
    h, g2 = measure.statistics.hessian.double(), measure.statistics.output
    part = weight[10:30].double()
    expected = float(torch.diag(g2[10:30]).matmul(part @ h @ part.T).trace())
    assert measure.loss(weight[10:30], 10) == pytest.approx(expected, rel=1e-4)


def test_token_loss_is_the_weighted_sum_of_squares() -> None:
    g = torch.Generator().manual_seed(0)
    terms = [(torch.rand(12, generator=g).double(), torch.rand(5, generator=g).double()) for _ in range(2)]
    error = torch.randn(4, 5, generator=g)
    fisher = sum(torch.outer(r, c) for r, c in terms)
    floor = 1e-3 * sum(float(r.mean() * c.mean()) for r, c in terms)
    expected = float(((fisher[3:7] + floor) * error.double().square()).sum())
    assert TokenMeasure(TokenStatistics(terms)).loss(error, 3) == pytest.approx(expected, rel=1e-5)


def test_token_rows_that_never_occur_still_count() -> None:
    measure = TokenMeasure(TokenStatistics([(torch.tensor([1.0, 0.0]).double(), torch.ones(3).double())]))
    assert 0 < measure.loss(torch.ones(1, 3), 1) < 0.01 * measure.loss(torch.ones(1, 3), 0)


# Values that are no numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_names_the_tensor(bad: float) -> None:
    weight = torch.zeros(4, 4)
    check_finite(weight, "fine")
    weight[1, 2] = weight[3, 3] = bad
    with pytest.raises(ModelError, match=r"^layers\.3\.up has 2 values that are NaN or infinite") as caught:
        check_finite(weight, "layers.3.up")
    assert caught.value.reason == "weight-values"
