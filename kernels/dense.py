"""W itself with Triton."""

from typing import Final

import torch
import triton
import triton.language as tl

from . import triton_sparse
from .blocks import LowRankBlock, SignBlock
from .chain import Chain
from .sparse import SparseBlock
from .tiles import jit, load_factors, load_signs, on_device, rank_tile, raw_factors

WORKSPACE: Final = 1 << 24
"""Float32 elements (64 MiB) of partial sums that are held where the result is not float32, unless one row is larger."""
ROWS: Final = 64
COLUMNS: Final = 64


@jit
def _rebuild(
    row_scale,
    col_scale,
    signs,
    u,
    v,
    scale,
    partial,
    w,
    m,
    n,
    rank,
    row_bytes,
    gain,
    FP8: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Add one block's signs ⊙ (U·diag(scale)·Vᵀ) to a BM × BN tile; begins at FIRST, is scaled and stored at LAST.

    Without signs, the product itself.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    row_mask = rows < m
    column_mask = columns < n
    mask = row_mask[:, None] & column_mask[None, :]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k0 in range(0, rank, BK):
        ks = k0 + tl.arange(0, BK)
        k_mask = ks < rank
        u_offsets = rows.to(tl.int64)[:, None] * rank + ks[None, :]
        left = load_factors(u, u_offsets, row_mask[:, None] & k_mask[None, :], FP8)
        if scale is not None:
            left *= tl.load(scale + ks, mask=k_mask, other=0)[None, :]
        v_offsets = columns.to(tl.int64)[None, :] * rank + ks[:, None]
        right = load_factors(v, v_offsets, k_mask[:, None] & column_mask[None, :], FP8)
        acc = tl.dot(left, right, acc, input_precision="ieee")
    acc *= gain
    if signs is not None:
        acc *= load_signs(signs, rows, columns, row_bytes, mask)
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    if not FIRST:
        acc += tl.load(partial + place, mask=mask, other=0)
    if LAST:
        acc *= tl.load(row_scale + rows, mask=row_mask, other=0).to(tl.float32)[:, None]
        acc *= tl.load(col_scale + columns, mask=column_mask, other=0).to(tl.float32)[None, :]
        tl.store(w + place, acc.to(w.dtype.element_ty), mask=mask)
    else:
        tl.store(partial + place, acc, mask=mask)


def rebuild(chain: Chain, out: torch.Tensor) -> None:
    """Write W to `out` [rows, columns], summed in float32 and rounded once."""
    direct = out.dtype == torch.float32 or (len(chain.blocks) == 1 and not isinstance(chain.blocks[0], SparseBlock))
    step = chain.rows if direct else max(1, WORKSPACE // chain.columns)
    with on_device(out.device):
        for start in range(0, chain.rows, step):
            target = out[start : start + step]
            partial = target if direct else torch.empty_like(target, dtype=torch.float32)
            _rebuild_tile(chain, start, partial, target)


def _rebuild_tile(chain: Chain, start: int, partial: torch.Tensor, out: torch.Tensor) -> None:
    part = slice(start, start + len(out))
    # Entries first: then the last block with factors can scale the sum while it stores it.
    sparse = [block for block in chain.blocks if isinstance(block, SparseBlock)]
    if sparse:
        partial.zero_()
    for entries in sparse:
        triton_sparse.rebuild(entries, start, partial)
    grid = (triton.cdiv(len(out), ROWS), triton.cdiv(chain.columns, COLUMNS))
    products = [block for block in chain.blocks if isinstance(block, SignBlock | LowRankBlock)]
    for number, block in enumerate(products):
        signs = block.signs[part] if isinstance(block, SignBlock) else None
        _rebuild[grid](
            chain.row_scale[part],
            chain.col_scale,
            signs,
            raw_factors(block.u[part]),
            raw_factors(block.v),
            block.scale,
            partial,
            out,
            len(out),
            chain.columns,
            block.rank,
            0 if signs is None else signs.shape[1],
            block.gain if isinstance(block, SignBlock) else 1.0,
            FP8=block.u.dtype == torch.float8_e4m3fn,
            FIRST=number == 0 and not sparse,
            LAST=number == len(products) - 1,
            BM=ROWS,
            BN=COLUMNS,
            BK=rank_tile(block.rank),
        )
    if not products:
        partial.mul_(chain.row_scale[part, None]).mul_(chain.col_scale)
        out.copy_(partial)
