"""The definition of every operation in float64, as readable as the formula. Slow; the other backends are held to it."""

import torch

from .blocks import LowRankBlock, SignBlock
from .chain import Block, Chain
from .sparse import SparseBlock, unsigned


def signs(block: SignBlock) -> torch.Tensor:
    """Return the signs of a block as float64 [rows, columns] of +1 and -1."""
    bits = (block.signs[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=block.signs.device)) & 1
    return bits.flatten(1)[:, : block.columns].double() * 2 - 1


def magnitudes(block: SignBlock | LowRankBlock) -> torch.Tensor:
    """Return gain · Σ_k scale[k] · U[i, k] · V[j, k] as float64 [rows, columns]; the gain of a low-rank block is 1."""
    u = block.u.float().double()
    v = block.v.float().double()
    product = (u if block.scale is None else u * block.scale.double()) @ v.T
    return product * block.gain if isinstance(block, SignBlock) else product


def entries(block: SparseBlock) -> torch.Tensor:
    """Return the entries of a sparse block where they are, as float64 [rows, columns]; zeros elsewhere."""
    matrix = torch.zeros(block.rows, block.columns, dtype=torch.float64, device=block.device)
    row = torch.arange(block.rows, device=block.device).repeat_interleave(block.row_starts().diff())
    matrix[row, unsigned(block.indices)] = block.scale.double() * block.values.float().double()
    return matrix


def values(block: Block) -> torch.Tensor:
    """Return what a block adds to the sum, as float64 [rows, columns]."""
    if isinstance(block, SparseBlock):
        return entries(block)
    if isinstance(block, LowRankBlock):
        return magnitudes(block)
    return signs(block) * magnitudes(block)


def dense(chain: Chain) -> torch.Tensor:
    """Return the matrix of a chain as float64 [rows, columns] (BitStack, arXiv 2410.23918, section 3)."""
    total = torch.zeros(chain.rows, chain.columns, dtype=torch.float64, device=chain.device)
    for block in chain.blocks:
        total += values(block)
    return chain.row_scale.double()[:, None] * total * chain.col_scale.double()


def linear(x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    """Write x·Wᵀ to `out` [tokens, rows], computed in float64, for x [tokens, columns]."""
    out.copy_(x.double() @ dense(chain).T)


def rebuild(chain: Chain, out: torch.Tensor) -> None:
    """Write W to `out` [rows, columns], computed in float64."""
    out.copy_(dense(chain))
