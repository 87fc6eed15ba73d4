"""The paper's decomposition, against its formulas in float64, and what its parts are worth."""

from typing import Any

import numpy as np
import pytest
import torch

from bitstack.recipe import Options
from bitstack.reference import PaperLevel, chain, chosen_scales, exact_svd, rank_of_equal_bytes
from bitstack.scales import Scales
from bsformat import Tensor, payload, rebuild
from bsformat.registry import KINDS

ROWS, COLUMNS = 72, 100
PAPER: dict[str, Any] = {"factors": ("F16",), "walk": False, "scales": "column", "method": "paper"}
needs_lowrank = pytest.mark.skipif("lowrank" not in KINDS, reason="the format has no block kind lowrank yet")


def _problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs whose channels are of very different sizes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, COLUMNS, generator=g) * torch.logspace(-1, 1, COLUMNS)
    return torch.randn(ROWS, COLUMNS, generator=g), x


def _scales(x: torch.Tensor, which: str = "column") -> Scales:
    rows = torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) + 0.5
    return chosen_scales(Scales.of(rows, x.square().mean(0).sqrt()), which)


def _levels(options: Options, which: str = "column") -> list[PaperLevel]:
    weight, x = _problem()
    return list(chain(weight, _scales(x, which), options, seed=0))


def _output_error(levels: list[PaperLevel]) -> float:
    """Relative mean squared error of the layer's output."""
    weight, x = _problem()
    error = weight - torch.stack([level.values for level in levels]).sum(0)
    return float((x @ error.T).square().sum() / (x @ weight.T).square().sum())


def test_which_scales() -> None:
    _, x = _problem()
    both, column, none = (_scales(x, which) for which in ("row_column", "column", "none"))
    assert not torch.equal(both.row, torch.ones(ROWS).half())
    assert torch.equal(both.col, column.col)
    for ones in (column.row, none.row, none.col):
        assert torch.equal(ones, torch.ones_like(ones))
    # As stored they are reciprocals: a column is scaled by the rms of its input, up to one factor for all.
    rms = x.double().square().mean(0).sqrt()
    torch.testing.assert_close(column.col.double() * rms, torch.ones(COLUMNS).double() * rms.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("svd", ["exact", "randomised"])
def test_the_first_level_by_the_formula(svd: str) -> None:
    """sign(W diag(s)) ⊙ the best rank-k approximation of |W diag(s)|, unscaled."""
    weight, x = _problem()
    first, *_ = _levels(Options(**PAPER, svd=svd, ranks=(5,)))
    col = _scales(x).col.double().numpy()
    scaled = weight.double().numpy() / col
    u, s, vt = np.linalg.svd(np.abs(scaled))
    expected = np.where(scaled >= 0, 1, -1) * (u[:, :5] * s[:5] @ vt[:5]) * col
    error = np.linalg.norm((first.values.double().numpy() - expected) / col) / np.linalg.norm(expected / col)
    # Factors are rounded to 16 bits; the randomised SVD of a matrix without a gap in its spectrum is near, not equal.
    assert error < (1e-3 if svd == "exact" else 0.2)
    captured = [np.linalg.norm(np.abs(scaled) - np.abs(m / col)) for m in (expected, first.values.double().numpy())]
    assert captured[1] < captured[0] * 1.02


def test_a_level_aims_at_what_is_left() -> None:
    """Two levels in a row are a level, and a level of what it left."""
    weight, x = _problem()
    options = Options(**PAPER, svd="exact", ranks=(4, 4))
    first, second = chain(weight, _scales(x), options, seed=0)
    again, _ = chain(weight - first.values, _scales(x), options, seed=0)
    torch.testing.assert_close(again.values, second.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factors", ["F16", "F8_E4M3"])
@pytest.mark.parametrize("absolute", [True, pytest.param(False, marks=needs_lowrank)])
def test_a_reader_rebuilds_the_values(factors: str, absolute: bool) -> None:
    _, x = _problem()
    scales = _scales(x)
    options = Options(**PAPER | {"factors": (factors,)}, ranks=(6, 3, 1), absolute=absolute)
    tensor = Tensor("w", (ROWS, COLUMNS), "F32", ROWS)
    row, col = (s.double().numpy() for s in (scales.row, scales.col))
    for level in _levels(options):
        assert len(level.data) == payload.length(level.form, tensor, ROWS)
        payload.check(level.form, tensor, ROWS, level.data, False, "a block", "")
        rebuilt = rebuild.chain_values(tensor, ROWS, [(level.form, level.data)], row, col)
        np.testing.assert_allclose(level.values.numpy(), rebuilt, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factors", ["F16", "F8_E4M3"])
@pytest.mark.parametrize("rank", [1, 3, 16, 500])
def test_without_signs_a_level_has_nearly_the_same_bytes(factors: str, rank: int) -> None:
    (signs,) = _levels(Options(**PAPER | {"factors": (factors,)}, ranks=(rank,)))
    (plain,) = _levels(Options(**PAPER | {"factors": (factors,)}, ranks=(rank,), absolute=False))
    assert (signs.form.kind, plain.form.kind) == ("sign", "lowrank")
    assert plain.form.rank == rank_of_equal_bytes(ROWS, COLUMNS, rank, factors) <= ROWS
    step = len(plain.data) // plain.form.rank
    assert len(plain.data) <= len(signs.data)
    assert len(plain.data) > len(signs.data) - step or plain.form.rank == ROWS


def test_without_signs_a_level_is_the_best_low_rank_part() -> None:
    weight, x = _problem()
    (level,) = _levels(Options(**PAPER, svd="exact", ranks=(2,), absolute=False))
    col = _scales(x).col.float()
    u, s, v = exact_svd(weight / col, level.form.rank)
    torch.testing.assert_close(level.values / col, (u * s) @ v.T, rtol=0, atol=0.02)


def test_the_scale_helps() -> None:
    options = Options(**PAPER, ranks=(8, 8))
    scaled, plain = _output_error(_levels(options)), _output_error(_levels(options, "none"))
    assert scaled < 0.8 * plain


def test_absolute_values_help() -> None:
    """Of as many bytes, and the more of them the more."""
    ratios = []
    for count in (1, 3):
        errors = [
            _output_error(_levels(Options(**PAPER, ranks=(2,) * count, absolute=absolute)))
            for absolute in (True, False)
        ]
        ratios.append(errors[0] / errors[1])
    assert ratios[1] < ratios[0] < 0.8


def test_the_same_seed_gives_the_same_blocks() -> None:
    options = Options(**PAPER, ranks=(4, 4))
    assert [a.data for a in _levels(options)] == [b.data for b in _levels(options)]


def test_a_weight_of_zeros() -> None:
    _, x = _problem()
    for factors in ("F16", "F8_E4M3"):
        options = Options(**PAPER | {"factors": (factors,)}, ranks=(2, 2))
        levels = list(chain(torch.zeros(ROWS, COLUMNS), _scales(x), options, seed=0))
        assert [float(level.values.abs().max()) for level in levels] == [0.0, 0.0]
