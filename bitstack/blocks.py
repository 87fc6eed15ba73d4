"""The blocks of targets: made, and kept in the work folder until the file is written."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bsformat import Form

from . import reference
from .collect import Statistics
from .decompose import Problem, Search, check_finite, decompose
from .design import Judge, parse_design
from .measure import LinearMeasure, Measure, TokenMeasure, linear_scales, token_scales, with_floor
from .recipe import Options
from .scales import Scales
from .targets import Target
from .work import WorkFolder

#: Elements that are decomposed together, at most, unless one matrix has more: bounds the memory.
_TOGETHER = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True, slots=True)
class Made:
    """One chain: the estimated loss with 0, 1, 2, … of its blocks, and form and payload of each."""

    losses: Sequence[float]
    blocks: Iterable[tuple[Form, bytes]]


def make_blocks(
    work: WorkFolder,
    steps: Sequence[str],
    targets: Sequence[Target],
    weights: Sequence[torch.Tensor],
    statistics: Statistics,
    options: Options,
    judge: Judge,
    seed: int,
    device: torch.device,
) -> None:
    """Decompose targets of one shape and keep their scales and blocks.

    Args:
        steps: the name of each target's step.
        weights: the parameters, of any floating type, on any device.
        judge: decides between designs. seed: of what is random.
        device: where to compute. The result does not depend on how many there are.

    Raises:
        ModelError: a weight is not finite.
    """
    matrices = []
    for target, weight in zip(targets, weights, strict=True):
        matrix = target.matrix(weight.to(device, torch.float32))
        check_finite(matrix, target.name)
        matrices.append(matrix)
    scales = [_scales(t, statistics, options) for t in targets]
    if targets[0].by_token:
        chains = [
            _token(t, m, s, statistics, options, judge, seed) for t, m, s in zip(targets, matrices, scales, strict=True)
        ]
    elif targets[0].group_rows < targets[0].rows:
        chains = [
            _stack(t, m, s, statistics, options, judge, seed) for t, m, s in zip(targets, matrices, scales, strict=True)
        ]
    else:
        chains = [[made] for made in _linear(targets, matrices, scales, statistics, options, judge, seed)]
    for step, scale, made in zip(steps, scales, chains, strict=True):
        if not work.has(step):  # an earlier run has kept the same
            _keep(work, step, scale, made)


def _scales(target: Target, statistics: Statistics, options: Options) -> Scales:
    if target.by_token:
        found = token_scales([(with_floor(w), a) for w, a in statistics.token[target.name].terms])
    else:
        own = statistics.linear[target.name]
        found = linear_scales(own.hessian, own.output)
    return reference.chosen_scales(found, options.scales)


def _linear(
    targets: Sequence[Target],
    matrices: Sequence[torch.Tensor],
    scales: Sequence[Scales],
    statistics: Statistics,
    options: Options,
    judge: Judge,
    seed: int,
) -> list[Made]:
    own = [statistics.linear[t.name] for t in targets]
    device = matrices[0].device
    hessians, outputs = [s.hessian.to(device) for s in own], [s.output.to(device) for s in own]
    together = max(1, _TOGETHER[device.type] // matrices[0].numel())
    made: list[Made] = []
    for first in range(0, len(targets), together):
        part = slice(first, first + together)
        measure = LinearMeasure(torch.stack(hessians[part]), torch.stack(outputs[part]))
        made += _chains(Problem.of(matrices[part], scales[part], measure, seed), options, judge)
    return made


def _stack(
    target: Target,
    matrix: torch.Tensor,
    scales: Scales,
    statistics: Statistics,
    options: Options,
    judge: Judge,
    seed: int,
) -> list[Made]:
    """The experts of one layer: each a chain, all with one Hessian."""
    own = statistics.linear[target.name]
    count, rows = target.rows // target.group_rows, target.group_rows
    hessian = own.hessian.to(matrix.device)[None]
    output = own.output.to(matrix.device).view(count, rows)
    weights = matrix.view(count, rows, -1)
    together = max(1, _TOGETHER[matrix.device.type] // weights[0].numel())
    made: list[Made] = []
    for first in range(0, count, together):
        part = range(first, min(first + together, count))
        mine = [Scales(scales.row[i * rows : (i + 1) * rows], scales.col) for i in part]
        measure = LinearMeasure(hessian, output[part.start : part.stop])
        made += _chains(Problem.of([weights[i] for i in part], mine, measure, seed), options, judge)
    return made


def _token(
    target: Target,
    matrix: torch.Tensor,
    scales: Scales,
    statistics: Statistics,
    options: Options,
    judge: Judge,
    seed: int,
) -> list[Made]:
    """Embeddings and output heads: groups of rows, each a chain."""
    device = matrix.device
    uses = [(with_floor(w).to(device), a.to(device)) for w, a in statistics.token[target.name].terms]
    size, made = target.group_rows, []
    together = max(1, _TOGETHER[device.type] // (size * target.columns))
    starts = list(range(0, target.rows, size))
    last = [starts.pop()] if target.rows % size else []  # a shorter group is a problem of its own
    for run in [*(starts[i : i + together] for i in range(0, len(starts), together)), last]:
        if not run:
            continue
        spans = [slice(start, min(start + size, target.rows)) for start in run]
        mine = [Scales(scales.row[span], scales.col) for span in spans]
        measure = TokenMeasure(tuple((torch.stack([w[span] for span in spans]), a) for w, a in uses))
        made += _chains(Problem.of([matrix[span] for span in spans], mine, measure, seed), options, judge)
    return made


def _chains(problem: Problem, options: Options, judge: Judge) -> list[Made]:
    if options.method == "paper":
        return [_paper(problem.select([i]), options) for i in range(len(problem.weight))]
    search = search_of(options, judge)
    return [Made(chain.losses, chain.blocks()) for chain in decompose(problem, search)]


def search_of(options: Options, judge: Judge) -> Search:
    """What a recipe tries for the chains of one group of matrices."""
    return Search(
        designs=tuple(parse_design(text) for text in options.designs),
        tail=parse_design(options.tail),
        ranks=options.ranks,
        stretches=options.stretches,
        factors=options.factors,
        judge=judge,
        walk=options.walk,
    )


def _paper(problem: Problem, options: Options) -> Made:
    measure: Measure = problem.measure
    rest, scales = problem.weight[0].clone(), Scales(problem.row[0].half(), problem.col[0].half())
    losses, blocks = [float(measure.rows(rest[None]).sum())], []
    for level in reference.chain(rest.clone(), scales, options, seed=problem.seed):
        rest -= level.values
        losses.append(float(measure.rows(rest[None]).sum()))
        blocks.append((level.form, level.data))
    return Made(losses, blocks)


def _keep(work: WorkFolder, step: str, scales: Scales, chains: Sequence[Made]) -> None:
    tensors = {"row_scale": scales.row.cpu(), "col_scale": scales.col.cpu()}
    kept = []
    for group, made in enumerate(chains):
        forms = []
        for level, (form, data) in enumerate(made.blocks):
            tensors[f"{group}.{level}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            forms.append(asdict(form))
        kept.append({"forms": forms, "losses": list(made.losses)})
    work.save(step, tensors, {"chains": json.dumps(kept)})


class Blocks:
    """The blocks of one target, read one by one from the file of their step."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path = path
        with safe_open(path, framework="pt") as file:
            self._chains = json.loads(file.metadata()["chains"])
            self.scales = Scales(file.get_tensor("row_scale").clone(), file.get_tensor("col_scale").clone())

    def losses(self, group: int) -> list[float]:
        """Of a chain with 0, 1, 2, … of its blocks."""
        return [float(value) for value in self._chains[group]["losses"]]

    def payloads(self, group: int) -> Iterator[tuple[Form, bytes]]:
        """The blocks of a chain, level by level."""
        from safetensors import safe_open

        with safe_open(self._path, framework="pt") as file:
            for level, form in enumerate(self._chains[group]["forms"]):
                yield Form(**form), file.get_tensor(f"{group}.{level}").numpy().tobytes()
