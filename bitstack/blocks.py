"""The blocks of targets: made, and kept in the work folder until the file is written."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
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
    problems = _problems(targets, matrices, scales, statistics, seed)
    chains = (chain for problem in problems for chain in _chains(problem, options, judge))
    for step, target, scale in zip(steps, targets, scales, strict=True):
        own = list(islice(chains, -(-target.rows // target.group_rows)))
        if not work.has(step):  # an earlier run has kept the same
            _keep(work, step, scale, own)


def _scales(target: Target, statistics: Statistics, options: Options) -> Scales:
    if target.by_token:
        found = token_scales([(with_floor(w), a) for w, a in statistics.token[target.name].terms])
    else:
        own = statistics.linear[target.name]
        found = linear_scales(own.hessian, own.output)
    return reference.chosen_scales(found, options.scales)


def _problems(
    targets: Sequence[Target],
    matrices: Sequence[torch.Tensor],
    scales: Sequence[Scales],
    statistics: Statistics,
    seed: int,
) -> Iterator[Problem]:
    """All chains of some targets of one shape, in their order, as many together as memory allows."""
    device, target = matrices[0].device, targets[0]
    together = max(1, _TOGETHER[device.type] // (target.group_rows * target.columns))
    if target.by_token or target.group_rows < target.rows:
        for target, matrix, scale in zip(targets, matrices, scales, strict=True):
            for spans in _runs(target, together):
                measure = _measure_of_groups(target, statistics, spans, device)
                own = [Scales(scale.row[span], scale.col) for span in spans]
                yield Problem.of([matrix[span] for span in spans], own, measure, seed)
        return
    linear = [statistics.linear[t.name] for t in targets]
    for first in range(0, len(targets), together):
        part = slice(first, first + together)
        hessian = torch.stack([s.hessian.to(device) for s in linear[part]])
        output = torch.stack([s.output.to(device) for s in linear[part]])
        yield Problem.of(matrices[part], scales[part], LinearMeasure(hessian, output), seed)


def _runs(target: Target, together: int) -> Iterator[list[slice]]:
    """The rows of each chain of a target, in runs of chains of one length."""
    starts = range(0, target.rows, target.group_rows)
    spans = [slice(start, min(start + target.group_rows, target.rows)) for start in starts]
    last = [spans.pop()] if target.rows % target.group_rows else []  # a shorter group is a problem of its own
    for first in range(0, len(spans), together):
        yield spans[first : first + together]
    if last:
        yield last


def _measure_of_groups(target: Target, statistics: Statistics, spans: Sequence[slice], device: torch.device) -> Measure:
    """Of groups of token ids, or of experts, which share one Hessian."""
    if target.by_token:
        uses = [(with_floor(w), a.to(device)) for w, a in statistics.token[target.name].terms]
        return TokenMeasure(tuple((torch.stack([w[span] for span in spans]).to(device), a) for w, a in uses))
    own = statistics.linear[target.name]
    output = torch.stack([own.output[span] for span in spans]).to(device)
    return LinearMeasure(own.hessian.to(device)[None], output)


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
