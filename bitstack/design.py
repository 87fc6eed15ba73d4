"""Designs of a chain: which blocks it is made of, and what each design is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from bsformat.errors import RecipeError

#: Planes that one stage has, the sign block's own included, at most: codes are 8-bit.
MAX_BITS: Final = 6
#: Largest share of a matrix that a sparse block holds; beyond it signs are cheaper.
MAX_SHARE: Final = 0.1
#: Powers of ten by which the loss falls with every bit a weight: a little less than the 6 dB of a uniform quantiser.
_DECADES_A_BIT: Final = 0.57
_LEAST_WORTH: Final = 1e-300


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse block of the largest weighted residuals.

    Attributes:
        share: of all elements.
    """

    share: float


@dataclass(frozen=True, slots=True)
class Signs:
    """A sign block and ``bits`` - 1 planes, whose codes are chosen together."""

    bits: int


Stage = Sparse | Signs
Design = tuple[Stage, ...]


def parse_design(text: str) -> Design:
    """A design from its notation: ``s0.3 b3 s0.5 b2`` is a sparse block of 0.3 %, 3 bits, 0.5 %, 2 bits.

    Raises:
        RecipeError: no such stage, or a number out of range.
    """
    stages: list[Stage] = []
    for word in text.split():
        try:
            stage: Stage = Sparse(float(word[1:]) / 100) if word[0] == "s" else Signs(int(word[1:]))
            known = word[0] in "sb"
        except ValueError:
            known = False
        good = known and (0 < stage.share <= MAX_SHARE if isinstance(stage, Sparse) else 1 <= stage.bits <= MAX_BITS)
        if not good:
            raise RecipeError(
                f"{word!r} is no stage of a design: s and a percentage up to {MAX_SHARE:.0%} for a sparse block, or b "
                f"and a number of bits from 1 to {MAX_BITS}, as in 's0.3 b3 s0.5 b2'"
            )
        stages.append(stage)
    if not stages:
        raise RecipeError("a design has at least one stage, as in 's0.3 b3 s0.5 b2'")
    return tuple(stages)


@dataclass(frozen=True, slots=True)
class Judge:
    """Weighs one curve of (bytes, loss) against another at several budgets at once.

    At the best size, every chain of a model is worth the same for the last byte that it gets. So a chain that ends
    where its loss + worth · bytes is smallest serves the budget whose marginal worth that is.

    Attributes:
        worths: marginal worth, in loss a byte, at each budget that counts.
        emphasis: from 0, losses count as they are, so that the smallest budgets decide, to 1, bytes count alike at
            every budget.
    """

    worths: tuple[float, ...]
    emphasis: float

    def cost(self, losses: Sequence[float], sizes: Sequence[int]) -> float:
        """Of a chain with these losses after 0, 1, 2, … blocks, of these bytes each; lower is better."""
        ends = [0, *accumulate(sizes)]
        total: float = sum(
            min(loss + worth * end for loss, end in zip(losses, ends, strict=True)) / worth**self.emphasis
            for worth in self.worths
        )
        return total


def worths_at(bits: Sequence[float], matrices: Sequence[tuple[int, float]]) -> tuple[float, ...]:
    """Marginal worth of a byte in a model packed at so many bits a weight on average, before anything is packed.

    Every matrix is taken to lose the same share of its loss with every bit; the bits then go to where they are worth
    most, as water fills a vessel (Cover and Thomas, Elements of Information Theory, §10.3.3).

    Args:
        bits: the budgets.
        matrices: for each matrix its number of elements, and the loss when it is all zeros.
    """
    slope = 8 * _DECADES_A_BIT * math.log(10)  # of the logarithm of the loss, in bytes an element
    # The worth of the first byte of each matrix; at a worth w below it, it gets log10(first / w) / decades bits.
    first = [(n, slope * loss / n) for n, loss in matrices if n > 0 and loss > 0]
    total = sum(n for n, _ in matrices)
    if not first:
        return tuple(_LEAST_WORTH for _ in bits)
    found = []
    for wanted in bits:
        low, high = -300.0, math.log10(max(f for _, f in first))
        for _ in range(100):
            middle = (low + high) / 2
            given = sum(n * max(math.log10(f) - middle, 0.0) for n, f in first) / _DECADES_A_BIT
            low, high = (middle, high) if given > wanted * total else (low, middle)
        found.append(max(10.0**high, _LEAST_WORTH))
    return tuple(found)
