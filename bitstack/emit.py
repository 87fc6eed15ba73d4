"""From factors, codes and residuals to the payloads of blocks (spec §6)."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from bsformat import Form, payload, sparse

from .lowrank import E4M3_MAX, Factors

#: Entries of 64 rows of a sparse block that 16 bits can count.
_MOST_IN_TILE: Final = (1 << 16) - 1


def sign_bytes(rows: int, columns: int, factors: Factors | None) -> int:
    """Bytes of a sign block with these factors, or of a plane: the same without."""
    signs = rows * ((columns + 7) // 8)
    if factors is None:
        return signs
    return signs + factors.u.nbytes + factors.v.nbytes + (0 if factors.scale is None else factors.scale.nbytes)


def planes(codes: torch.Tensor, bits: int, factors: Factors) -> Iterator[tuple[Form, bytes]]:
    """A sign block and its ``bits`` - 1 planes, from codes int8 [M, N] as `walk.nearest` has them."""
    left = codes
    for plane in range(bits):
        signs = pack_signs(left > 0)
        if plane == 0:
            form = Form("sign", rank=factors.u.shape[1], factors="F16" if factors.scale is None else "F8_E4M3")
            yield form, payload.join(signs, *factors.arrays())
        else:
            yield Form("plane"), payload.join_plane(signs)
        # What the first plane leaves of c is a code of one bit less.
        left = torch.where(left > 0, left - 2 ** (bits - 1 - plane), left + 2 ** (bits - 1 - plane))


def pack_signs(positive: torch.Tensor) -> payload.Array:
    """Bits of a bool matrix [M, N] as uint8 [M, ceil(N / 8)], least significant bit first, padding bits zero."""
    if positive.device.type == "cpu":
        return np.packbits(positive.numpy(), axis=1, bitorder="little")
    rows, columns = positive.shape
    padded = torch.nn.functional.pad(positive, (0, -columns % 8)).view(rows, -1, 8).to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=positive.device)
    packed: payload.Array = (padded << shifts).sum(-1, dtype=torch.uint8).cpu().numpy()
    return packed


def sparse_block(
    residual: torch.Tensor, row: torch.Tensor, col: torch.Tensor, share: float
) -> tuple[torch.Tensor, bytes]:
    """The largest elements of a residual [M, N], seen in the scaled space.

    Args:
        row, col: float32 [M] and [N], the scales as stored.
        share: of all elements; at least one is taken.

    Returns:
        What the block stands for, float32 [M, N], and its payload.
    """
    rows, columns = residual.shape
    scaled = residual / row[:, None] / col[None, :]
    count = min(max(1, int(share * residual.numel())), _MOST_IN_TILE * -(-rows // sparse.TILE))
    flat = scaled.abs().flatten().topk(count).indices
    where = flat.sort().values
    where = _within_tiles(where, columns)
    chosen = scaled.flatten()[where]
    scale = (chosen.abs().amax() / E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    values = (chosen / scale).to(torch.float8_e4m3fn)
    i, j = where // columns, where % columns
    out = torch.zeros_like(residual)
    out[i, j] = values.float() * scale * row[i] * col[j]
    data = sparse.join(rows, float(scale), i.cpu().numpy(), j.cpu().numpy(), values.cpu().view(torch.uint8).numpy())
    return out, data


def _within_tiles(where: torch.Tensor, columns: int) -> torch.Tensor:
    """Positions, in rising order, without those beyond what one tile of rows can hold."""
    tile = where // (columns * sparse.TILE)
    first = torch.searchsorted(tile, tile)  # where its tile begins
    return where[torch.arange(len(where), device=where.device) - first < _MOST_IN_TILE]
