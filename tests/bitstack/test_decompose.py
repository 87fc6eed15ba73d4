"""Matrices as chains: what is reported is what the bytes rebuild, and the best of what was tried is taken."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from bitstack import decompose as module
from bitstack import kernels
from bitstack.decompose import Chained, Problem, Search, check_finite, decompose
from bitstack.design import Judge, parse_design
from bitstack.measure import Measure, TokenMeasure, token_scales
from bsformat import Form, Tensor, payload, rebuild
from bsformat.errors import ModelError
from tests.matrices import linear_problem

#: Worths of a byte at which a chain of a `linear_problem` ends early, in its middle, and late.
JUDGE = Judge((1.0, 0.03, 1e-3), 0.6)


def _search(*designs: str, tail: str = "b2", **changes: Any) -> Search:
    plain = Search(
        tuple(parse_design(text) for text in designs), parse_design(tail), (2,), (1.0,), ("F8_E4M3",), JUDGE, True
    )
    return replace(plain, **changes)


def _token_problem(count: int = 2, rows: int = 64, columns: int = 24) -> Problem:
    g = torch.Generator().manual_seed(3)
    weights = torch.randn(count, rows, columns, generator=g)
    uses = []
    for _ in range(2):
        x = torch.randn(80, columns, generator=g)
        uses.append((torch.rand(count, rows, generator=g).double() ** 4 + 1e-3, x.T @ x / 80))
    scales = [token_scales([(w[b], a) for w, a in uses]) for b in range(count)]
    return Problem.of(list(weights), scales, TokenMeasure(tuple(uses)), seed=5)


def _residuals(problem: Problem, number: int, chain: Chained) -> list[torch.Tensor]:
    """What 0, 1, 2, … blocks leave of a matrix, rebuilt by the format's own reader: float64 [M, N]."""
    rows, columns = problem.weight.shape[1:]
    tensor, blocks = Tensor("w", (rows, columns), "F32", rows, 0, 1), list(chain.blocks())
    row, col = problem.row[number].double().numpy(), problem.col[number].double().numpy()
    weight = problem.weight[number].double()
    return [
        weight - torch.from_numpy(rebuild.chain_values(tensor, rows, blocks[:count], row, col))
        for count in range(len(blocks) + 1)
    ]


def _loss(measure: Measure, number: int, residual: torch.Tensor) -> float:
    return float(measure.select([number]).rows(residual.float()[None]).sum())


def _bytes(chain: Chained) -> list[bytes]:
    return [data for _, data in chain.blocks()]


def _alike(one: Chained, other: Chained) -> None:
    """Two chains are the same but for codes on the brink, which rounding decides."""
    assert [form for form, _ in one.blocks()] == [form for form, _ in other.blocks()]
    assert one.sizes == other.sizes
    assert one.losses == pytest.approx(other.losses, rel=0.02)


# What is reported


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize("factors", ["F16", "F8_E4M3"])
@pytest.mark.parametrize("kind", ["linear", "token"])
def test_losses_and_sizes_are_those_of_the_bytes(kind: str, factors: str, walk: bool) -> None:
    problem = linear_problem(2) if kind == "linear" else _token_problem()
    search = _search("s1 b3 s0.5 b2", factors=(factors,), ranks=(1, 4), stretches=(0.85, 1.0, 1.1), walk=walk)
    for number, chain in enumerate(decompose(problem, search)):
        blocks, residuals = list(chain.blocks()), _residuals(problem, number, chain)
        assert chain.sizes == tuple(len(data) for _, data in blocks)
        losses = [_loss(problem.measure, number, r) for r in residuals]
        # Relative to float32 rounding of a residual that is a small part of the weight.
        np.testing.assert_allclose(chain.losses, losses, rtol=1e-3, atol=1e-9 * losses[0])
        assert losses[-1] < 0.02 * losses[0]


def test_the_forms_of_a_design_and_its_tail() -> None:
    (chain,) = decompose(linear_problem(), _search("s1 b3 s0.5 b1", tail="b2"))
    kinds = [form.kind for form, _ in chain.blocks()]
    assert kinds == ["sparse", "sign", "plane", "plane", "sparse", "sign", "sign", "plane"]
    assert [form.rank for form, _ in chain.blocks() if form.kind == "sign"] == [2, 2, 2]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 17), (23, 1), (7, 64), (130, 9)])
