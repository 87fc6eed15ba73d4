"""Every operation with PyTorch alone: the path of the CPU, and of any device that Triton does not know.

Two ways to y = x·Wᵀ, chosen by the number of tokens:

- Few tokens, on the CPU: W is never formed. A sign byte selects one of 256 sums of eight entries of Z = diag(x·c)·V;
  all of those sums are tabulated for every byte column, and S·Z is a sum of table rows: an `embedding_bag`.
- Else: W is rebuilt in tiles of rows that stay in cache, each multiplied at once.

Either way the workspace is bounded, whatever the matrix (see TILE and TABLE), and nothing is kept between calls but
look-up tables of 2 KiB each.
"""

from functools import cache
from typing import Final, NamedTuple

import torch
from torch.nn import functional

from .blocks import LowRankBlock, SignBlock
from .chain import Block, Chain
from .float8 import to_float
from .sparse import SparseBlock
from .torch_sparse import add_entries, add_products

TILE: Final = 1 << 19
"""Elements of a tile of W, unless one row is larger; each takes 10.5 bytes of workspace."""
TABLE: Final = 3 << 18
"""Float32 entries of the table of sums (3 MiB), unless one byte column needs more."""
WIDTH: Final = 8
"""Ranks are rounded up to this in the table: a narrower row takes as long to add, and fewer widths are fewer calls."""
INDICES: Final = 1 << 20
"""Int32 indices into the table that are held at a time (4 MiB)."""
TABLE_TOKENS: Final = 2
"""Up to this number of tokens the table of sums is used; above, tiles of W are rebuilt and multiplied."""
PLANES: Final = 7
"""Planes that are added up as whole numbers before they are multiplied: so many fit into 8 bits."""
TABLE_ROWS: Final = 128
"""A table of 256 entries a column pays from about this number of rows."""


@cache
def _byte_signs(device: torch.device, digit: int) -> torch.Tensor:
    """Return for each byte its eight signs times 2^digit, as int64 [256] whose bytes are int8 in column order."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return ((bits * 2 - 1) << digit).to(torch.int8).view(torch.int64).flatten().to(device)


@cache
def _nibble_signs() -> torch.Tensor:
    """Return float32 [32, 8]: row n sums columns 0-3 with the signs of nibble n, row 16 + n columns 4-7."""
    signs = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1) * 2.0 - 1
    table = torch.zeros(32, 8)
    table[:16, :4] = signs
    table[16:, 4:] = signs
    return table


def linear(x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    """Write x·Wᵀ to `out` [tokens, rows] for x [tokens, columns], summed in float32."""
    scaled = x.float() * chain.col_scale.float()
    if x.device.type == "cpu" and len(x) <= TABLE_TOKENS and chain.rows >= TABLE_ROWS:
        y = torch.zeros(chain.rows, len(x))
        groups: dict[tuple[torch.dtype, int], list[SignBlock]] = {}
        for block in chain.blocks:
            if isinstance(block, SparseBlock):
                add_products(scaled.T.contiguous(), block, y)
            elif isinstance(block, LowRankBlock):
                u, vt = _scaled_factors(block)
                y.addmm_(u, vt @ scaled.T)
            else:
                groups.setdefault((block.u.dtype, -(-block.rank // WIDTH) * WIDTH), []).append(block)
        if chain.columns % 8:
            scaled = functional.pad(scaled, (0, -chain.columns % 8))
        for (_, width), blocks in groups.items():
            _add_by_tables(scaled, blocks, width, y)
        torch.mul(y.T, chain.row_scale.float(), out=out)
        return
    # W without its scales, a tile of rows at a time; the columns' scale is in x, the rows' comes last.
    parts = _Parts.of(chain.blocks)
    step = max(1, TILE // chain.columns)
    tile = torch.empty(min(step, chain.rows), chain.columns, device=x.device)
    for start in range(0, chain.rows, step):
        stop = min(start + step, chain.rows)
        w = tile[: stop - start]
        _rebuild_tile(parts, start, w)
        out[:, start:stop] = (scaled @ w.T).mul_(chain.row_scale[start:stop])


def rebuild(chain: Chain, out: torch.Tensor) -> None:
    """Write W to `out` [rows, columns], summed in float32."""
    parts = _Parts.of(chain.blocks)
    row_scale, col_scale = chain.row_scale.float(), chain.col_scale.float()
    step = max(1, TILE // chain.columns)
    for start in range(0, chain.rows, step):
        target = out[start : start + step]
        w = target if out.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)
        _rebuild_tile(parts, start, w)
        w.mul_(col_scale)
        torch.mul(w, row_scale[start : start + step, None], out=target)


class _Parts(NamedTuple):
    """What all tiles of a matrix use.

    Attributes:
        products: runs of blocks with the same factors, each with the `_scaled_factors` of its last block's plane.
        entries: sparse blocks, each with where its rows begin.
    """

    products: list[tuple[list[SignBlock] | LowRankBlock, torch.Tensor, torch.Tensor]]
    entries: list[tuple[SparseBlock, torch.Tensor]]

    @classmethod
    def of(cls, blocks: tuple[Block, ...]) -> "_Parts":
        parts = cls([], [])
        runs: list[list[SignBlock]] = []
        for block in blocks:
            if isinstance(block, SparseBlock):
                parts.entries.append((block, block.row_starts()))
            elif isinstance(block, LowRankBlock):
                parts.products.append((block, *_scaled_factors(block)))
            elif runs and _continues(runs[-1], block):
                runs[-1].append(block)
            else:
                runs.append([block])
        parts.products.extend((run, *_scaled_factors(run[-1])) for run in runs)
        return parts


def _continues(run: list[SignBlock], block: SignBlock) -> bool:
    """Whether a block is the next plane of a run: then their signs are the digits of one whole number."""
    last = run[-1]
    return len(run) < PLANES and block.u is last.u and block.v is last.v and block.gain * 2 == last.gain


def _scaled_factors(block: SignBlock | LowRankBlock) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gain·U·diag(scale) [rows, rank], and Vᵀ [rank, columns], both float32."""
    u = to_float(block.u)
    if block.scale is not None:
        u = u * block.scale
    if isinstance(block, SignBlock) and block.gain != 1:
        u = u * block.gain
    return u, to_float(block.v).T


