"""The public operations: check the arguments, choose a backend, call it."""

from collections.abc import Sequence
from typing import Final

import torch

from .backends import Matrix, choose
from .together import Together

TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def _output(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if out.shape != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous {dtype} {list(shape)} on {device}, "
            f"not {out.dtype} {list(out.shape)} on {out.device} with strides {out.stride()}"
        )
    return out.detach()


def linear(
    x: torch.Tensor,
    matrix: Matrix,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return y = x·Wᵀ + bias for a matrix W of chains (BitStack, arXiv 2410.23918, section 3).

    For a few tokens W is never written out. For more, it is rebuilt, in large pieces (triton; on CUDA rounded to
    x.dtype) or in tiles of rows (numba, torch), and multiplied. There is no gradient. With triton a call on a table can
    be captured in a CUDA graph, and a replay sees what the table holds by then.

    Args:
        x: float32, float16 or bfloat16 [..., columns], on the device of the matrix.
        matrix: a chain, or a table.
        bias: [rows], laid out in any way, or None.
        out: contiguous [..., rows] of x.dtype, written whole and returned; its former contents do not matter. Must not
            overlap `x`.
        backend: a name of `available_backends(x.device)`, or `"auto"`: what `set_backend` or the environment variable
            BSTK_KERNELS says, else hopper or triton on CUDA and numba on the CPU, where they run, else torch.

    Returns:
        [..., rows] of x.dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown or does not run on the device.
    """
    operations = choose(backend, x.device)
    if x.dtype not in TYPES:
        raise ValueError(f"x must be float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != matrix.columns:
        raise ValueError(f"x must be [..., {matrix.columns}], not {list(x.shape)}")
    if x.device != matrix.device:
        raise ValueError(f"x is on {x.device}, the matrix on {matrix.device}")
    _check_bias(bias, matrix.rows, x.device)
    y = _output(out, (*x.shape[:-1], matrix.rows), x.dtype, x.device)
    if y.numel():
        # Kernels take its address, and read it as it is laid out in memory.
        bias = None if bias is None else bias.detach().contiguous()
        operations.linear(x.detach().reshape(-1, matrix.columns), matrix, bias, y.view(-1, matrix.rows))
    return y if out is None else out


def linear_together(
    x: torch.Tensor,
    together: Together,
    *,
    biases: Sequence[torch.Tensor | None] | None = None,
    backend: str = "auto",
) -> list[torch.Tensor] | None:
    """Return x·Wᵀ + bias of several matrices W for the same x from one launch, bit for bit as `linear` gives each.

    Args:
        x: float16 or bfloat16 [..., columns], on the device of the matrices.
        together: the matrices.
        biases: of each [rows] or None; by default none of them has one.
        backend: as for `linear`.

    Returns:
        Of each matrix [..., rows] of x.dtype; None where the backend has no launch for so many tokens, or for such
        matrices or x: then `linear` is to be called for each.

    Raises:
        ValueError: as for `linear`.
    """
    operations = choose(backend, x.device)
    tables = together.tables
    columns, rows = tables[0].columns, [table.rows for table in tables]
    if x.ndim == 0 or x.shape[-1] != columns:
        raise ValueError(f"x must be [..., {columns}], not {list(x.shape)}")
    if x.device != tables[0].device:
        raise ValueError(f"x is on {x.device}, the matrices on {tables[0].device}")
    biases = [None] * len(rows) if biases is None else biases
    if len(biases) != len(rows):
        raise ValueError(f"there must be {len(rows)} biases or Nones, not {len(biases)}")
    for bias, size in zip(biases, rows, strict=True):
        _check_bias(bias, size, x.device)
    flat = x.detach().reshape(-1, columns)
    if operations.together is None or not len(flat) or not operations.together.takes(flat, together):
        return None
    outs = [torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device) for n in rows]
    held = [None if bias is None else bias.detach().contiguous() for bias in biases]
    operations.together.linear(flat, together, held, [y.view(-1, y.shape[-1]) for y in outs])
    return outs


def rebuild(
    matrix: Matrix, *, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Return the matrix W of chains (BitStack, arXiv 2410.23918, section 3), summed in float32 and rounded.

    Args:
        matrix: a chain, or a table.
        dtype: of the result: float32, float16 or bfloat16; with backend `"reference"` also float64.
        out: contiguous [rows, columns] of `dtype`, written whole and returned.
        backend: as for `linear`.

    Returns:
        [rows, columns] of `dtype`, on the device of the matrix.

    Raises:
        ValueError: `out` or `dtype` does not fit, or the backend is unknown or does not run on the device.
    """
    operations = choose(backend, matrix.device)
    _check_type(dtype, backend)
    w = _output(out, (matrix.rows, matrix.columns), dtype, matrix.device)
    operations.rebuild(matrix, w)
    return w if out is None else out


def rows(
    matrix: Matrix, ids: torch.Tensor, *, dtype: torch.dtype = torch.float32, backend: str = "auto"
) -> torch.Tensor:
    """Return selected rows of the matrix of chains, as an embedding look-up does; no other row is computed.

    Args:
        matrix: a chain, or a table.
        ids: int64 [n] on the device of the matrix, row numbers, in any order, repeated or not.
        dtype: of the result, as for `rebuild`.
        backend: as for `linear`.

    Returns:
        [n, columns] of `dtype`.

    Raises:
        ValueError: `ids` or `dtype` does not fit, or the backend is unknown or does not run on the device.
        IndexError: an id is not in -rows ... rows - 1 (on the CPU; on CUDA nothing checks it).
    """
    if ids.dtype != torch.int64 or ids.ndim != 1 or ids.device != matrix.device:
        raise ValueError(f"ids must be int64 [n] on {matrix.device}, not {ids.dtype} {list(ids.shape)} on {ids.device}")
    operations = choose(backend, matrix.device)
    _check_type(dtype, backend)
    out = torch.empty(len(ids), matrix.columns, dtype=dtype, device=matrix.device)
    if len(ids):
        if ids.device.type == "cpu" and not (-matrix.rows <= int(ids.min()) <= int(ids.max()) < matrix.rows):
            raise IndexError(
                f"ids must be from {-matrix.rows} to {matrix.rows - 1}: {int(ids.min())} … {int(ids.max())}"
            )
        operations.rows(matrix, ids, out)
    return out


def _check_bias(bias: torch.Tensor | None, rows: int, device: torch.device) -> None:
    if bias is not None and (bias.shape != (rows,) or bias.device != device):
        raise ValueError(f"bias must be [{rows}] on {device}, not {list(bias.shape)} on {bias.device}")


def _check_type(dtype: torch.dtype, backend: str) -> None:
    if dtype not in TYPES and (dtype, backend) != (torch.float64, "reference"):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
