"""What the kernels compute on, where every element counts: blocks of signs and factors, or of factors alone."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch

FACTOR_TYPES: Final = {"F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}


def require(condition: bool, message: str) -> None:
    """Raise ValueError with a message unless a condition holds."""
    if not condition:
        raise ValueError(message)


def describe(tensor: torch.Tensor) -> str:
    """Return dtype, shape and device of a tensor, for messages."""
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _factor_type(factors: str) -> torch.dtype:
    if factors not in FACTOR_TYPES:
        raise ValueError(f"unknown factor type {factors!r}; known: {', '.join(FACTOR_TYPES)}")
    return FACTOR_TYPES[factors]


def _section_bytes(rows: int, columns: int, rank: int, factors: str) -> tuple[int, int, int, int]:
    """Return the bytes of the four sections of a sign block's payload: signs, U, V, scale."""
    dtype = _factor_type(factors)
    require(min(rows, columns, rank) >= 1, f"rows, columns and rank must be positive, not {rows}, {columns}, {rank}")
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


def sections(payload: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the consecutive sections of a payload as views, by their sizes in bytes.

    Raises:
        ValueError: the payload is not uint8, not contiguous, or not exactly as long as its sections.
    """
    require(
        payload.dtype == torch.uint8 and payload.shape == (sum(sizes),) and payload.is_contiguous(),
        f"payload must be contiguous torch.uint8 [{sum(sizes)}], not {describe(payload)}",
    )
    return [payload[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def typed(section: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read bytes as `dtype`: a view where the address allows it, else a view of a copy."""
    aligned = section.storage_offset() % dtype.itemsize == 0 and section.data_ptr() % dtype.itemsize == 0
    return (section if aligned else section.clone()).view(dtype)


def raw_type(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype to index or copy a tensor as: not every device gathers float8, every one gathers its bytes."""
    return torch.uint8 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype


def _check_matrix(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    require(tensor.ndim == 2, f"{name} must have two dimensions, not {tensor.ndim}")
    require(tensor.numel() > 0, f"{name} is empty: {list(tensor.shape)}")
    require(tensor.is_contiguous(), f"{name} must be contiguous")
    require(tensor.device == device, f"{name} is on {tensor.device}, not {device}")


def _check_factors(u: torch.Tensor, v: torch.Tensor, scale: torch.Tensor | None, device: torch.device) -> None:
    _check_matrix("u", u, device)
    _check_matrix("v", v, device)
    require(u.dtype in FACTOR_TYPES.values(), f"u must be float16 or float8_e4m3fn, not {u.dtype}")
    require(v.dtype == u.dtype, f"u and v must have one dtype, not {u.dtype} and {v.dtype}")
    rank = u.shape[1]
    require(v.shape[1] == rank, f"u has rank {rank}, v has rank {v.shape[1]}")
    if scale is None:
        require(u.dtype == torch.float16, f"{u.dtype} factors need a scale")
        return
    require(
        scale.dtype == torch.float32 and scale.shape == (rank,) and scale.is_contiguous(),
        f"scale must be contiguous torch.float32 [{rank}], not {describe(scale)}",
    )
    require(scale.device == device, f"scale is on {scale.device}, not {device}")


class _Factored:
    """What every block with factors has."""

    __slots__ = ()

    u: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None

    @property
    def device(self) -> torch.device:
        """The device of all tensors of the block."""
        return self.u.device

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return self.u.shape[0]

    @property
    def columns(self) -> int:
        """Columns of the block."""
        return self.v.shape[0]

    @property
    def rank(self) -> int:
        """Columns of the factors U and V."""
        return self.u.shape[1]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that hold the block."""
        return [self.u, self.v] + ([] if self.scale is None else [self.scale])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of the block."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankBlock(_Factored):
    """A low-rank matrix: Σ_k scale[k] · U[i, k] · V[j, k].

    All tensors are contiguous and lie on one device.

    Attributes:
        u: float16 or float8_e4m3fn [rows, rank].
        v: the same dtype as `u`, [columns, rank].
        scale: float32 [rank]; None stands for ones and is allowed for float16 factors only.

    Raises:
        ValueError: a tensor has the wrong shape, dtype, layout or device.
    """

    u: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_factors(self.u, self.v, self.scale, self.device)

    @classmethod
    def from_bytes(cls, payload: torch.Tensor, rows: int, columns: int, rank: int, factors: str) -> "LowRankBlock":
        """Build a block over the bytes of a payload: U, V and the scales as in a sign block, without the signs.

        Args and errors are those of `SignBlock.from_bytes`.
        """
        sizes = _section_bytes(rows, columns, rank, factors)
        u, v, scale = sections(payload, sizes[1:])
        dtype = _factor_type(factors)
        return cls(
            typed(u, dtype).view(rows, rank),
            typed(v, dtype).view(columns, rank),
            typed(scale, torch.float32) if sizes[3] else None,
        )

    def select(self, ids: torch.Tensor) -> "LowRankBlock":
        """Return the block of the rows `ids` (int64 [n]); V and the scale are shared."""
        return LowRankBlock(self.u.view(raw_type(self.u))[ids].view(self.u.dtype), self.v, self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class SignBlock(_Factored):
    """Signs times a low-rank magnitude: gain · sign[i, j] · Σ_k scale[k] · U[i, k] · V[j, k].

    The factors of BitStack, arXiv 2410.23918, section 3. All tensors are contiguous and lie on one device.

    Attributes:
        signs: uint8 [rows, ceil(columns / 8)]; bit j % 8 (least significant first) of byte j // 8 is column j, 1 for +1
            and 0 for -1. The bits past the last column are ignored.
        u: float16 or float8_e4m3fn [rows, rank].
        v: the same dtype as `u`, [columns, rank].
        scale: float32 [rank]; None stands for ones and is allowed for float16 factors only.
        gain: multiplies all magnitudes: 2^-p in the p-th plane after a sign block, and 1 in that.

    Raises:
        ValueError: a tensor has the wrong shape, dtype, layout or device.
    """

    signs: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None = None
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_matrix("signs", self.signs, self.device)
        _check_factors(self.u, self.v, self.scale, self.device)
        expected = (self.u.shape[0], (self.columns + 7) // 8)
        require(
            self.signs.dtype == torch.uint8 and self.signs.shape == expected,
            f"signs must be torch.uint8 {list(expected)}, not {describe(self.signs)}",
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that hold the block."""
        return [self.signs, *super(SignBlock, self).tensors]

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
        dtype = _factor_type(factors)
        signs, u, v, scale = sections(payload, sizes)
        return cls(
            signs.view(rows, (columns + 7) // 8),
            typed(u, dtype).view(rows, rank),
            typed(v, dtype).view(columns, rank),
            typed(scale, torch.float32) if sizes[3] else None,
        )

    def plane(self, payload: torch.Tensor) -> "SignBlock":
        """Return the plane after this block: other signs on half its magnitudes (spec §6.5).

        U, V and the scale are shared, so that it takes no more memory than its signs.

        Args:
            payload: uint8 [rows · ceil(columns / 8)], contiguous; a view of it is kept.

        Raises:
            ValueError: the payload is not uint8, not contiguous, or not exactly as long as the signs.
        """
        (signs,) = sections(payload, (self.signs.nbytes,))
        return SignBlock(signs.view(self.signs.shape), self.u, self.v, self.scale, self.gain / 2)

    def select(self, ids: torch.Tensor) -> "SignBlock":
        """Return the block of the rows `ids` (int64 [n], n at least 1); V and the scale are shared."""
        u = self.u.view(raw_type(self.u))[ids].view(self.u.dtype)
        return SignBlock(self.signs[ids], u, self.v, self.scale, self.gain)
