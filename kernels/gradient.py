"""The gradient of a product with respect to its input: dx = dy·W, for a W that is never there as a whole."""

from typing import Final

import torch

from .backends import Matrix
from .dispatch import rows

#: Elements of W that are rebuilt at a time, unless one row has more: by type of device.
TILE: Final = {"cpu": 1 << 19, "cuda": 1 << 25}


def input_gradient(dy: torch.Tensor, matrix: Matrix, *, backend: str = "auto") -> torch.Tensor:
    """Return dx = dy·W for the y = x·Wᵀ of `linear`, tile by tile of the rows of W.

    W is rebuilt again, in dy's type, and never more than `TILE` elements of it at once: a backward pass keeps the
    packed blocks alone. Sums over tiles are in float32.

    Args:
        dy: float32, float16 or bfloat16 [..., rows], on the device of the matrix.
        matrix: a chain, or a table.
        backend: as for `linear`.

    Returns:
        [..., columns] of dy's type.

    Raises:
        ValueError: a shape, type or device does not fit.
    """
    if dy.ndim == 0 or dy.shape[-1] != matrix.rows:
        raise ValueError(f"dy must be [..., {matrix.rows}], not {list(dy.shape)}")
    flat = dy.detach().reshape(-1, matrix.rows)
    dx = torch.zeros(len(flat), matrix.columns, dtype=torch.float32, device=dy.device)
    step = max(1, TILE.get(dy.device.type, TILE["cpu"]) // matrix.columns)
    for start in range(0, matrix.rows if len(flat) else 0, step):
        stop = min(start + step, matrix.rows)
        tile = rows(matrix, torch.arange(start, stop, device=dy.device), dtype=dy.dtype, backend=backend)
        if dy.dtype == torch.float32:
            dx.addmm_(flat[:, start:stop], tile)
        else:
            dx += flat[:, start:stop] @ tile
    return dx.to(dy.dtype).view(*dy.shape[:-1], matrix.columns)
