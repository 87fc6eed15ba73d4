"""The blocks of one target: made, and kept in the work folder until the file is written."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bsformat import Form

from . import decompose
from .collect import Statistics
from .decompose import Options, Scales
from .measure import LinearMeasure, Measure, TokenMeasure
from .targets import Target
from .work import WorkFolder


@dataclass(frozen=True, slots=True)
class Level:
    """One block: its payload, and what is left of the estimated loss once it is there."""

    form: Form
    data: bytes
    loss: float


def make_blocks(
    work: WorkFolder,
    name: str,
    target: Target,
    weight: torch.Tensor,
    statistics: Statistics,
    options: Options,
    seed: int,
    device: torch.device,
) -> None:
    """Decompose a target and keep its scales and blocks.

    Args:
        name: of the step.
        weight: the parameter, of any floating type, on any device.
        seed: of what is random.
        device: where to compute. The result does not depend on how many there are.

    Raises:
        ModelError: the weight is not finite.
    """
    full = weight.to(device, torch.float32)
    decompose.check_finite(full, target.name)
    matrix = full.T.contiguous() if target.transposed else full
    measure = _measure(moved(_own(statistics, target), device), target)
    scales = measure.scales()
    tensors = {"row_scale": scales.row, "col_scale": scales.col}
    chains = []
    for group, (first, levels) in enumerate(_chains(matrix, target, scales, measure, options, seed)):
        forms, losses = [], [first]
        for level, made in enumerate(levels):
            tensors[f"{group}.{level}"] = torch.frombuffer(bytearray(made.data), dtype=torch.uint8)
            forms.append(asdict(made.form))
            losses.append(made.loss)
        chains.append({"forms": forms, "losses": losses})
    work.save(name, tensors, {"chains": json.dumps(chains)})


def _chains(
    matrix: torch.Tensor, target: Target, scales: Scales, measure: Measure, options: Options, seed: int
) -> Iterator[tuple[float, Iterator[Level]]]:
    """All chains of a target: the loss without any block, and the blocks."""
    inverse = measure.inverse()
    for group, start in enumerate(range(0, target.rows, target.group_rows)):
        rest = matrix[start : start + target.group_rows].clone()
        own = Scales(scales.row[start : start + len(rest)], scales.col)

        def levels(rest: torch.Tensor, own: Scales, seed: int, start: int) -> Iterator[Level]:
            for level in decompose.chain(rest.clone(), own, options, seed=seed, inverse=inverse):
                rest -= level.values
                yield Level(level.form, level.data, measure.loss(rest, start))

        yield measure.loss(rest, start), levels(rest, own, seed + 100_000 * group, start)


def _measure(statistics: Statistics, target: Target) -> Measure:
    if target.by_token:
        return TokenMeasure(statistics.token[target.name])
    return LinearMeasure(statistics.linear[target.name])


def _own(statistics: Statistics, target: Target) -> Statistics:
    """The part of the statistics that is of one target."""
    return replace(
        statistics,
        linear={k: v for k, v in statistics.linear.items() if k == target.name},
        token={k: v for k, v in statistics.token.items() if k == target.name},
    )


def moved(value: Any, device: torch.device) -> Any:
    """A copy of nested dataclasses, lists, tuples and dictionaries with all tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


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