def test_every_shape(rows: int, columns: int) -> None:
    problem = linear_problem(2, rows, columns)
    tensor = Tensor("w", (rows, columns), "F32", rows, 0, 1)
    search = _search("s1 b2", ranks=(1, 3), stretches=(0.85, 1.0))
    for number, chain in enumerate(decompose(problem, search)):
        for form, data in chain.blocks():
            payload.check(form, tensor, rows, data, False, "a block", "")
            assert form.kind == "sparse" or len(data) == payload.length(form, tensor, rows)
        losses = [_loss(problem.measure, number, r) for r in _residuals(problem, number, chain)]
        np.testing.assert_allclose(chain.losses, losses, rtol=1e-3, atol=1e-6 * losses[0])


def test_the_kernels_rebuild_the_same() -> None:
    problem = linear_problem()
    (chain,) = decompose(problem, _search("s1 b3"))
    held = kernels.Chain(*problem.weight.shape[1:], problem.row[0].half(), problem.col[0].half())
    for form, data in chain.blocks():
        held = held.add(form.kind, torch.frombuffer(bytearray(data), dtype=torch.uint8), form.rank, form.factors)
    rest = _residuals(problem, 0, chain)[-1]
    rebuilt = problem.weight[0].double() - kernels.rebuild(held).double()
    torch.testing.assert_close(rebuilt, rest, rtol=0, atol=1e-5 * float(problem.weight.abs().max()))


# Approximation


def test_levels_lower_the_loss() -> None:
    """At least from stage to stage, and each of a stage's planes too where the magnitude fits."""
    for problem in (linear_problem(2), _token_problem()):
        for chain in decompose(problem, _search("b2 b2 b2")):
            losses = chain.losses
            assert all(b < a for a, b in pairwise(losses[::2])), losses
            assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("seed", range(4))
def test_walking_lowers_the_loss(seed: int) -> None:
    problem = linear_problem(seed=seed)
    (walked,), (single,) = (decompose(problem, _search("b3", walk=walk)) for walk in (True, False))
    assert walked.sizes == single.sizes
    assert walked.losses[3] < 0.8 * single.losses[3]
    assert walked.losses[-1] < 0.8 * single.losses[-1]


def test_sparse_blocks_help_heavy_tails() -> None:
    (with_,), (without,) = (decompose(linear_problem(), _search(text)) for text in ("s3 b3", "b3"))
    assert with_.losses[-1] < 0.8 * without.losses[-1]


# What is chosen


def test_each_matrix_gets_the_best_design_for_it() -> None:
    problem = linear_problem(3)
    problem.weight[0] = problem.weight[0].clamp(-0.05, 0.05)  # no tails
    problem.weight[1, ::9, ::7] *= 30
    texts, tail = ("b2 b1", "b2 b2", "s3 b2 b1", "b4"), "b1"
    chosen = decompose(problem, _search(*texts, tail=tail))
    singles = [decompose(problem, _search(text, tail=tail)) for text in texts]
    found = set()
    for number, chain in enumerate(chosen):
        costs = []
        for text, single in zip(texts, singles, strict=True):
            ends = sum(s.bits if hasattr(s, "bits") else 1 for s in parse_design(text))
            costs.append(JUDGE.cost(single[number].losses[: ends + 1], single[number].sizes[:ends]))
        best = costs.index(min(costs))
        found.add(best)
        _alike(chain, singles[best][number])
    assert len(found) > 1


@pytest.mark.parametrize("option", ["ranks", "stretches", "factors"])
def test_what_is_tried_is_weighed_by_the_judge(option: str) -> None:
    """On so few rows, all are tried on: the choice is the best one."""
    values: tuple[Any, ...] = {"ranks": (1, 4, 12), "stretches": (0.3, 1.0, 2.0), "factors": ("F16", "F8_E4M3")}[option]
    problem = linear_problem(2, rows=32)
    both = decompose(problem, _search("b2", tail="b1", **{option: values}))
    singles = [decompose(problem, _search("b2", tail="b1", **{option: (value,)})) for value in values]
    for number, chain in enumerate(both):
        costs = [JUDGE.cost(s[number].losses[:3], s[number].sizes[:2]) for s in singles]
        mine = JUDGE.cost(chain.losses[:3], chain.sizes[:2])
        assert mine == pytest.approx(min(costs), rel=1e-3)
        assert max(costs) > 1.01 * min(costs)


