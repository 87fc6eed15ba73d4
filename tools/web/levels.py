"""Which layers hold how many levels: a grid of layers and projections, for any prefix of a file."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitstack.tools.console import printable, shorten
from bsformat import Container

Floats = npt.NDArray[np.float64]

#: Of a file that names more of them than any model has, the rest is left out of the picture.
MOST_LAYERS: Final = 256
MOST_PROJECTIONS: Final = 48
_NUMBER: Final = re.compile(r"^(.*?)\.(\d{1,6})\.(.+)$")


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels that are resident, cell by cell.

    Attributes:
        layers: numbers of the layers, ascending: the columns.
        projections: names of what is packed in a layer: the rows.
        held: [projections, layers] levels held by a chain, the mean where a cell has several; NaN: nothing is there.
        most: the same with all blocks of the file.
        others: name, levels held and levels at most of what is packed outside of layers, as embeddings are.
        left_out: packed tensors that the picture has no room for.
    """

    layers: tuple[int, ...]
    projections: tuple[str, ...]
    held: Floats
    most: Floats
    others: tuple[tuple[str, float, float], ...]
    left_out: int


class Levels:
    """Counts the levels of a file; reading the names costs one pass over its tensors, each count one over its blocks.

    A layer is the first number in the name of a tensor, a projection the rest of the name without ``.weight``; further
    numbers in it (experts) are one projection.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        cells: dict[tuple[str, int], list[int]] = {}
        others: dict[str, list[int]] = {}
        for tensor in container.model_tensors.values():
            if not tensor.packed:
                continue
            chains = range(tensor.first_chain, tensor.first_chain + tensor.n_chains)
            name = printable(tensor.name).removesuffix(".weight")
            if found := _NUMBER.match(name):
                place = _projection(found[1], found[3]), int(found[2])
                cells.setdefault(place, []).extend(chains)
            else:
                others.setdefault(shorten(name, 40), []).extend(chains)
        self._layers = sorted({layer for _, layer in cells})[:MOST_LAYERS]
        self._projections = list(dict.fromkeys(name for name, _ in cells))[:MOST_PROJECTIONS]
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self._projections, self._layers))
        self._cells = {
            (rows[name], columns[layer]): np.array(chains)
            for (name, layer), chains in cells.items()
            if name in rows and layer in columns
        }
        self._others = {name: np.array(others[name]) for name in list(others)[:MOST_PROJECTIONS]}
        self._left_out = len(cells) + len(others) - len(self._cells) - len(self._others)
        self._most = self._counts(len(container))
        #: The most levels of a chain of the file.
        self.most = int(max((self._most[chains].max() for chains in self._packed()), default=0))

    def _packed(self) -> list[npt.NDArray[np.int64]]:
        return [*self._cells.values(), *self._others.values()]

    def _counts(self, n_blocks: int) -> npt.NDArray[np.int64]:
        chains = self._container.index.chain[:n_blocks].astype(np.int64)
        return np.bincount(chains, minlength=self._container.metadata.n_chains)

    def grid(self, n_blocks: int) -> Grid:
        """What is held with the first ``n_blocks`` blocks resident."""
        counts = self._counts(n_blocks)
        held, most = (np.full((len(self._projections), len(self._layers)), np.nan) for _ in range(2))
        for place, chains in self._cells.items():
            held[place], most[place] = counts[chains].mean(), self._most[chains].mean()
        others = tuple(
            (name, float(counts[chains].mean()), float(self._most[chains].mean()))
            for name, chains in self._others.items()
        )
        return Grid(tuple(self._layers), tuple(self._projections), held, most, others, self._left_out)


def _projection(before: str, after: str) -> str:
    """A name for all layers: ``model.layers`` and ``mlp.down_proj`` are ``mlp.down_proj``, an encoder's say so."""
    name = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", after)
    stack = next((part for part in before.split(".") if part in ("encoder", "decoder")), None)
    return shorten(f"{stack} {name}" if stack else name, 40)
