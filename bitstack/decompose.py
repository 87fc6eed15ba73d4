"""Matrices as chains of residual blocks, several of one shape at once.

Every stage aims at what the stages before it left of W. The magnitude of a sign block is the best low-rank
approximation of the residual's absolute values under the row and column scales (BitStack, arXiv 2410.23918, §3),
larger by what a uniform quantiser of its bits needs; the codes of all its planes are chosen together along the Hessian.
All arithmetic after that uses the stored values, so that what is measured here is what a reader rebuilds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from bsformat import Form
from bsformat.errors import ModelError

from .design import Design, Judge, Signs, Sparse, Stage
from .emit import planes, sign_bytes, sparse_block
from .lowrank import Factors, low_rank, store
from .measure import Measure
from .scales import Scales
from .walk import Walker, first_planes, nearest

#: What the mean absolute value is multiplied with for the outermost plane of a uniform quantiser of 1, 2, … bits to fit
#: a Gaussian best (Max, Quantizing for minimum distortion, 1960, table II).
_GAUSSIAN: Final = (1.0, 1.248, 1.469, 1.680, 1.886, 2.087)
#: Rows of each matrix on which rank and stretch of a block are tried.
_TRIAL_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Search:
    """What is tried for every block, and what decides.

    Attributes:
        designs: of the chain; the best one is taken, for each matrix.
        tail: what follows the design.
        ranks: of the factors of a sign block.
        stretches: of its magnitude, relative to what fits a Gaussian.
        factors: element types of the factors.
        judge: weighs bytes against loss.
        walk: choose codes along the Hessian, else each element by itself.
    """

    designs: tuple[Design, ...]
    tail: Design
    ranks: tuple[int, ...]
    stretches: tuple[float, ...]
    factors: tuple[str, ...]
    judge: Judge
    walk: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """B matrices of one shape, to be decomposed together.

    Attributes:
        weight: float32 [B, M, N]. row: float32 [B, M], col: float32 [B, N], the scales as stored.
        measure: the cost of errors. seed: of what is random.
    """

    weight: torch.Tensor
    row: torch.Tensor
    col: torch.Tensor
    measure: Measure
    seed: int

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], scales: Sequence[Scales], measure: Measure, seed: int) -> "Problem":
        """From matrices [M, N] and their scales."""
        row = torch.stack([s.row for s in scales]).to(weights[0].device).float()
        col = torch.stack([s.col for s in scales]).to(weights[0].device).float()
        return cls(torch.stack(list(weights)), row, col, measure, seed)

    def select(self, which: list[int]) -> "Problem":
        """Some of the matrices."""
        return replace(
            self,
            weight=self.weight[which],
            row=self.row[which],
            col=self.col[which],
            measure=self.measure.select(which),
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """One stage of one chain: the payload of a sparse block, or factors and codes, not yet packed into bytes."""

    data: bytes = b""
    bits: int = 0
    factors: Factors | None = None
    codes: torch.Tensor | None = None

    def blocks(self) -> Iterator[tuple[Form, bytes]]:
        if self.factors is None or self.codes is None:
            yield Form("sparse"), self.data
        else:
            yield from planes(self.codes, self.bits, self.factors)


@dataclass(frozen=True, slots=True)
class Chained:
    """One chain.

    Attributes:
        losses: estimated loss with 0, 1, 2, … of its blocks.
        sizes: bytes of each block.
    """

    losses: tuple[float, ...]
    sizes: tuple[int, ...]
    _stages: tuple[_Made, ...] = field(repr=False)

    def blocks(self) -> Iterator[tuple[Form, bytes]]:
        """Form and payload of each block, in the order of the chain."""
        for made in self._stages:
            yield from made.blocks()


@dataclass(slots=True)
class _State:
    """Chains as far as they go: for each of the B matrices its residual, its losses and sizes, and its stages."""

    residual: torch.Tensor
    losses: list[list[float]]
    sizes: list[list[int]]
    stages: list[list[_Made]]

    def select(self, which: list[int]) -> "_State":
        def some(values: list[list]) -> list[list]:  # type: ignore[type-arg]
            return [values[i] for i in which]

        return _State(self.residual[which], some(self.losses), some(self.sizes), some(self.stages))


def decompose(problem: Problem, search: Search) -> list[Chained]:
    """The chain of each matrix of a problem: the best design for it, with the best rank and stretch of every block."""
    with _estimating(problem.weight.device):
        return _decompose(problem, search)


@contextmanager
def _estimating(device: torch.device) -> Iterator[None]:
    """Within it, a GPU may multiply in TF32: losses are estimates, and codes answer for what was really pushed on."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _decompose(problem: Problem, search: Search) -> list[Chained]:
    walker = problem.measure.walker() if search.walk else None
    run = _Run(search, walker)
    start = [float(v) for v in problem.measure.rows(problem.weight).sum(1)]
    count = len(start)
    root = _State(problem.weight, [[v] for v in start], [[] for _ in start], [[] for _ in start])
    best: list[tuple[float, int] | None] = [None] * count
    ends: dict[int, _State] = {}
    for number, state in enumerate(_leaves(problem, root, search.designs, run)):
        ends[number] = state
        for i in range(count):
            cost = search.judge.cost(state.losses[i], state.sizes[i])
            held = best[i]
            if held is None or cost < held[0]:
                best[i] = (cost, number)
        # A design that is nobody's choice any more is let go of, it holds the largest tensors.
        ends = {n: s for n, s in ends.items() if any(b is not None and b[1] == n for b in best)}
    done: list[Chained | None] = [None] * count
    for number, state in ends.items():
        which = [i for i, b in enumerate(best) if b is not None and b[1] == number]
        part, rest = state.select(which), problem.select(which)
        for stage in search.tail:
            part = run.stage(rest, part, stage, which)
        for i, losses, sizes, stages in zip(which, part.losses, part.sizes, part.stages, strict=True):
            done[i] = Chained(tuple(losses), tuple(sizes), tuple(stages))
    return [chain for chain in done if chain is not None]


