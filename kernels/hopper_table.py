"""What `hopper` is told of a matrix beside its table: where signs are, who does what, and what is known of each row."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import torch

from .devices import multiprocessors
from .running_sums import reserve_sums
from .shares import FIELDS, Chain, shares

if TYPE_CHECKING:
    from .hopper import Launch
    from .table import Table
    from .together import Together

SLICE: Final = 2048
"""Columns of a slice, and rows of a tile, of which `hopper` takes one of each at a time."""
TILE: Final = 64
MAP_BYTES: Final = 128
"""Of what describes the signs of a segment to the copy engine of a GPU."""
_FACTORS: Final = 32
"""Columns of factors, of all tokens together, whose Z finds room in shared memory."""


class HopperTable:
    """Tensors on the device of a table, whose addresses stay.

    Attributes:
        few: tokens that one launch takes.
        maps: uint8 [chains, capacity, MAP_BYTES], what the copy engine is told of the signs of each segment.
        shares: int32 [programs + 1, 8], what each program does.
        work: tiles and segments of each chain, as they are shared out.
        together: with what others it is multiplied, which want to know when that changes.
        launch: what `hopper` keeps of it.
        row_values: float32 [chains, rows of whole tiles, 2], the exponent of each row's reach, as int32, and its scale.
        col_largest: float32 [chains], the largest |col_scale| of each.

    Args:
        table: with all that does not change.
    """

    def __init__(self, table: "Table") -> None:
        n_chains, device = table.n_chains, table.counts.device
        self.few = _FACTORS // table.ranks
        self.maps = torch.zeros(n_chains, table.capacity, MAP_BYTES, dtype=torch.uint8, device=device)
        self.shares = new_shares(device)
        tile_rows = -(-table.chain_rows // TILE) * TILE
        self.row_values = torch.zeros(n_chains, tile_rows, 2, dtype=torch.float32, device=device)
        largest = table.col_scale.view(-1, table.columns).float().abs().amax(1)
        self.col_largest = largest.expand(n_chains).contiguous()
        self.work: tuple[Chain, ...] = ()
        self.together: WeakSet[Together] = WeakSet()
        self.launch: Launch | None = None
        self._runs: list[tuple[int, ...]] = [()] * n_chains
        reserve_sums(self.few * table.rows, device)

    def update(
        self, table: "Table", number: int, rows: int, signs: Sequence[tuple[int, int] | None], runs: tuple[int, ...]
    ) -> None:
        """Follow a change of the table, which has been written.

        Args:
            table: as before.
            number: of the chain that changed. rows: of it.
            signs: of each of its segments: the address, and how many rows are there; None for single entries.
            runs: how many segments share each V, one after the other.

        Raises:
            DriverError: the driver refuses.
        """
        from .cuda_driver import describe_bytes
        from .hopper_reach import write_row_values

        if signs:
            row_bytes = table.row_bytes
            told = b"".join(bytes(MAP_BYTES) if s is None else describe_bytes(s[0], row_bytes, s[1]) for s in signs)
            made = torch.frombuffer(bytearray(told), dtype=torch.uint8).view(-1, MAP_BYTES)
            self.maps[number, : len(signs)].copy_(made)
        self._runs[number] = runs
        ends = [min(table.chain_rows, table.rows - n * table.chain_rows) for n in range(table.n_chains)]
        tiles = [-(-end // TILE) for end in ends]
        self.work = tuple(zip(tiles, self._runs, strict=True))
        share_out(self.work, table.columns, self.shares)
        for together in self.together:
            together.share_out()
        write_row_values(table, self, number, rows)


def new_shares(device: torch.device) -> torch.Tensor:
    """Room for what each program of a device does."""
    return torch.zeros(multiprocessors(device) + 1, FIELDS, dtype=torch.int32, device=device)


def share_out(work: tuple[Chain, ...], columns: int, to: torch.Tensor) -> None:
    """Write what each program does of some work to what `new_shares` made."""
    to.copy_(_shares_of(work, -(-columns // SLICE), len(to) - 1))


@lru_cache(maxsize=4096)
def _shares_of(*arguments: Any) -> torch.Tensor:
    # Layers are alike: most of them find theirs made.
    return torch.tensor(shares(*arguments), dtype=torch.int32)
