"""Chains of random blocks, made on their device: what kernels are measured on."""

import math
from typing import Final

import torch

from bitstack.kernels import Chain, SignBlock, SparseBlock
from bitstack.kernels.sparse import TILE

KINDS: Final = {
    "sign": "independent sign blocks of rank 16, factors in float16",
    "sign-fp8": "independent sign blocks of rank 16, factors in float8",
    "default": "a sparse block of 0.3 % of the entries, a sign block of rank 2 with factors in float8, and its planes",
}
RANK: Final = 16
DEFAULT_RANK: Final = 2
SPARSE_SHARE: Final = 0.003
#: Factors in float8 are about this large: well inside of what e4m3 holds.
_FACTOR: Final = 100.0
#: Elements that are drawn at a time to place entries.
_DRAWN: Final = 1 << 26


def random_chain(kind: str, rows: int, columns: int, blocks: int, device: torch.device) -> Chain:
    """A chain of `blocks` bits a weight, whose rows have about unit length.

    Args:
        kind: a name in `KINDS`. The sparse block of `"default"` is not counted as a block.
        rows: of the matrix.
        columns: of the matrix, at most 65536.
        blocks: sign blocks, or for `"default"` one sign block and its planes; at least 1.
        device: where all tensors are made.

    Raises:
        ValueError: there is no such kind of chain.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of chain {kind!r}; known: {', '.join(KINDS)}")
    if kind == "default":
        return default_chain(rows, columns, blocks, device, share=SPARSE_SHARE)
    size, fp8 = _size(columns), kind == "sign-fp8"
    made = tuple(random_signs(rows, columns, RANK, size * 0.5**i, device, fp8=fp8) for i in range(blocks))
    return Chain(rows, columns, *_scales(rows, columns, device), made)


def default_chain(rows: int, columns: int, bits: int, device: torch.device, *, share: float) -> Chain:
    """A chain as the default recipe makes them: a sparse block unless `share` is 0, a sign block, `bits` - 1 planes."""
    size = _size(columns)
    signs = [random_signs(rows, columns, DEFAULT_RANK, size, device, fp8=True)]
    for _ in range(bits - 1):
        signs.append(signs[-1].plane(random_bytes(signs[0].signs.numel(), device)))
    sparse = (random_entries(rows, columns, share, 4 * size, device),) if share else ()
    return Chain(rows, columns, *_scales(rows, columns, device), (*sparse, *signs))


def random_bytes(size: int, device: torch.device) -> torch.Tensor:
    """Bytes of random bits, uint8 [size]."""
    return torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)


def random_signs(rows: int, columns: int, rank: int, size: float, device: torch.device, *, fp8: bool) -> SignBlock:
    """A block of random signs and positive magnitudes of about `size`."""
    packed = random_bytes(rows * ((columns + 7) // 8), device).view(rows, -1)
    each = _FACTOR if fp8 else (size / rank) ** 0.5
    u, v = (
        ((torch.rand(length, rank, device=device) + 0.5) * each).to(torch.float8_e4m3fn if fp8 else torch.float16)
        for length in (rows, columns)
    )
    scale = torch.full((rank,), size / rank / _FACTOR**2, device=device) if fp8 else None
    return SignBlock(packed, u, v, scale)


def random_entries(rows: int, columns: int, share: float, size: float, device: torch.device) -> SparseBlock:
    """A sparse block of about a share of all elements, of magnitudes about `size`, spread by chance."""
    step = max(1, _DRAWN // columns)
    counts, places = [], []
    for start in range(0, rows, step):
        taken = torch.rand(min(step, rows - start), columns, device=device) < share
        counts.append(taken.sum(1))
        places.append(taken.nonzero()[:, 1])
    count, place = torch.cat(counts), torch.cat(places)
    begin = count.cumsum(0) - count
    starts = begin[::TILE].contiguous()
    offsets = begin - starts.repeat_interleave(TILE)[:rows]
    values = (torch.rand(len(place), device=device) + 0.5) * _FACTOR
    values *= torch.randint(0, 2, (len(place),), device=device) * 2 - 1
    return SparseBlock(
        columns,
        torch.full((1,), size / _FACTOR, device=device),
        starts.int(),
        # By way of 32 bits, so that numbers beyond 32767 wrap.
        offsets.int().to(torch.int16),
        place.int().to(torch.int16),
        values.to(torch.float8_e4m3fn),
    )


def _size(columns: int) -> float:
    return 0.8 / math.sqrt(columns)


def _scales(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    row, column = ((torch.rand(length, device=device) + 0.5).half() for length in (rows, columns))
    return row, column
