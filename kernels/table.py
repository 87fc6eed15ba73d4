"""What the GPU reads of a matrix: its blocks as rows of a table in device memory, with their number.

A model grows and shrinks by writing rows and a number: kernels, launches and captured CUDA graphs stay as they are.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final
from weakref import WeakKeyDictionary

import torch

from .blocks import LowRankBlock, SignBlock, require
from .chain import Block, Chain
from .devices import has_bit_products
from .hopper_table import HopperTable
from .sparse import SparseBlock

FIELD_NAMES: Final = (
    *("KIND", "FIRST", "U", "V", "SCALE", "STRIDE", "RANK", "WIDTH", "GAIN"),  # `scaled` says what these are
    # For `hopper`: whether all signs are +1; where the largest of V are; the first segment of the chain with this V.
    *("PLAIN", "V_MAX", "SHARED"),
)
"""Of a row."""
FIELDS: Final = len(FIELD_NAMES)
_SIGN16, SIGN8, SPARSE = 1, 2, 3
RANKS: Final = 16
"""Most columns of the factors that one segment takes; a block of a larger rank is several segments."""
_ALIGN: Final = 16
V_COLUMNS: Final = 256
"""Columns of the matrix of which the largest of V is known."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a table has room for.

    Attributes:
        segments: of a chain: one for a sparse block, one for every 16 columns of the factors of another.
        max_rank: the largest rank of a block.
        sparse: whether there may be sparse blocks.
    """

    segments: int = 1
    max_rank: int = 1
    sparse: bool = False

    @classmethod
    def of(cls, chains: Iterable[Chain]) -> "Room":
        """Just enough for some chains as they are."""
        chains = list(chains)
        blocks = [block for chain in chains for block in chain.blocks]
        return cls(
            max([1, *(sum(segments(_rank(b)) for b in chain.blocks) for chain in chains)]),
            max([1, *map(_rank, blocks)]),
            any(isinstance(block, SparseBlock) for block in blocks),
        )


def segments(rank: int) -> int:
    """Return how many segments of a table a block of a rank takes; a sparse block counts as one of rank 1."""
    return -(-rank // RANKS)


class Table:
    """The chains of one matrix, each for so many rows as the others, on a device.

    Attributes:
        chains: as they are now.
        rows: of the matrix.
        columns: of the matrix.
        n_chains: chains that the rows are shared out to.
        chain_rows: rows of a chain; the last one may have fewer.
        capacity: segments that a chain may have.
        ranks: columns of the factors that a segment takes: 8 or 16.
        wide: whether blocks may have more of them than a segment.
        sparse: whether there are, or may be, sparse blocks.
        row_scale: [rows].
        col_scale: [columns], or [chains, columns].
        rows_of_table: int64 [chains, capacity, FIELDS].
        counts: int32 [chains, 2], segments of each, and how many of them have signs; these are first.
        hopper: what more `hopper` is told, where it is for the device and the rows of signs, else None.
        align: what the address of every row of signs is a multiple of.

    Args:
        chains: one, or several on the same columns.
        room: for what may come; by default just enough for what is there.
        row_scale: [rows] of all chains, if there are several.
        col_scale: [columns] or [chains, columns], if there are several.

    Raises:
        ValueError: chains do not fit together, or into the room.
    """

    def __init__(
        self,
        chains: Chain | Sequence[Chain],
        room: Room | None = None,
        *,
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
    ) -> None:
        chains = [chains] if isinstance(chains, Chain) else list(chains)
        require(len(chains) > 0, "a table needs a chain")
        first, last = chains[0], chains[-1]
        require(
            all((c.rows, c.columns) == (first.rows, first.columns) for c in chains[:-1])
            and last.columns == first.columns
            and last.rows <= first.rows,
            "the chains of a table have as many columns, and but for the last as many rows, as each other",
        )
        require(
            len(chains) == 1 or (row_scale is not None and col_scale is not None),
            "a table of several chains needs the scales of all of them",
        )
        self.row_scale = first.row_scale if row_scale is None else row_scale
        self.col_scale = first.col_scale if col_scale is None else col_scale
        self.rows, self.columns = sum(c.rows for c in chains), first.columns
        self.n_chains, self.chain_rows = len(chains), first.rows
        self.row_bytes = (self.columns + 7) // 8
        self.col_stride = self.columns if self.col_scale.ndim == 2 else 0
        self.align = gcd(self.row_bytes, _ALIGN)
        room = Room.of(chains) if room is None else room
        self.ranks, self.wide = 8 if room.max_rank <= 8 else RANKS, room.max_rank > RANKS
        # Segments of 8 columns, where all factors are as narrow, are as many as those of 16.
        self.capacity, self.sparse = max(1, room.segments), room.sparse
        device = first.device
        with torch.inference_mode(False):  # an inference tensor could not be changed outside of that mode
            self.rows_of_table = torch.zeros(self.n_chains, self.capacity, FIELDS, dtype=torch.int64, device=device)
            self.counts = torch.zeros(self.n_chains, 2, dtype=torch.int32, device=device)
            self.hopper = HopperTable(self) if has_bit_products(device) and self.row_bytes % _ALIGN == 0 else None
        self._ones: torch.Tensor | None = None
        self._held: list[list[torch.Tensor]] = [[] for _ in chains]
        self._largest: list[dict[int, tuple[torch.Tensor, list[torch.Tensor]]]] = [{} for _ in chains]
        self._chains: list[Chain | None] = [None] * len(chains)
        for number, chain in enumerate(chains):
            self.update(chain, number)

    @property
    def chains(self) -> list[Chain]:
        """The chains as they are now."""
        return [chain for chain in self._chains if chain is not None]

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.counts.device

    def update(self, chain: Chain, number: int = 0) -> None:
        """Put another state of a chain in the place of what was there; kernels that are launched later see it.

        Args:
            chain: of the same rows, columns, scales and device.
            number: of the chain, from 0.

        Raises:
            ValueError: the chain is another matrix's, has more segments than the capacity, or a larger rank.
        """
        expected = min(self.chain_rows, self.rows - number * self.chain_rows)
        require(
            (chain.rows, chain.columns, chain.device) == (expected, self.columns, self.device),
            f"chain {number} is {chain.rows} by {chain.columns} on {chain.device}, "
            f"not {expected} by {self.columns} on {self.device}",
        )
        held: list[torch.Tensor] = []
        lines = self._ordered([line for block in chain.blocks for line in self._lines(block, number, held)])
        require(len(lines) <= self.capacity, f"{len(lines)} segments are more than the table holds, {self.capacity}")
        count = torch.tensor([len(lines), sum(line[0] != SPARSE for line in lines)], dtype=torch.int32)
        if lines:
            self.rows_of_table[number, : len(lines)].copy_(torch.tensor(lines, dtype=torch.int64))
        self.counts[number].copy_(count)
        # How many segments share each V, one after the other.
        runs = tuple(Counter(line[-1] for line in lines if line[0] != SPARSE).values())
        if self.hopper is not None:
            signs = [(line[1], 1 if line[5] == 0 else chain.rows) if line[0] != SPARSE else None for line in lines]
            self.hopper.update(self, number, chain.rows, signs, runs)
        self._held[number], self._chains[number] = held, chain
        factors = {id(block.v) for block in chain.blocks if not isinstance(block, SparseBlock)}
        self._largest[number] = {key: known for key, known in self._largest[number].items() if key in factors}

    @staticmethod
    def _ordered(lines: list[list[int]]) -> list[list[int]]:
        """Segments with signs first, those that share V side by side, each with the place of the first of these."""
        first: dict[int, int] = {}
        for place, line in enumerate(lines):
            first.setdefault(line[3], place)
        lines = sorted(lines, key=lambda line: (line[0] == SPARSE, first[line[3]]))
        place_of: dict[int, int] = {}
        return [[*line, place_of.setdefault(line[3], place)] for place, line in enumerate(lines)]

    def _lines(self, block: Block, number: int, held: list[torch.Tensor]) -> list[list[int]]:
        """The rows of the table for a block, but for the last field."""
        held.extend(block.tensors)
        if isinstance(block, SparseBlock):
            require(self.sparse, "the table was made for chains without sparse blocks")
            tensors = (block.starts, block.offsets, block.indices, block.scale, block.values)
            return [[SPARSE, *(t.data_ptr() for t in tensors), block.entries, block.offsets.element_size(), 0, 0, 0]]
        require(block.rank <= self.ranks or self.wide, f"the table was made for ranks up to {self.ranks}")
        plain = isinstance(block, LowRankBlock)
        if isinstance(block, LowRankBlock):
            # Signs that are all +1: one row of them does for every row.
            signs, stride, gain = self._all_ones(), 0, 1.0
        else:
            signs, stride, gain = block.signs, self.row_bytes, block.gain
            if signs.data_ptr() % self.align:
                signs = signs.clone()
                held.append(signs)
        kind = SIGN8 if block.u.dtype == torch.float8_e4m3fn else _SIGN16
        bits = struct.unpack("<i", struct.pack("<f", gain))[0]
        largest = self._largest_of(block, number) if self.hopper is not None else []
        lines: list[list[int]] = []
        for start in range(0, block.rank, self.ranks):
            u, v = (t.data_ptr() + start * t.element_size() for t in (block.u, block.v))
            scale = 0 if block.scale is None else block.scale.data_ptr() + 4 * start
            width = min(self.ranks, block.rank - start)
            v_max = largest[len(lines)].data_ptr() if largest else 0
            lines.append([kind, signs.data_ptr(), u, v, scale, stride, block.rank, width, bits, int(plain), v_max])
        return lines

    def _largest_of(self, block: SignBlock | LowRankBlock, number: int) -> list[torch.Tensor]:
        """The largest absolute values of V of each V_COLUMNS columns: float32 [groups, ranks] for each segment."""
        known = self._largest[number].get(id(block.v))
        if known is None:
            groups = -(-self.columns // V_COLUMNS)
            made = []
            for start in range(0, block.rank, self.ranks):
                v = block.v[:, start : start + self.ranks].float().abs()
                padded = v.new_zeros(groups * V_COLUMNS, self.ranks)
                padded[: self.columns, : v.shape[1]] = v
                made.append(padded.view(groups, V_COLUMNS, self.ranks).amax(1).contiguous())
            # With V itself, so that its number is not another's while this is kept.
            known = self._largest[number][id(block.v)] = (block.v, made)
        return known[1]

    def _all_ones(self) -> torch.Tensor:
        if self._ones is None:
            self._ones = torch.full((self.row_bytes,), 255, dtype=torch.uint8, device=self.device)
        return self._ones


def _rank(block: Block) -> int:
    return 1 if isinstance(block, SparseBlock) else block.rank


_TABLES: "WeakKeyDictionary[Chain, Table]" = WeakKeyDictionary()


def table_of(chain: Chain) -> Table:
    """Return the table of a chain, made at the first call and kept as long as the chain."""
    table = _TABLES.get(chain)
    if table is None:
        table = Table(chain)
        table._chains = [None]  # it must not keep its own key
        _TABLES[chain] = table
    return table
