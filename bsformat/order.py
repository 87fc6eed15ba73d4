"""The order of all blocks of all chains: by worth per byte, levels of a chain in their order."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

Key = TypeVar("Key")


def order_by_worth(
    losses: Mapping[Key, Sequence[float]], sizes: Mapping[Key, Sequence[int]]
) -> list[tuple[Key, float]]:
    """Blocks in the order that lowers the estimated loss fastest per byte.

    A block that is worth more per byte than its predecessor in the chain joins it, so that every chain becomes a
    sequence of groups of falling worth (the upper concave hull of its curve); the groups of all chains are then
    sorted. Every prefix that ends with a group so has the smallest loss that its bytes can have.

    Args:
        losses: for each chain the estimated loss with 0, 1, 2, … of its blocks.
        sizes: for each chain the bytes of each block, one entry fewer.

    Returns:
        One (chain, worth) for each block, best first; worth is the drop of the loss per byte of the block's group,
        never negative. Ties keep the order of the mapping.
    """
    groups = [
        (worth, key, count)
        for key, loss in losses.items()
        for worth, count in groups_of([before - after for before, after in pairwise(loss)], sizes[key])
    ]
    groups.sort(key=lambda group: -group[0])
    return [(key, worth) for worth, key, count in groups for _ in range(count)]


def groups_of(gains: Sequence[float], sizes: Sequence[int]) -> list[tuple[float, int]]:
    """The blocks of one chain as groups of falling worth (the upper concave hull of its curve).

    Args:
        gains, sizes: for each block the drop of the loss, and its bytes.

    Returns:
        (worth, number of blocks) of each group; worth is the drop of the loss per byte, never negative.
    """
    hull: list[list[float]] = []  # gain, bytes, blocks
    for gain, size in zip(gains, sizes, strict=True):
        hull.append([gain, size, 1])
        while len(hull) > 1 and hull[-1][0] * hull[-2][1] > hull[-2][0] * hull[-1][1]:
            top = hull.pop()
            hull[-1] = [a + b for a, b in zip(hull[-1], top, strict=True)]
    return [(max(gain / size, 0.0), int(count)) for gain, size, count in hull]
