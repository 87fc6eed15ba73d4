"""The public operations: check the arguments, choose a backend, call it."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import torch

from .chain import Chain
from .table import Table, table_of

BACKENDS: Final = ("triton", "torch", "reference")
TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


Matrix = Chain | Table
"""A matrix: one chain, or a table of the chains that its rows are shared out to."""


class _Operations(NamedTuple):
    """What a backend does; all write all of `out`, which is contiguous and has at least one element.

    Arguments: x [tokens, columns], the matrix, a bias [rows] or None, out [tokens, rows]; the matrix, out [rows,
    columns]; the matrix, ids [n], out [n, columns].
    """

    linear: Callable[[torch.Tensor, Matrix, torch.Tensor | None, torch.Tensor], None]
    rebuild: Callable[[Matrix, torch.Tensor], None]
    rows: Callable[[Matrix, torch.Tensor, torch.Tensor], None]


@cache
def _triton_imports() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _triton_runs(device: torch.device) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or (device.type == "cpu" and interpreted)) and _triton_imports()


@cache
def _load(name: str) -> _Operations:
    """Import a backend. Here and not at the top, so that the package costs nothing until it is used."""
    if name == "triton":
        from . import triton_path

        return _tabled(triton_path)
    if name == "torch":
        from . import torch_path

        return _chained(torch_path)
    from . import reference

    return _chained(reference)


def _tabled(module: Any) -> _Operations:
    """Operations of a backend that takes tables."""

    def table(matrix: Matrix) -> Table:
        return matrix if isinstance(matrix, Table) else table_of(matrix)

    return _Operations(
        lambda x, matrix, bias, out: module.linear(x, table(matrix), bias, out),
        lambda matrix, out: module.rebuild(table(matrix), out),
        lambda matrix, ids, out: module.rows(table(matrix), ids, out),
    )


def _chained(module: Any) -> _Operations:
    """Operations of a backend that takes one chain at a time."""

    def chains(matrix: Matrix) -> list[Chain]:
        return [matrix] if isinstance(matrix, Chain) else matrix.chains

    def linear(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        parts = chains(matrix)
        if len(parts) == 1:
            _chain_linear(module, x, parts[0], out)
        else:
            start = 0
            for chain in parts:
                part = out.new_empty(len(x), chain.rows)
                _chain_linear(module, x, chain, part)
                out[:, start : start + chain.rows] = part
                start += chain.rows
        if bias is not None:
            out += bias

    def rebuild(matrix: Matrix, out: torch.Tensor) -> None:
        start = 0
        for chain in chains(matrix):
            part = out[start : start + chain.rows]
            module.rebuild(chain, part) if chain.blocks else part.zero_()
            start += chain.rows

    def rows(matrix: Matrix, ids: torch.Tensor, out: torch.Tensor) -> None:
        parts = chains(matrix)
        if len(parts) == 1:
            rebuild(parts[0].select(ids), out)
            return
        ids = torch.where(ids < 0, ids + matrix.rows, ids)
        owner = ids // parts[0].rows
        for number in torch.unique(owner).tolist():
            chosen = (owner == number).nonzero().squeeze(1)
            part = out.new_empty(len(chosen), out.shape[1])
            rebuild(parts[number].select(ids[chosen] - number * parts[0].rows), part)
            out[chosen] = part

    return _Operations(linear, rebuild, rows)


def _chain_linear(module: Any, x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    if chain.blocks:
        module.linear(x, chain, out)
    else:
        out.zero_()


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Return the names of the backends that run on tensors of `device`, the preferred one first.

    `"triton"` needs a CUDA device, or TRITON_INTERPRET=1 in the environment (set before triton is
    imported) for tensors on the CPU. `"torch"` and `"reference"` (float64) run everywhere.
    """
    return BACKENDS if _triton_runs(torch.device(device)) else BACKENDS[1:]


def _choose(backend: str, device: torch.device) -> _Operations:
    if backend == "auto":
        return _load("triton" if device.type == "cuda" and _triton_imports() else "torch")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if backend == "triton" and not _triton_runs(device):
        raise ValueError(f"backend 'triton' does not run on {device}; there: {', '.join(available_backends(device))}")
    return _load(backend)


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

    For a few tokens W is never written out. For more, it is rebuilt, whole (triton; on CUDA rounded to x.dtype) or row
    tile by row tile (torch), and multiplied. There is no gradient. With triton a call on a table can be captured in a
    CUDA graph, and a replay sees what the table holds by then.

    Args:
        x: float32, float16 or bfloat16 [..., columns], on the device of the matrix.
        matrix: a chain, or a table.
        bias: [rows], or None.
        out: contiguous [..., rows] of x.dtype, written whole and returned; its former contents do not matter. Must not
            overlap `x`.
        backend: a name of `available_backends(x.device)`, or `"auto"`: triton on CUDA where it imports, else torch.

    Returns:
        [..., rows] of x.dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown or does not run on the device.
    """
    operations = _choose(backend, x.device)
    if x.dtype not in TYPES:
        raise ValueError(f"x must be float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != matrix.columns:
        raise ValueError(f"x must be [..., {matrix.columns}], not {list(x.shape)}")
    if x.device != matrix.device:
        raise ValueError(f"x is on {x.device}, the matrix on {matrix.device}")
    if bias is not None and (bias.shape != (matrix.rows,) or bias.device != x.device):
        raise ValueError(f"bias must be [{matrix.rows}] on {x.device}, not {list(bias.shape)} on {bias.device}")
    y = _output(out, (*x.shape[:-1], matrix.rows), x.dtype, x.device)
    if y.numel():
        bias = None if bias is None else bias.detach()
        operations.linear(x.detach().reshape(-1, matrix.columns), matrix, bias, y.view(-1, matrix.rows))
    return y if out is None else out


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
    operations = _choose(backend, matrix.device)
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
    operations = _choose(backend, matrix.device)
    _check_type(dtype, backend)
    out = torch.empty(len(ids), matrix.columns, dtype=dtype, device=matrix.device)
    if len(ids):
        if ids.device.type == "cpu" and not (-matrix.rows <= int(ids.min()) <= int(ids.max()) < matrix.rows):
            raise IndexError(
                f"ids must be from {-matrix.rows} to {matrix.rows - 1}: {int(ids.min())} … {int(ids.max())}"
            )
        operations.rows(matrix, ids, out)
    return out


def _check_type(dtype: torch.dtype, backend: str) -> None:
    if dtype not in TYPES and (dtype, backend) != (torch.float64, "reference"):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, not {dtype}")


def _check_ids(least: int, most: int, limit: int) -> None:
    if least < -limit or most >= limit:
        raise IndexError(f"ids must be from {-limit} to {limit - 1}, not {least} to {most}")