def _leaves(problem: Problem, state: _State, designs: Sequence[Design], run: "_Run") -> Iterator[_State]:
    """The ends of all designs carried out; what they begin with alike is done once."""
    heads: dict[Stage, list[Design]] = {}
    for design in dict.fromkeys(designs):
        if design:
            heads.setdefault(design[0], []).append(design[1:])
        else:
            yield state
    for stage, rests in heads.items():
        yield from _leaves(problem, run.stage(problem, state, stage, None), rests, run)


class _Run:
    """Carries out stages."""

    def __init__(self, search: Search, walker: Walker | None) -> None:
        self._search, self._walker = search, walker

    def stage(self, problem: Problem, state: _State, stage: Stage, which: list[int] | None) -> _State:
        """One more stage on all matrices; ``which`` says which of the walker's they are."""
        if isinstance(stage, Sparse):
            return self._sparse(problem, state, stage)
        return self._signs(problem, state, stage, which)

    def _sparse(self, problem: Problem, state: _State, stage: Sparse) -> _State:
        rest, made, sizes = state.residual.clone(), [], []
        for i, residual in enumerate(state.residual):
            values, data = sparse_block(residual, problem.row[i], problem.col[i], stage.share)
            rest[i] -= values
            made.append(_Made(data))
            sizes.append([len(data)])
        losses = problem.measure.rows(rest).sum(1).tolist()
        return _grown(state, rest, [[v] for v in losses], sizes, made)

    def _signs(self, problem: Problem, state: _State, stage: Signs, which: list[int] | None) -> _State:
        bits, search = stage.bits, self._search
        residual, row, col = state.residual, problem.row, problem.col
        weighted = residual.abs() / col[:, None, :] / row[:, :, None]
        u, s, v = low_rank(weighted, max(search.ranks), problem.seed + len(state.losses[0]))
        ranks = sorted({min(k, s.shape[-1]) for k in search.ranks})
        options = [
            [
                store(u[i, :, :k], _GAUSSIAN[bits - 1] * s[i, :k], v[i, :, :k], kind)
                for k in ranks
                for kind in search.factors
            ]
            for i in range(len(residual))
        ]
        walker = self._walker if which is None or self._walker is None else self._walker.select(which)
        factors = self._best(problem, state, options, walker, bits)
        magnitude = torch.stack([f.product(row[i], col[i]) for i, f in enumerate(factors)])
        codes = nearest(residual, magnitude, bits) if walker is None else walker.codes(residual, magnitude, bits)
        step = magnitude.mul_(2.0 ** (1 - bits))
        losses = []
        for count in range(1, bits + 1):
            rest = torch.addcmul(residual, first_planes(codes, bits, count).float(), step, value=-1)
            losses.append(problem.measure.rows(rest).sum(1).tolist())
        sizes = [_sizes(residual, f, bits) for f in factors]
        made = [_Made(bits=bits, factors=f, codes=codes[i]) for i, f in enumerate(factors)]
        return _grown(state, rest, [list(c) for c in zip(*losses, strict=True)], sizes, made)

    def _best(
        self,
        problem: Problem,
        state: _State,
        options: list[list[Factors]],
        walker: Walker | None,
        bits: int,
    ) -> list[Factors]:
        """The best rank and stretch for each matrix, tried on some of its rows."""
        search = self._search
        tried = [[(f, x) for f in choices for x in search.stretches] for choices in options]
        if len(tried[0]) == 1:
            return [choices[0][0].stretched(choices[0][1]) for choices in tried]
        count, rows = state.residual.shape[:2]
        chosen = torch.arange(min(_TRIAL_ROWS, rows), device=state.residual.device) * rows // min(_TRIAL_ROWS, rows)
        few, each = len(chosen), len(tried[0])
        target = state.residual[:, chosen].repeat(1, each, 1)
        magnitude = torch.empty_like(target)
        for i, choices in enumerate(tried):
            cut = [replace(f, u=f.u[chosen]).product(problem.row[i][chosen], problem.col[i]) * x for f, x in choices]
            magnitude[i] = torch.cat(cut)
        codes = nearest(target, magnitude, bits) if walker is None else walker.codes(target, magnitude, bits)
        step = magnitude.mul_(2.0 ** (1 - bits))
        losses = []
        for number in range(1, bits + 1):
            rest = torch.addcmul(target, first_planes(codes, bits, number).float(), step, value=-1)
            by_row = problem.measure.rows(rest, chosen.repeat(each))
            losses.append(by_row.view(count, each, few).sum(-1) * (rows / few))
        curves = torch.stack(losses, -1).tolist()
        # The sample stands for all rows: its own loss before this stage, scaled, is not quite that of the whole.
        before = problem.measure.rows(state.residual[:, chosen], chosen).sum(1) * (rows / few)
        best = []
        for i, choices in enumerate(tried):
            ratio = state.losses[i][-1] / max(float(before[i]), 1e-300)
            costs = []
            for (f, _), curve in zip(choices, curves[i], strict=True):
                losses_after = [*state.losses[i], *(v * ratio for v in curve)]
                costs.append(search.judge.cost(losses_after, [*state.sizes[i], *_sizes(state.residual, f, bits)]))
            f, x = choices[min(range(each), key=costs.__getitem__)]
            best.append(f.stretched(x))
        return best


def _grown(
    state: _State, residual: torch.Tensor, losses: list[list[float]], sizes: list[list[int]], made: list[_Made]
) -> _State:
    return _State(
        residual,
        [a + b for a, b in zip(state.losses, losses, strict=True)],
        [a + b for a, b in zip(state.sizes, sizes, strict=True)],
        [[*a, b] for a, b in zip(state.stages, made, strict=True)],
    )


def _sizes(residual: torch.Tensor, factors: Factors, bits: int) -> list[int]:
    rows, columns = residual.shape[1:]
    return [sign_bytes(rows, columns, factors)] + [sign_bytes(rows, columns, None)] * (bits - 1)


def check_finite(weight: torch.Tensor, name: str) -> None:
    """Refuse a weight with NaN or infinity, by name.

    Raises:
        ModelError: reason ``weight-values``.
    """
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ModelError(f"{name} has {bad} values that are NaN or infinite", reason="weight-values")
