"""Which backends there are, where they run, and how each takes a matrix."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import torch

from .chain import Chain
from .devices import has_bit_products
from .preference import asked
from .table import Table, table_of
from .together import Together

BACKENDS: Final = ("hopper", "triton", "numba", "torch", "reference")


Matrix = Chain | Table
"""A matrix: one chain, or a table of the chains that its rows are shared out to."""


class TogetherOperations(NamedTuple):
    """Products of several matrices with the same x [tokens, columns]: whether they are for it, and the products.

    Arguments of those: x, the matrices, of each a bias [rows] or None, of each out [tokens, rows].
    """

    takes: Callable[[torch.Tensor, Together], bool]
    linear: Callable[[torch.Tensor, Together, Sequence[torch.Tensor | None], Sequence[torch.Tensor]], None]


class Operations(NamedTuple):
    """What a backend does; all write all of `out`, which is contiguous and has at least one element.

    Arguments: x [tokens, columns], the matrix, a bias [rows] or None, out [tokens, rows]; the matrix, out [rows,
    columns]; the matrix, ids [n], out [n, columns]. The last is None where there is nothing of that kind.
    """

    linear: Callable[[torch.Tensor, Matrix, torch.Tensor | None, torch.Tensor], None]
    rebuild: Callable[[Matrix, torch.Tensor], None]
    rows: Callable[[Matrix, torch.Tensor, torch.Tensor], None]
    together: TogetherOperations | None = None


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


def _hopper_runs(device: torch.device) -> bool:
    # It leaves to Triton what it is not for.
    return device.type == "cuda" and _triton_imports() and torch.cuda.is_available() and has_bit_products(device)


@cache
def _numba_imports() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _numba_runs(device: torch.device) -> bool:
    return device.type == "cpu" and sys.byteorder == "little" and _numba_imports()


@cache
def _load(name: str) -> Operations:
    """Import a backend. Here and not at the top, so that the package costs nothing until it is used."""
    if name == "hopper":
        from . import hopper_path

        several = TogetherOperations(hopper_path.takes_together, hopper_path.together)
        return _tabled(hopper_path)._replace(together=several)
    if name == "triton":
        from . import triton_path

        return _tabled(triton_path)
    if name == "numba":
        from . import numba_path

        return _chained(numba_path)
    if name == "torch":
        from . import torch_path

        return _chained(torch_path)
    from . import reference

    return _chained(reference)


def _tabled(module: Any) -> Operations:
    """Operations of a backend that takes tables."""

    def table(matrix: Matrix) -> Table:
        return matrix if isinstance(matrix, Table) else table_of(matrix)

    return Operations(
        lambda x, matrix, bias, out: module.linear(x, table(matrix), bias, out),
        lambda matrix, out: module.rebuild(table(matrix), out),
        lambda matrix, ids, out: module.rows(table(matrix), ids, out),
    )


def _chained(module: Any) -> Operations:
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
                target = out[:, start : start + chain.rows]
                part = target if target.is_contiguous() else out.new_empty(target.shape)
                _chain_linear(module, x, chain, part)
                if part is not target:
                    target.copy_(part)
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

    return Operations(linear, rebuild, rows)


def _chain_linear(module: Any, x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    if chain.blocks:
        module.linear(x, chain, out)
    else:
        out.zero_()


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Return the names of the backends that run on tensors of `device`, the preferred one first.

    `"hopper"` is for GPUs of compute capability 9.0; what it is not for it leaves to triton. `"triton"` needs a CUDA
    device, or TRITON_INTERPRET=1 in the environment (set before triton is imported) for tensors on the CPU. `"numba"`
    is for the CPU, where numba is installed; the first use compiles, and the result is kept on disk. `"torch"` and
    `"reference"` (float64) run everywhere.
    """
    runs = {"hopper": _hopper_runs, "triton": _triton_runs, "numba": _numba_runs}
    return tuple(name for name in BACKENDS if name not in runs or runs[name](torch.device(device)))


def choose(backend: str, device: torch.device) -> Operations:
    """Return the operations of a backend by name, or by `"auto"` of the one asked for, else of the preferred one.

    Raises:
        ValueError: the backend is unknown or does not run on the device.
    """
    source = ""
    if backend == "auto" and (wanted := asked())[0]:
        backend, where = wanted
        source = f" (by {where})"
    if backend == "auto":
        if device.type == "cuda" and _triton_imports():
            return _load("hopper" if _hopper_runs(device) else "triton")
        return _load("numba" if _numba_runs(device) else "torch")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}{source}; known: auto, {', '.join(BACKENDS)}")
    if backend not in (there := available_backends(device)):
        raise ValueError(f"backend {backend!r}{source} does not run on {device}; there: {', '.join(there)}")
    return _load(backend)
