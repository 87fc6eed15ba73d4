"""y = x·Wᵀ with Triton: for few tokens without forming W, else through W."""

from typing import Final

import torch
import triton
import triton.language as tl

from . import triton_sparse
from .blocks import SignBlock
from .chain import Chain
from .dense import rebuild
from .sparse import SparseBlock
from .tiles import jit, load_factors, load_signs, on_device, rank_tile, raw_factors

DECODE_TOKENS: Final = 4
"""Up to this number of tokens every token reads the signs again; from there on W is rebuilt."""
ROWS: Final = 32
COLUMNS: Final = 128


@jit
def _decode(
    x,
    row_scale,
    col_scale,
    signs,
    u,
    v,
    scale,
    partial,
    y,
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
    """Add one block's part of one token's y for BM rows; the sum starts at FIRST and is scaled and stored at LAST.

    One program owns its rows and walks over all columns, so the sum has one order: S·Z in tiles, where Z is
    diag(x·col_scale)·V, then the row sums of U·diag(scale) times that. Without signs, S is all ones.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    token = tl.program_id(1).to(tl.int64)
    row_mask = rows < m
    total = tl.zeros((BM,), dtype=tl.float32)
    for k0 in range(0, rank, BK):
        ks = k0 + tl.arange(0, BK)
        k_mask = ks < rank
        acc = tl.zeros((BM, BK), dtype=tl.float32)
        for n0 in range(0, n, BN):
            columns = n0 + tl.arange(0, BN)
            column_mask = columns < n
            xs = tl.load(x + token * n + columns, mask=column_mask, other=0).to(tl.float32)
            xs *= tl.load(col_scale + columns, mask=column_mask, other=0).to(tl.float32)
            v_offsets = columns.to(tl.int64)[:, None] * rank + ks[None, :]
            z = xs[:, None] * load_factors(v, v_offsets, column_mask[:, None] & k_mask[None, :], FP8)
            if signs is None:
                acc += tl.sum(z, axis=0)[None, :]
            else:
                s = load_signs(signs, rows, columns, row_bytes, row_mask[:, None] & column_mask[None, :])
                acc = tl.dot(s, z, acc, input_precision="ieee")
        u_offsets = rows.to(tl.int64)[:, None] * rank + ks[None, :]
        factor = load_factors(u, u_offsets, row_mask[:, None] & k_mask[None, :], FP8)
        if scale is not None:
            factor *= tl.load(scale + ks, mask=k_mask, other=0)[None, :]
        total += tl.sum(acc * factor, axis=1)
    total *= gain
    place = token * m + rows
    if not FIRST:
        total += tl.load(partial + place, mask=row_mask, other=0)
    if LAST:
        total *= tl.load(row_scale + rows, mask=row_mask, other=0).to(tl.float32)
        tl.store(y + place, total.to(y.dtype.element_ty), mask=row_mask)
    else:
        tl.store(partial + place, total, mask=row_mask)


def linear(x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    """Write x·Wᵀ to `out` [tokens, rows] for x [tokens, columns]; summed in float32, in the same order every time."""
    tokens = len(x)
    if tokens > DECODE_TOKENS:
        _through_dense(x, chain, out)
        return
    x = x.contiguous()
    partial = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    grid = (triton.cdiv(chain.rows, ROWS), tokens)
    with on_device(x.device):
        for number, block in enumerate(chain.blocks):
            first, last = number == 0, number == len(chain.blocks) - 1
            if isinstance(block, SparseBlock):
                scales = chain.row_scale, chain.col_scale
                triton_sparse.decode(x, *scales, block, partial, out, first=first, last=last)
                continue
            signs = block.signs if isinstance(block, SignBlock) else None
            _decode[grid](
                x,
                chain.row_scale,
                chain.col_scale,
                signs,
                raw_factors(block.u),
                raw_factors(block.v),
                block.scale,
                partial,
                out,
                chain.rows,
                chain.columns,
                block.rank,
                0 if signs is None else signs.shape[1],
                block.gain if isinstance(block, SignBlock) else 1.0,
                FP8=block.u.dtype == torch.float8_e4m3fn,
                FIRST=first,
                LAST=last,
                BM=ROWS,
                BN=COLUMNS,
                BK=rank_tile(block.rank),
            )


def _through_dense(x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    # The GPU multiplies half precision with float32 sums; the CPU, where this runs interpreted, need not.
    dtype = x.dtype if x.device.type == "cuda" else torch.float32
    w = torch.empty(chain.rows, chain.columns, dtype=dtype, device=x.device)
    rebuild(chain, w)
    if dtype == out.dtype:
        torch.mm(x, w.T, out=out)
    else:
        out.copy_(x.to(dtype) @ w.T)
