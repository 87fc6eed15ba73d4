"""The public operations: check the arguments, choose a backend, call it."""

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import torch

from .chain import Chain

BACKENDS: Final = ("triton", "numba", "torch", "reference")
TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


class _Operations(NamedTuple):
    """What a backend does; both write all of `out`, which is contiguous and has at least one element."""

    linear: Callable[[torch.Tensor, Chain, torch.Tensor], None]
    rebuild: Callable[[Chain, torch.Tensor], None]


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
def _numba_imports() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _numba_runs(device: torch.device) -> bool:
    return device.type == "cpu" and sys.byteorder == "little" and _numba_imports()


@cache
def _load(name: str) -> _Operations:
    """Import a backend. Here and not at the top, so that the package costs nothing until it is used."""
    if name == "triton":
        from . import decode, dense

        return _Operations(decode.linear, dense.rebuild)
    if name == "numba":
        from . import numba_path

        return _Operations(numba_path.linear, numba_path.rebuild)
    if name == "torch":
        from . import torch_path

        return _Operations(torch_path.linear, torch_path.rebuild)
    from . import reference

    return _Operations(reference.linear, reference.rebuild)


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Return the names of the backends that run on tensors of `device`, the preferred one first.

    `"triton"` needs a CUDA device, or TRITON_INTERPRET=1 in the environment (set before triton is
    imported) for tensors on the CPU. `"numba"` is for the CPU, where numba is installed; the first use compiles, and
    the result is kept on disk. `"torch"` and `"reference"` (float64) run everywhere.
    """
    runs = {"triton": _triton_runs, "numba": _numba_runs}
    return tuple(name for name in BACKENDS if name not in runs or runs[name](torch.device(device)))


def _choose(backend: str, device: torch.device) -> _Operations:
    if backend == "auto":
        if device.type == "cuda" and _triton_imports():
            return _load("triton")
        return _load("numba" if _numba_runs(device) else "torch")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if backend not in (there := available_backends(device)):
        raise ValueError(f"backend {backend!r} does not run on {device}; there: {', '.join(there)}")
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


def linear(x: torch.Tensor, chain: Chain, *, out: torch.Tensor | None = None, backend: str = "auto") -> torch.Tensor:
    """Return y = x·Wᵀ for the matrix W of a chain (BitStack, arXiv 2410.23918, section 3).

    Sums are kept in float32. For a few tokens W is never written out. For more, it is rebuilt once, whole (triton; on
    CUDA rounded to x.dtype) or row tile by row tile (numba, torch), and multiplied. There is no gradient.

    Args:
        x: float32, float16 or bfloat16 [..., columns], on the device of the chain.
        chain: the matrix.
        out: contiguous [..., rows] of x.dtype, written whole and returned; its former contents do not matter. Must not
            overlap `x`.
        backend: a name of `available_backends(x.device)`, or `"auto"`: triton on CUDA and numba on the CPU where they
            import, else torch.

    Returns:
        [..., rows] of x.dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown or does not run on the device.
    """
    operations = _choose(backend, x.device)
    if x.dtype not in TYPES:
        raise ValueError(f"x must be float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != chain.columns:
        raise ValueError(f"x must be [..., {chain.columns}], not {list(x.shape)}")
    if x.device != chain.device:
        raise ValueError(f"x is on {x.device}, the chain on {chain.device}")
    y = _output(out, (*x.shape[:-1], chain.rows), x.dtype, x.device)
    if not chain.blocks:
        y.zero_()
    elif y.numel():
        operations.linear(x.detach().reshape(-1, chain.columns), chain, y.view(-1, chain.rows))
    return y if out is None else out


def rebuild(
    chain: Chain, *, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Return the matrix W of a chain (BitStack, arXiv 2410.23918, section 3), summed in float32 and rounded once.

    Args:
        chain: the matrix.
        dtype: of the result: float32, float16 or bfloat16; with backend `"reference"` also float64.
        out: contiguous [rows, columns] of `dtype`, written whole and returned.
        backend: as for `linear`.

    Returns:
        [rows, columns] of `dtype`, on the device of the chain.

    Raises:
        ValueError: `out` or `dtype` does not fit, or the backend is unknown or does not run on the device.
    """
    operations = _choose(backend, chain.device)
    if dtype not in TYPES and (dtype, backend) != (torch.float64, "reference"):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    w = _output(out, (chain.rows, chain.columns), dtype, chain.device)
    if chain.blocks:
        operations.rebuild(chain, w)
    else:
        w.zero_()
    return w if out is None else out


def rows(chain: Chain, ids: torch.Tensor, *, dtype: torch.dtype = torch.float32, backend: str = "auto") -> torch.Tensor:
    """Return selected rows of the matrix of a chain, as an embedding look-up does; no other row is computed.

    Args:
        chain: the matrix.
        ids: int64 [n] on the device of the chain, row numbers of this chain, in any order, repeated or not.
        dtype: of the result, as for `rebuild`.
        backend: as for `linear`.

    Returns:
        [n, columns] of `dtype`.

    Raises:
        ValueError: `ids` or `dtype` does not fit, or the backend is unknown or does not run on the device.
        IndexError: an id is not in -rows ... rows - 1 (on the CPU; on CUDA it is a device-side error).
    """
    if ids.dtype != torch.int64 or ids.ndim != 1 or ids.device != chain.device:
        raise ValueError(f"ids must be int64 [n] on {chain.device}, not {ids.dtype} {list(ids.shape)} on {ids.device}")
    if not len(ids):
        _choose(backend, chain.device)
        return torch.empty(0, chain.columns, dtype=dtype, device=chain.device)
    return rebuild(chain.select(ids), dtype=dtype, backend=backend)
