"""The order of all blocks of all chains: by worth per byte, levels of a chain in their order."""

from collections.abc import Mapping, Sequence
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
    groups: list[tuple[float, Key, int]] = []
    for key, loss in losses.items():
        hull: list[list[float]] = []  # gain, bytes, blocks
        for before, after, size in zip(loss[:-1], loss[1:], sizes[key], strict=True):
            hull.append([before - after, size, 1])
            while len(hull) > 1 and hull[-1][0] * hull[-2][1] > hull[-2][0] * hull[-1][1]:
                top = hull.pop()
                hull[-1] = [a + b for a, b in zip(hull[-1], top, strict=True)]
        groups += [(max(gain / size, 0.0), key, int(count)) for gain, size, count in hull]
    groups.sort(key=lambda group: -group[0])
    return [(key, worth) for worth, key, count in groups for _ in range(count)]
