"""The perplexity sweep of the BitStack paper (arXiv 2410.23918, §2.4), and the orders of blocks that it is for.

Every chain is measured with 0, 1, 2, … of its blocks while all others have all of theirs: what is lost without a
block and those after it is that block's importance.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from bsformat import Container, Tensor, payload, rebuild

from .evaluation import perplexity
from .progress import Reporter
from .recipe import Order, Recipe
from .text import Windows

Floats = npt.NDArray[np.float64]
#: Stands for the logarithm of a perplexity that is not finite.
_WORST: Final = 700.0


def order_of_paper(
    container: Container,
    model: Any,
    windows: Windows,
    recipe: Recipe,
    report: Reporter,
    *,
    known: Mapping[int, Sequence[float]] | None = None,
    keep: Callable[[dict[int, list[float]]], object] = lambda scores: None,
) -> list[tuple[int, float]]:
    """All residual blocks of a file in one of the paper's orders.

    Args:
        model: the dense model; its packed weights are replaced by what the blocks hold.
        windows: the calibration text; `Order.sweep_tokens` of it are measured on.
        known, keep: see `sweep`.

    Returns:
        (chain, worth) for each block, best first; worth is the measured drop of the log perplexity per byte.
    """
    order, sizes = recipe.order, chain_sizes(container)
    if order.method == "random":
        return random_order(sizes, recipe.seed)
    if order.sweep_tokens == 0:
        return average_order(sizes, {chain: [0.0] * (len(size) + 1) for chain, size in sizes.items()})
    part = swept_text(windows, order)
    counts = {chain: len(measured_counts(len(size), order.sweep_levels)) for chain, size in sizes.items()}
    tokens = part.ids.numel()
    with report.stage("sweep", tokens * (1 + sum(counts.values())), "token") as advance:
        if known:
            advance(tokens * (1 + sum(counts[chain] for chain in known)))
        scores = sweep(
            container,
            model,
            lambda: perplexity(model, part, progress=advance),
            order.sweep_levels,
            known=known,
            keep=keep,
        )
    return (average_order if order.method == "average" else greedy_order)(sizes, scores)


def swept_text(windows: Windows, order: Order) -> Windows:
    """The first windows with so many tokens; of the first one a part, where it is longer than that."""
    width = windows.ids.shape[1]
    count = max(1, order.sweep_tokens // width)
    return Windows(windows.name, windows.ids[:count, : max(2, order.sweep_tokens)])


def chain_sizes(container: Container) -> dict[int, list[int]]:
    """For each chain of a packed tensor the bytes of its blocks."""
    sizes: dict[int, dict[int, int]] = {}
    for number in range(container.index.required, len(container)):
        chain, level = int(container.index.chain[number]), int(container.index.level[number])
        sizes.setdefault(chain, {})[level] = int(container.index.length[number])
    return {chain: [of[level] for level in range(len(of))] for chain, of in sorted(sizes.items())}


def measured_counts(n_levels: int, limit: int) -> list[int]:
    """How many blocks of a chain are resident at its measurements: 0 to ``n_levels`` - 1, at most ``limit`` of them.

    They are spread evenly and hold the first; a limit of 0 is none.
    """
    if limit == 0 or limit >= n_levels:
        return list(range(n_levels))
    return sorted({round(i * n_levels / limit) for i in range(limit)})


def sweep(
    container: Container,
    model: Any,
    evaluate: Callable[[], float],
    limit: int = 0,
    *,
    known: Mapping[int, Sequence[float]] | None = None,
    keep: Callable[[dict[int, list[float]]], object] = lambda scores: None,
) -> dict[int, list[float]]:
    """Log perplexity for each chain with 0, 1, … and all of its blocks, all other chains complete.

    Every chain is written into the model level by level, and so ends complete. Between the counts that are measured
    the logarithm is interpolated.

    Args:
        model: the dense model, whose packed weights are replaced.
        evaluate: its perplexity as it stands.
        limit: measurements of one chain; 0 is all levels.
        known: results of an earlier run with the same arguments, which are not measured again.
        keep: called with all results so far whenever a chain is measured.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    sizes = chain_sizes(container)
    out = {chain: list(score) for chain, score in (known or {}).items()}
    with torch.no_grad():
        for tensor in container.model_tensors.values():
            if tensor.packed:  # what is there may be mapped from a file
                weight = weights[tensor.name]
                weight.data = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        for chain in sizes:
            place = _place(container, weights, chain)
            place.copy_(torch.from_numpy(np.asarray(sum(_levels(container, chain)))))
        complete = next((score[-1] for score in out.values()), None)
        complete = _logarithm(evaluate()) if complete is None else complete
        for chain, size in sizes.items():
            if chain in out:
                continue
            place, wanted = _place(container, weights, chain), measured_counts(len(size), limit)
            partial = np.zeros(tuple(place.shape))
            points = []
            for count, values in enumerate(_levels(container, chain)):
                if count in wanted:
                    place.copy_(torch.from_numpy(partial))
                    points.append(_logarithm(evaluate()))
                partial += values
            place.copy_(torch.from_numpy(partial))
            curve = np.interp(range(len(size) + 1), [*wanted, len(size)], [*points, complete])
            out[chain] = [float(value) for value in curve]
            keep(out)
    return out