def _rebuild_tile(parts: _Parts, start: int, w: torch.Tensor) -> None:
    """Write the rows from `start` on of the unscaled W to `w`, float32 [rows of the tile, columns], contiguous."""
    rows, columns = w.shape
    row_bytes = (columns + 7) // 8
    expanded = torch.empty(rows * row_bytes, dtype=torch.int64, device=w.device)
    number = torch.empty_like(expanded)
    magnitude = torch.empty_like(w) if len(parts.products) > 1 else w
    if not parts.products:
        w.zero_()
    for first, (blocks, u, vt) in enumerate(parts.products):
        target = magnitude if first else w
        torch.mm(u[start : start + rows], vt, out=target)
        if isinstance(blocks, list):
            for plane, block in enumerate(blocks):
                indices = block.signs[start : start + rows].flatten().int()
                digit = _byte_signs(w.device, len(blocks) - 1 - plane)
                torch.index_select(digit, 0, indices, out=expanded if plane else number)
                if plane:
                    number.view(torch.int8).add_(expanded.view(torch.int8))
            target.mul_(number.view(torch.int8).view(rows, row_bytes * 8)[:, :columns])
        if first:
            w.add_(magnitude)
    for sparse, starts in parts.entries:
        add_entries(sparse, starts, start, w)


def _stack(factors: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Return factors of one dtype as one float32 tensor [blocks, height, width], filled up with zeros."""
    fp8 = factors[0].dtype == torch.float8_e4m3fn
    raw = torch.uint8 if fp8 else factors[0].dtype
    if all(tensor.shape == (height, width) for tensor in factors):
        stacked = torch.stack([tensor.view(raw) for tensor in factors])
    else:
        stacked = torch.zeros(len(factors), height, width, dtype=raw)
        for target, tensor in zip(stacked, factors, strict=True):
            target[: tensor.shape[0], : tensor.shape[1]] = tensor.view(raw)
    return to_float(stacked.view(factors[0].dtype))


def _add_by_tables(x: torch.Tensor, blocks: list[SignBlock], width: int, y: torch.Tensor) -> None:
    """Add Σ_blocks Σ_k scale[k] · U[i, k] · (S·diag(x)·V)[i, k] to `y`, float32 [rows, tokens].

    The blocks have one factor type and ranks up to `width`, and are worked on together: on a small matrix the calls
    cost as much as the arithmetic. `x` is float32 [tokens, columns rounded up to eights]; what is past the last column
    is zero, so the padding bits of the signs do not matter.
    """
    number, tokens = len(blocks), len(x)
    rows, row_bytes = blocks[0].signs.shape
    u = _stack([block.u for block in blocks], rows, width)
    v = _stack([block.v for block in blocks], row_bytes * 8, width)
    for factors, block in zip(u, blocks, strict=True):
        if block.scale is not None:
            factors[:, : block.rank].mul_(block.scale)
        if block.gain != 1:
            factors.mul_(block.gain)
    # As [bit, block, byte column, token, k], so that the sums of all byte columns are one matrix product.
    x_bits = x.view(tokens, 1, row_bytes, 8, 1).permute(3, 1, 2, 0, 4)
    v_bits = v.view(number, row_bytes, 8, 1, width).permute(2, 0, 1, 3, 4)
    parts = -(-256 * number * tokens * width * row_bytes // TABLE)
    step = -(-row_bytes // parts)
    for first in range(0, row_bytes, step):
        columns = slice(first, min(first + step, row_bytes))
        count = columns.stop - first
        z = torch.empty(8, number, count, tokens, width)
        torch.mul(x_bits[:, :, columns], v_bits[:, :, columns], out=z)
        halves = _nibble_signs() @ z.view(8, -1)
        table = (halves[16:, None] + halves[None, :16]).view(256 * number * count, tokens * width)
        offsets = torch.arange(number * count, dtype=torch.int32).view(number, count)
        height = max(1, INDICES // (number * count))
        for start in range(0, rows, height):
            part = slice(start, min(start + height, rows))
            indices = torch.empty(number, part.stop - start, count, dtype=torch.int32)
            for target, offset, block in zip(indices, offsets, blocks, strict=True):
                torch.add(offset, block.signs[part, columns], alpha=number * count, out=target)
            sums = functional.embedding_bag(indices.view(-1, count), table, mode="sum")
            sums = sums.view(number, -1, tokens, width).mul_(u[:, part, None])
            y[part] += sums.sum(3).sum(0)
