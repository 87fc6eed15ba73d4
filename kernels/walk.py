"""One step of choosing codes along a Hessian: a few columns one after the other, errors pushed on among them.

This is the sequential heart of packing (GPTQ, arXiv 2210.17323, algorithm 1, with the quantiser of the format); all
else of the walk is matrix products.
"""

import torch

from .backends import available_backends


def walk_columns(
    left: torch.Tensor,
    step: torch.Tensor,
    factor: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
    bits: int,
    *,
    backend: str = "auto",
) -> None:
    """Choose the codes of W columns of B matrices with M rows, in their order.

    Column j gets the nearest of the 2^bits odd multiples of step · 2^(1 - bits); its error, divided by the factor's
    diagonal, goes to ``errors``, and times the factor's row j it is taken off the columns behind j.

    Args:
        left: float32 [W, B, M], contiguous: what the columns are to stand for. Changed on the way.
        step: float32 [W, B, M], contiguous: magnitude of the outermost plane; not zero.
        factor: float32 [B, W, W] or [1, W, W]: the rows and columns in question of the upper Cholesky factor.
        codes: int8 [W, B, M], contiguous, written: odd numbers from 1 - 2^bits to 2^bits - 1.
        errors: float32 [W, B, M], contiguous, written.
        bits: from 1 to 7.
        backend: ``"triton"``, ``"torch"``, or ``"auto"``: triton on CUDA where it imports.
    """
    if backend == "triton" or (backend == "auto" and left.is_cuda and "triton" in available_backends(left.device)):
        from . import triton_walk

        triton_walk.walk_columns(left, step, factor, codes, errors, bits)
    else:
        _walk_columns(left, step, factor, codes, errors, bits)


def _walk_columns(
    left: torch.Tensor,
    step: torch.Tensor,
    factor: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
    bits: int,
) -> None:
    reciprocal = factor.diagonal(dim1=-2, dim2=-1).reciprocal().T[:, :, None].contiguous()
    rows = factor.permute(1, 2, 0)[..., None].contiguous()
    unit, top = 2.0 ** (1 - bits), 2.0**bits - 1
    for j in range(len(left)):
        code = (left[j] / step[j]).mul_(2.0 ** (bits - 2)).floor_().mul_(2).add_(1).clamp_(-top, top)
        codes[j] = code
        error = torch.sub(left[j], code.mul_(unit).mul_(step[j]), out=errors[j]).mul_(reciprocal[j])
        if j + 1 < len(left):
            left[j + 1 :].addcmul_(rows[j, j + 1 :], error[None], value=-1)
