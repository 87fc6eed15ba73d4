"""The chain of blocks that stands for one matrix."""

from dataclasses import dataclass, replace
from typing import Final

import torch

from .blocks import LowRankBlock, SignBlock, describe, require
from .sparse import SparseBlock

SCALE_TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)

Block = SignBlock | LowRankBlock | SparseBlock
"""One block of a chain. A plane is a sign block that shares its factors with the one before it."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Chain:
    """The blocks of one matrix, or of a group of its rows, with the scales that the blocks share.

    Attributes:
        rows: rows of the matrix, m.
        columns: columns of the matrix, N.
        row_scale: float32, float16 or bfloat16 [rows]; multiplies every row.
        col_scale: float32, float16 or bfloat16 [columns]; multiplies every column.
        blocks: the blocks that are added; none of them means a matrix of zeros.

    Raises:
        ValueError: a scale or a block has the wrong shape, dtype or device.
    """

    rows: int
    columns: int
    row_scale: torch.Tensor
    col_scale: torch.Tensor
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        require(
            min(self.rows, self.columns) >= 1, f"rows and columns must be positive, not {self.rows}, {self.columns}"
        )
        for name, tensor, length in (
            ("row_scale", self.row_scale, self.rows),
            ("col_scale", self.col_scale, self.columns),
        ):
            require(
                tensor.dtype in SCALE_TYPES and tensor.shape == (length,) and tensor.is_contiguous(),
                f"{name} must be contiguous float32, float16 or bfloat16 [{length}], not {describe(tensor)}",
            )
            require(tensor.device == self.device, f"{name} is on {tensor.device}, row_scale on {self.device}")
        for number, block in enumerate(self.blocks):
            require(
                (block.rows, block.columns) == (self.rows, self.columns),
                f"block {number} is {block.rows} by {block.columns}, the chain {self.rows} by {self.columns}",
            )
            require(block.device == self.device, f"block {number} is on {block.device}, the chain on {self.device}")

    @property
    def device(self) -> torch.device:
        """The device of all tensors of the chain."""
        return self.row_scale.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the chain; those that several blocks share are counted once."""
        tensors = [self.row_scale, self.col_scale, *(tensor for block in self.blocks for tensor in block.tensors)]
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    def add(self, kind: str, payload: torch.Tensor, rank: int = 0, factors: str = "") -> "Chain":
        """Return the chain with one level more, built over the bytes of its payload (see `SignBlock.from_bytes`).

        Args:
            kind: `"sign"`, `"plane"`, `"sparse"` or `"lowrank"`.
            payload: uint8, flat, on the device of the chain, and checked as the format demands.
            rank: columns of the factors, for the kinds that have them.
            factors: how they are stored, `"F16"` or `"F8_E4M3"`.

        Raises:
            ValueError: the kind is unknown, the payload has another length than its kind demands, or a plane does not
                come after a sign block or a plane.
        """
        block: Block
        if kind == "sign":
            block = SignBlock.from_bytes(payload, self.rows, self.columns, rank, factors)
        elif kind == "lowrank":
            block = LowRankBlock.from_bytes(payload, self.rows, self.columns, rank, factors)
        elif kind == "sparse":
            block = SparseBlock.from_bytes(payload, self.rows, self.columns)
        elif kind == "plane":
            last = self.blocks[-1] if self.blocks else None
            if not isinstance(last, SignBlock):
                raise ValueError("a plane must come after a sign block or another plane")
            block = last.plane(payload)
        else:
            raise ValueError(f"unknown kind of block {kind!r}; known: sign, plane, sparse, lowrank")
        return replace(self, blocks=(*self.blocks, block))

    def select(self, ids: torch.Tensor) -> "Chain":
        """Return the chain of the rows `ids` (int64 [n], n at least 1); V and the scales over columns are shared."""
        blocks = tuple(block.select(ids) for block in self.blocks)
        return Chain(len(ids), self.columns, self.row_scale[ids], self.col_scale, blocks)