def _logarithm(value: float) -> float:
    return min(math.log(value), _WORST) if 0 < value < math.inf else _WORST


def _place(container: Container, weights: Mapping[str, torch.Tensor], chain: int) -> torch.Tensor:
    """The rows of a model's weight that a chain stands for, [rows, columns], as a view."""
    tensor, first, rows = _part(container, chain)
    weight = weights[tensor.name]
    if not tensor.transposed:
        return weight.view(tensor.rows, tensor.columns)[first : first + rows]
    # The transpose of a stack of matrices is no matrix; a chain lies within one of them.
    matrix, row = divmod(first, tensor.shape[-2])
    return weight.mT.view(-1, *tensor.shape[-2:])[matrix, row : row + rows]


def _part(container: Container, chain: int) -> tuple[Tensor, int, int]:
    """The tensor of a chain, its first row in it, and its number of rows."""
    parts = container.chains
    return container.tensors[int(parts.tensor[chain])], int(parts.first_row[chain]), int(parts.rows[chain])


def _levels(container: Container, chain: int) -> Iterator[Floats]:
    """What each level of a chain adds to the weight: float64 [rows, columns]."""
    tensor, first, rows = _part(container, chain)
    row = _scale(container, tensor.row_scale)[first : first + rows]
    cols = _scale(container, tensor.col_scale).reshape(-1, tensor.columns)  # one for all chains, or one for each
    col = cols[(chain - tensor.first_chain) % len(cols)]
    own = np.flatnonzero(container.index.chain == chain).tolist()
    own.sort(key=lambda n: int(container.index.level[n]))
    blocks = ((container.block(number).form, bytes(container.read_block(number))) for number in own)
    for values in rebuild.level_values(tensor, rows, blocks):
        yield values * row[:, None] * col


def _scale(container: Container, number: int) -> Floats:
    tensor = container.tensors[number]
    (block,) = np.flatnonzero(container.index.chain == tensor.first_chain).tolist()
    values: Floats = payload.as_float(np.frombuffer(container.read_block(block), np.uint8), tensor.dtype)
    return values


def average_order(sizes: Mapping[int, Sequence[int]], scores: Mapping[int, Sequence[float]]) -> list[tuple[int, float]]:
    """Level by level over all chains alike, so that their numbers of blocks differ by at most one.

    Within a level the chain that suffers most without its block comes first.
    """
    out = []
    for level in range(max(map(len, sizes.values()), default=0)):
        alike = [chain for chain in sizes if level < len(sizes[chain])]
        out += [(c, _worth(c, level, sizes, scores)) for c in sorted(alike, key=lambda c: -scores[c][level])]
    return out


def greedy_order(sizes: Mapping[int, Sequence[int]], scores: Mapping[int, Sequence[float]]) -> list[tuple[int, float]]:
    """One block after the other, each time the one without which its chain suffers most; levels stay in order."""
    following = [(-scores[chain][0], chain, 0) for chain in sizes]
    heapq.heapify(following)
    out = []
    while following:
        _, chain, level = heapq.heappop(following)
        out.append((chain, _worth(chain, level, sizes, scores)))
        if level + 1 < len(sizes[chain]):
            heapq.heappush(following, (-scores[chain][level + 1], chain, level + 1))
    return out


def random_order(sizes: Mapping[int, Sequence[int]], seed: int) -> list[tuple[int, float]]:
    """Chains shuffled, each as often as it has blocks; levels stay in order. Nothing is known of any worth: 0."""
    chains = [chain for chain, size in sizes.items() for _ in size]
    random.Random(seed).shuffle(chains)
    return [(chain, 0.0) for chain in chains]


def _worth(chain: int, level: int, sizes: Mapping[int, Sequence[int]], scores: Mapping[int, Sequence[float]]) -> float:
    return max(scores[chain][level] - scores[chain][level + 1], 0.0) / sizes[chain][level]
