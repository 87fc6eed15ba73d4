"""A block of few entries: what the other blocks of a chain leave furthest off, by position and value."""

from dataclasses import dataclass
from typing import Final

import torch

from .blocks import describe, raw_type, require, sections, typed

TILE: Final = 64
"""Rows that share one 32-bit start."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseBlock:
    """Entries of a matrix, row after row: scale · values[e] at (row of e, indices[e]), zero elsewhere (spec §6.6).

    The kernels use the entries as addresses and do not check them: they come from a payload that passed the checks of
    the format. All tensors are contiguous and lie on one device.

    Attributes:
        columns: columns of the block, at most 65536.
        scale: float32 [1].
        starts: int32 [ceil(rows / 64)], the first entry of each 64 rows.
        offsets: [rows]; row i begins at entry starts[i // 64] + offsets[i] and ends where row i + 1 begins, the last
            one with the last entry. int16 that holds an unsigned number, or int32.
        indices: int16 [n] that holds an unsigned number, the column of each entry; no column twice in a row.
        values: float8_e4m3fn [n].

    Raises:
        ValueError: a tensor has the wrong shape, dtype, layout or device.
    """

    columns: int
    scale: torch.Tensor
    starts: torch.Tensor
    offsets: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        require(1 <= self.columns <= 1 << 16, f"columns must be 1 to 65536, not {self.columns}")
        require(self.offsets.ndim == 1 and self.rows >= 1, f"offsets must be [rows], not {list(self.offsets.shape)}")
        require(self.entries < 1 << 31, f"{self.entries} entries are more than 32-bit numbers reach")
        shapes = {
            "scale": (self.scale, (torch.float32,), 1),
            "starts": (self.starts, (torch.int32,), -(-self.rows // TILE)),
            "offsets": (self.offsets, (torch.int16, torch.int32), self.rows),
            "indices": (self.indices, (torch.int16,), self.entries),
            "values": (self.values, (torch.float8_e4m3fn,), self.entries),
        }
        for name, (tensor, dtypes, length) in shapes.items():
            require(
                tensor.dtype in dtypes and tensor.shape == (length,) and tensor.is_contiguous(),
                f"{name} must be contiguous {' or '.join(map(str, dtypes))} [{length}], not {describe(tensor)}",
            )
            require(tensor.device == self.device, f"{name} is on {tensor.device}, not {self.device}")

    @property
    def device(self) -> torch.device:
        """The device of all tensors of the block."""
        return self.offsets.device

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return self.offsets.shape[0]

    @property
    def entries(self) -> int:
        """How many elements are not zero by position."""
        return self.values.numel()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that hold the block."""
        return [self.scale, self.starts, self.offsets, self.indices, self.values]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of the block."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @classmethod
    def from_bytes(cls, payload: torch.Tensor, rows: int, columns: int) -> "SparseBlock":
        """Build a block over the bytes of a payload, without copying what is aligned (see `SignBlock.from_bytes`).

        Args:
            payload: uint8, contiguous: scale, starts, offsets, columns and values without gaps, little-endian.
            rows: rows of the block.
            columns: columns of the block.

        Raises:
            ValueError: the payload is not uint8, not contiguous, or of a length that no number of entries makes.
        """
        require(rows >= 1, f"rows must be positive, not {rows}")
        fixed = (4, 4 * -(-rows // TILE), 2 * rows)
        count = max(0, payload.numel() - sum(fixed)) // 3
        scale, starts, offsets, indices, values = sections(payload, (*fixed, 2 * count, count))
        return cls(
            columns,
            typed(scale, torch.float32),
            typed(starts, torch.int32),
            typed(offsets, torch.int16),
            typed(indices, torch.int16),
            values.view(torch.float8_e4m3fn),
        )

    def row_starts(self) -> torch.Tensor:
        """Return where each row begins, and the number of entries at the end: int64 [rows + 1]."""
        begin = self.starts.long().repeat_interleave(TILE)[: self.rows] + unsigned(self.offsets)
        return torch.cat([begin, begin.new_full((1,), self.entries)])

    def select(self, ids: torch.Tensor) -> "SparseBlock":
        """Return the block of the rows `ids` (int64 [n], n at least 1), of copies of their entries."""
        starts = self.row_starts()
        first, count = starts[:-1][ids], starts.diff()[ids]
        end = count.cumsum(0)
        # Entry e of the result is entry e + (first − begin) of this block, for the row that it lies in.
        shift = (first - (end - count)).repeat_interleave(count)
        taken = torch.arange(len(shift), device=self.device) + shift
        # Rows may be taken many times over, so 16 bits need not do.
        offsets = (end - count).int()
        tiles = torch.zeros(-(-len(ids) // TILE), dtype=torch.int32, device=self.device)
        values = self.values.view(raw_type(self.values))[taken].view(self.values.dtype)
        return SparseBlock(self.columns, self.scale, tiles, offsets, self.indices[taken], values)


def unsigned(numbers: torch.Tensor) -> torch.Tensor:
    """Return int16 that holds unsigned numbers, or int32, as int64."""
    return numbers.long() & 0xFFFF if numbers.dtype == torch.int16 else numbers.long()
