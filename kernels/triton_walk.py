"""`walk.walk_columns` on a GPU: a tile of all its columns stays in registers while they are walked."""

import torch
import triton
import triton.language as tl

from .devices import on_device
from .tiles import jit

#: Rows of a matrix that one program walks.
_ROWS = 32


@jit
def _walk(
    left,
    step,
    factor,
    codes,
    errors,
    n_rows,
    n_columns,
    stride,
    factor_stride,
    top,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    matrix = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    at = matrix.to(tl.int64) * n_rows + row
    inside = row < n_rows
    tile = tl.load(
        left + column[:, None].to(tl.int64) * stride + at[None, :],
        mask=(column[:, None] < n_columns) & inside[None, :],
        other=0.0,
    )
    square = factor + matrix.to(tl.int64) * factor_stride
    half = (top + 1.0) * 0.25
    for j in range(n_columns):
        target = tl.sum(tl.where(column[:, None] == j, tile, 0.0), axis=0)
        place = tl.cast(j, tl.int64) * stride + at
        size = tl.load(step + place, mask=inside, other=1.0)
        code = 2.0 * tl.floor(target / size * half) + 1.0
        code = tl.minimum(tl.maximum(code, -top), top)
        taken = tl.load(square + j * n_columns + column, mask=column < n_columns, other=0.0)
        own = tl.load(square + j * n_columns + j)
        error = (target - code * (2.0 / (top + 1.0)) * size) / own
        tl.store(codes + place, code.to(tl.int8), mask=inside)
        tl.store(errors + place, error, mask=inside)
        # The factor is upper triangular, so columns before j stay; j itself is not looked at again.
        tile -= taken[:, None] * error[None, :]


def walk_columns(
    left: torch.Tensor, step: torch.Tensor, factor: torch.Tensor, codes: torch.Tensor, errors: torch.Tensor, bits: int
) -> None:
    """See `walk.walk_columns`; ``left`` is read only."""
    columns, matrices, rows = left.shape
    factor = factor.contiguous()
    with on_device(left.device):
        _walk[(matrices, triton.cdiv(rows, _ROWS))](
            left,
            step,
            factor,
            codes,
            errors,
            rows,
            columns,
            matrices * rows,
            0 if len(factor) == 1 else columns * columns,
            2.0**bits - 1,
            ROWS=_ROWS,
            COLUMNS=triton.next_power_of_2(columns),
        )
