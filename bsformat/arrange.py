"""Which blocks of a file another one is made of, and in what order: answered by the index alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Final

from .container import Container
from .errors import RepackError
from .metadata import Curve
from .order import groups_of

#: ``file``: as it is; ``worth``: by worth per byte; ``average``: level by level, by worth within a level.
ORDERS: Final = ("file", "worth", "average")
#: For each packed tensor, for each of its row groups, the loss with 0, 1, 2, … and all of its levels.
Losses = Mapping[str, Sequence[Sequence[float]]]
#: Of a loss: so that no worth is beyond the largest binary32 number.
_LARGEST: Final = 1e30


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Blocks of a file in another order.

    Attributes:
        blocks: their numbers in the file.
        worth: of each, the drop of the loss per byte.
        required: how many leading ones every prefix contains: those of the file.
    """

    blocks: list[int]
    worth: list[float]
    required: int


def arrange(
    container: Container,
    order: str,
    *,
    losses: Losses | None = None,
    levels: int | None = None,
    limit: int | None = None,
) -> Arrangement:
    """The blocks that are left, in their new order. Required blocks stay where they are, whatever is asked for.

    Args:
        order: one of `ORDERS`.
        losses: what the worth of every block follows from, in place of the index.
        levels: how many levels of a chain are left at most.
        limit: resident bytes of all blocks that are left, at most: of the new order as many as that buys.

    Raises:
        RepackError: the order is none, or the losses are not those of this file.
    """
    if order not in ORDERS:
        raise RepackError(f"{order!r} is no order; there are {', '.join(ORDERS)}", where=container.uri)
    if levels is not None and levels < 0:
        raise RepackError(f"{levels} levels cannot be kept; name a number from 0", where=container.uri)
    n, index = container.available_blocks, container.index
    worth, level, chain = index.worth[:n].tolist(), index.level[:n].tolist(), index.chain[:n].tolist()
    size, required = index.length[:n].tolist(), index.required
    if losses is not None:
        if order == "file":
            raise RepackError("losses change the order: name the order worth or average", where=container.uri)
        drops = _drops(container, losses)
        worth[required:] = [
            max(drops[c][at] / s, 0.0)
            for c, at, s in zip(chain[required:], level[required:], size[required:], strict=True)
        ]
    left = [b for b in range(required, n) if levels is None or level[b] < levels]
    if order == "average":
        left.sort(key=lambda b: (level[b], -worth[b], b))
    elif order == "worth":
        left = _by_worth(left, chain, size, worth)
    blocks = [*range(required), *left]
    if limit is not None:
        resident = accumulate(size[b] for b in blocks)
        blocks = blocks[: max(required, len(list(takewhile(lambda held: held <= limit, resident))))]
    return Arrangement(blocks, [worth[b] for b in blocks], required)


def _by_worth(left: Sequence[int], chain: Sequence[int], size: Sequence[int], worth: list[float]) -> list[int]:
    """Blocks by worth per byte, those of a chain in their order; ``worth`` becomes that of each block's group.

    Of groups that are worth the same, the one that came first in the file comes first again.
    """
    chains: dict[int, list[int]] = {}
    for block in left:
        chains.setdefault(chain[block], []).append(block)
    groups: list[tuple[float, list[int]]] = []
    for blocks in chains.values():
        at = 0
        for value, count in groups_of([worth[b] * size[b] for b in blocks], [size[b] for b in blocks]):
            groups.append((value, blocks[at : at + count]))
            at += count
    groups.sort(key=lambda group: (-group[0], group[1][0]))
    for value, blocks in groups:
        for block in blocks:
            worth[block] = value
    return [block for _, blocks in groups for block in blocks]


def _drops(container: Container, losses: Losses) -> dict[int, list[float]]:
    """For each chain, what each of its levels takes from the loss."""
    counts: dict[int, int] = {}
    for chain in container.index.chain.tolist():
        counts[chain] = counts.get(chain, 0) + 1
    packed = {t.name: t for t in container.tensors if t.packed}
    if unknown := [name for name in losses if name not in packed]:
        raise RepackError(f"losses of {unknown[0]!r}, which is no packed tensor of this file", where=container.uri)
    out = {}
    for name, tensor in packed.items():
        if name not in losses:
            raise RepackError(f"there are no losses of {name}: every packed tensor needs them", where=container.uri)
        groups = losses[name]
        if not isinstance(groups, Sequence) or len(groups) != tensor.n_chains:
            what = f"the losses of {name} are not one list for each of its {tensor.n_chains} row groups"
            raise RepackError(what, where=container.uri)
        for group, values in enumerate(groups):
            wanted = counts.get(tensor.first_chain + group, 0) + 1
            if not isinstance(values, Sequence) or len(values) != wanted or not all(map(_is_loss, values)):
                raise RepackError(
                    f"the losses of row group {group} of {name} are not {wanted} finite numbers: with none, one, … and "
                    f"all of its {wanted - 1} levels",
                    where=container.uri,
                )
            out[tensor.first_chain + group] = [values[i] - values[i + 1] for i in range(wanted - 1)]
    return out


def _is_loss(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) <= _LARGEST
    )


def surviving(curves: Sequence[Curve], made: Arrangement) -> tuple[Curve, ...]:
    """The curves with the points that still hold: those whose prefix has the same blocks as before."""
    highest = list(accumulate(made.blocks, max, initial=-1))
    out = []
    for curve in curves:
        points = tuple((n, v) for n, v in curve.points if n < len(highest) and highest[n] == n - 1)
        if points:
            out.append(Curve(curve.metric, curve.text, curve.tokens, curve.window, curve.dense, points))
    return tuple(out)