@pytest.mark.parametrize(("worth", "rank"), [(1e3, 1), (1e-9, 16)])
def test_dear_bytes_make_low_ranks(worth: float, rank: int) -> None:
    problem = linear_problem(rows=32)
    problem.weight.copy_(problem.weight.abs() + 1)  # so that a rank is worth something
    (chain,) = decompose(problem, _search("b1", tail="b1", ranks=(1, 16), judge=Judge((worth,), 0.6)))
    assert next(form.rank for form, _ in chain.blocks()) == rank


def test_what_designs_begin_with_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = module.low_rank

    def counting(matrices: torch.Tensor, rank: int, seed: int) -> Any:
        calls.append((len(matrices), seed))
        return plain(matrices, rank, seed)

    monkeypatch.setattr(module, "low_rank", counting)
    decompose(linear_problem(2), _search("b2 b1", "b2 b2", "b2 b1", tail="b1"))
    # The stage in common, the second stage of each of two designs, and the tail for all or for each of the chosen.
    assert [seed for count, seed in calls][:3] == [0 + 1, 0 + 3, 0 + 3]
    assert sum(count for count, _ in calls[3:]) == 2


# Repetition


def test_the_same_seed_gives_the_same_bytes() -> None:
    problem = linear_problem(2)
    before = problem.weight.clone()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    search = _search("s1 b2 b1", "b2", ranks=(1, 4), stretches=(0.85, 1.0))
    first, again = decompose(problem, search), decompose(problem, search)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(problem.weight, before)
    assert [_bytes(c) for c in first] == [_bytes(c) for c in again]
    other = decompose(replace(problem, seed=11), search)
    assert [_bytes(c) for c in first] != [_bytes(c) for c in other]


@pytest.mark.parametrize("kind", ["linear", "token"])
def test_how_many_are_made_together_does_not_matter(kind: str) -> None:
    """But for rounding: a product's last bits depend on where in memory its matrices begin. So a run that goes on
    where it was makes all matrices of a shape again (`Producer`)."""
    problem = linear_problem(4) if kind == "linear" else _token_problem(4)
    search = _search("s1 b2", "b2 b1", ranks=(1, 4), stretches=(0.85, 1.0))
    together = decompose(problem, search)
    for size in (1, 3):
        parts = []
        for first in range(0, 4, size):
            parts += decompose(problem.select(list(range(first, min(first + size, 4)))), search)
        for one, all_ in zip(parts, together, strict=True):
            _alike(one, all_)


# Matrices and values that are degenerate


def test_a_matrix_of_zeros_stays_zero() -> None:
    problem = linear_problem(2)
    problem.weight[0] = 0
    zero, other = decompose(problem, _search("s1 b2"))
    assert set(zero.losses) == {0.0}
    assert all(not r.any() for r in _residuals(problem, 0, zero))
    alone = decompose(linear_problem(2).select([1]), _search("s1 b2"))[0]
    _alike(other, alone)


@pytest.mark.parametrize("scale", [1e-30, 1e6])
def test_sizes_of_weights(scale: float) -> None:
    """Larger or smaller by a factor, what is left is so by the same."""
    problem = linear_problem()
    scaled = replace(problem, weight=problem.weight * scale)
    plain, other = (_residuals(p, 0, decompose(p, _search("b2"))[0])[-1] for p in (problem, scaled))
    assert float(other.norm()) == pytest.approx(scale * float(plain.norm()), rel=0.2)


def test_forms_hold_the_rank_that_the_matrix_has() -> None:
    (chain,) = decompose(linear_problem(rows=6), _search("b1", tail="b1", ranks=(9,), factors=("F16",)))
    assert [f for f, _ in chain.blocks()] == [Form("sign", rank=6, factors="F16")] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_names_the_tensor(bad: float) -> None:
    weight = torch.zeros(4, 4)
    check_finite(weight, "fine")
    weight[1, 2] = weight[3, 3] = bad
    with pytest.raises(ModelError, match=r"^layers\.3\.up has 2 values that are NaN or infinite") as caught:
        check_finite(weight, "layers.3.up")
    assert caught.value.reason == "weight-values"
