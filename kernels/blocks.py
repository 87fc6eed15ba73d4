"""What the kernels compute on: sign blocks, and the chain of blocks that stands for one matrix."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch

FACTOR_TYPES: Final = {"F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
SCALE_TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _factor_type(factors: str) -> torch.dtype:
    if factors not in FACTOR_TYPES:
        raise ValueError(f"unknown factor type {factors!r}; known: {', '.join(FACTOR_TYPES)}")
    return FACTOR_TYPES[factors]


def _section_bytes(rows: int, columns: int, rank: int, factors: str) -> tuple[int, int, int, int]:
    """Return the bytes of the four sections of a payload: signs, U, V, scale."""
    dtype = _factor_type(factors)
    _require(min(rows, columns, rank) >= 1, f"rows, columns and rank must be positive, not {rows}, {columns}, {rank}")
    scale = 4 * rank if dtype == torch.float8_e4m3fn else 0
    return rows * ((columns + 7) // 8), rows * rank * dtype.itemsize, columns * rank * dtype.itemsize, scale


def payload_bytes(rows: int, columns: int, rank: int, factors: str) -> int:
    """Return the number of bytes of a stored sign block.

    Args:
        rows: rows of the block, at least 1.
        columns: columns of the block, at least 1.
        rank: columns of the factors U and V, at least 1.
        factors: how U and V are stored, `"F16"` or `"F8_E4M3"` (which is followed by `rank` float32 scales).

    Raises:
        ValueError: a size is not positive, or the factor type is unknown.
    """
    return sum(_section_bytes(rows, columns, rank, factors))


@dataclass(frozen=True, slots=True, eq=False)
class SignBlock:
    """Signs times a low-rank magnitude: sign[i, j] · Σ_k scale[k] · U[i, k] · V[j, k].

    The factors of BitStack, arXiv 2410.23918, section 3. All tensors are contiguous and lie on one device.

    Attributes:
        signs: uint8 [rows, ceil(columns / 8)]; bit j % 8 (least significant first) of byte j // 8 is column j, 1 for +1
            and 0 for -1. The bits past the last column are ignored.
        u: float16 or float8_e4m3fn [rows, rank].
        v: the same dtype as `u`, [columns, rank].
        scale: float32 [rank]; None stands for ones and is allowed for float16 factors only.

    Raises:
        ValueError: a tensor has the wrong shape, dtype, layout or device.
    """

    signs: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("signs", self.signs), ("u", self.u), ("v", self.v)):
            _require(tensor.ndim == 2, f"{name} must have two dimensions, not {tensor.ndim}")
            _require(tensor.numel() > 0, f"{name} is empty: {list(tensor.shape)}")
            _require(tensor.is_contiguous(), f"{name} must be contiguous")
            _require(tensor.device == self.signs.device, f"{name} is on {tensor.device}, signs on {self.signs.device}")
        _require(self.u.dtype in FACTOR_TYPES.values(), f"u must be float16 or float8_e4m3fn, not {self.u.dtype}")
        _require(self.v.dtype == self.u.dtype, f"u and v must have one dtype, not {self.u.dtype} and {self.v.dtype}")
        _require(self.v.shape[1] == self.rank, f"u has rank {self.rank}, v has rank {self.v.shape[1]}")
        expected = (self.u.shape[0], (self.columns + 7) // 8)
        _require(
            self.signs.dtype == torch.uint8 and self.signs.shape == expected,
            f"signs must be torch.uint8 {list(expected)}, not {_describe(self.signs)}",
        )
        if self.scale is None:
            _require(self.u.dtype == torch.float16, f"{self.u.dtype} factors need a scale")
            return
        _require(
            self.scale.dtype == torch.float32 and self.scale.shape == (self.rank,) and self.scale.is_contiguous(),
            f"scale must be contiguous torch.float32 [{self.rank}], not {_describe(self.scale)}",
        )
        _require(self.scale.device == self.signs.device, f"scale is on {self.scale.device}, not {self.signs.device}")

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return self.signs.shape[0]

    @property
    def columns(self) -> int:
        """Columns of the block."""
        return self.v.shape[0]

    @property
    def rank(self) -> int:
        """Columns of the factors U and V."""
        return self.u.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of the block."""
        tensors = [self.signs, self.u, self.v] + ([] if self.scale is None else [self.scale])
        return sum(tensor.nbytes for tensor in tensors)

    @classmethod
    def from_bytes(cls, payload: torch.Tensor, rows: int, columns: int, rank: int, factors: str) -> "SignBlock":
        """Build a block over the bytes of a payload, without copying what is aligned.

        The payload holds, without gaps: the signs, U row-major, V row-major, and for `"F8_E4M3"` the `rank` float32
        scales; all little-endian. Sections whose address is a multiple of their item size become views, which keep the
        payload alive; the others are copied, section by section. So a caller who drops its payload holds at most the
        payload and those copies: allocate the payload at an even address (a multiple of 4 for exact fit) to have none.

        Args:
            payload: uint8 [payload_bytes(rows, columns, rank, factors)], contiguous, on any device.
            rows: rows of the block.
            columns: columns of the block.
            rank: columns of the factors.
            factors: `"F16"` or `"F8_E4M3"`.

        Raises:
            ValueError: the payload is not uint8, not contiguous, or not exactly as long as the sizes demand.
        """
        sizes = _section_bytes(rows, columns, rank, factors)
        _require(
            payload.dtype == torch.uint8 and payload.shape == (sum(sizes),) and payload.is_contiguous(),
            f"payload must be contiguous torch.uint8 [{sum(sizes)}], not {_describe(payload)}",
        )
        dtype = _factor_type(factors)
        signs, u, v, scale = (payload[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))
        return cls(
            signs.view(rows, (columns + 7) // 8),
            _typed(u, dtype).view(rows, rank),
            _typed(v, dtype).view(columns, rank),
            _typed(scale, torch.float32) if sizes[3] else None,
        )


def _typed(section: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read bytes as `dtype`: a view where the address allows it, else a view of a copy."""
    aligned = section.storage_offset() % dtype.itemsize == 0 and section.data_ptr() % dtype.itemsize == 0
    return (section if aligned else section.clone()).view(dtype)


@dataclass(frozen=True, slots=True, eq=False)
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
    blocks: tuple[SignBlock, ...] = ()

    def __post_init__(self) -> None:
        _require(
            min(self.rows, self.columns) >= 1, f"rows and columns must be positive, not {self.rows}, {self.columns}"
        )
        for name, tensor, length in (
            ("row_scale", self.row_scale, self.rows),
            ("col_scale", self.col_scale, self.columns),
        ):
            _require(
                tensor.dtype in SCALE_TYPES and tensor.shape == (length,) and tensor.is_contiguous(),
                f"{name} must be contiguous float32, float16 or bfloat16 [{length}], not {_describe(tensor)}",
            )
            _require(tensor.device == self.device, f"{name} is on {tensor.device}, row_scale on {self.device}")
        for number, block in enumerate(self.blocks):
            _require(
                (block.rows, block.columns) == (self.rows, self.columns),
                f"block {number} is {block.rows} by {block.columns}, the chain {self.rows} by {self.columns}",
            )
            _require(
                block.signs.device == self.device,
                f"block {number} is on {block.signs.device}, the chain on {self.device}",
            )

    @property
    def device(self) -> torch.device:
        """The device of all tensors of the chain."""
        return self.row_scale.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the chain."""
        return self.row_scale.nbytes + self.col_scale.nbytes + sum(block.nbytes for block in self.blocks)

    def select(self, ids: torch.Tensor) -> "Chain":
        """Return the chain of the rows `ids` (int64 [n], n at least 1); V and the scales over columns are shared."""
        blocks = tuple(
            SignBlock(block.signs[ids], block.u.view(_raw(block.u))[ids].view(block.u.dtype), block.v, block.scale)
            for block in self.blocks
        )
        return Chain(len(ids), self.columns, self.row_scale[ids], self.col_scale, blocks)


def _raw(tensor: torch.Tensor) -> torch.dtype:
    # Not every device gathers float8, every one gathers its bytes.
    return torch.uint8 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype
