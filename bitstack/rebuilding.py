"""The tensors of a model at a budget, rebuilt from a file one at a time: exactly, and in bounded memory.

What comes out is the value of spec §6.3, rounded once to the type that is asked for. Rows do not depend on
each other, so a matrix is rebuilt some rows at a time, on as many threads as torch uses.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

import bsformat
from bsformat import Container, Form, Tensor, payload, rebuild, sparse
from bsformat.atomic import writing
from bsformat.errors import ModelError
from bsformat.registry import FLOAT_DTYPES

from .progress import Reporter, so_far

Array = npt.NDArray[Any]

#: Types that tensors are rebuilt in, and what numpy holds them in; it has no bfloat16.
ARRAYS: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
#: Elements that are rebuilt at a time, in float64; and what rows are cut at, as sparse blocks are.
_ELEMENTS: Final = 1 << 17
_ROWS: Final = sparse.TILE


class Prefix:
    """The tensors that a budget buys. Use it in a ``with`` statement, which ends its threads.

    Attributes:
        container: the file. plan: the blocks that count.

    Args:
        budget: as `bsformat.Container.plan` takes it.

    Raises:
        BudgetError: it is no size, or below the minimum.
    """

    def __init__(self, container: Container, budget: int | str) -> None:
        self.container, self.plan = container, container.plan(budget)
        chains = container.index.chain[: self.plan.n_blocks]
        self._order = np.argsort(chains, kind="stable")
        self._chains = chains[self._order]
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()))

    def __enter__(self) -> "Prefix":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the model, by name."""
        return self.container.model_tensors

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """That of the model's parameter."""
        return (*tensor.shape[:-2], *tensor.shape[-2:][::-1]) if tensor.transposed else tensor.shape

    def value(self, tensor: Tensor, dtype: str) -> Array:
        """The model's parameter.

        Args:
            dtype: ``F32``, ``F16`` or ``BF16``; tensors that hold no floating-point numbers stay what they are.

        Returns:
            An array of `shape`: float32, float16, or uint16 with the bits of bfloat16; of raw tensors that hold no
            floating-point numbers, their bytes, uint8 and flat.

        Raises:
            ModelError: reason ``export-overflow``: the type cannot hold a weight. SourceError, FormatError: as
                `bsformat.Container.read_block`.
        """
        if not tensor.packed and tensor.dtype not in FLOAT_DTYPES:
            return np.frombuffer(self._blocks(tensor.first_chain)[0][1], np.uint8)
        out = np.empty(tensor.rows * tensor.columns, ARRAYS[dtype])
        at = 0
        for piece in self._packed(tensor, dtype) if tensor.packed else self._raw(tensor, dtype):
            out[at : at + piece.size] = piece.reshape(-1)
            at += piece.size
        stored = out.reshape(tensor.shape)
        return np.ascontiguousarray(stored.swapaxes(-1, -2)) if tensor.transposed else stored

    def _blocks(self, chain: int) -> list[tuple[Form, bytes]]:
        first, stop = np.searchsorted(self._chains, [chain, chain + 1])
        numbers = self._order[first:stop].tolist()
        return [(self.container.block(n).form, self.container.read_block(n)) for n in numbers]

    def _scale(self, number: int) -> Array:
        tensor = self.container.tensors[number]
        data = np.frombuffer(self._blocks(tensor.first_chain)[0][1], np.uint8)
        return payload.as_float(data, tensor.dtype).reshape(tensor.shape)

    def _raw(self, tensor: Tensor, dtype: str) -> Iterator[Array]:
        data = np.frombuffer(self._blocks(tensor.first_chain)[0][1], np.uint8)
        if tensor.dtype == dtype:
            yield data.view(ARRAYS[dtype])
            return
        step = _ELEMENTS * (tensor.dense_bytes // max(1, tensor.rows * tensor.columns))
        for at in range(0, len(data), step):
            yield _rounded(payload.as_float(data[at : at + step], tensor.dtype), dtype, tensor.name)

    def _packed(self, tensor: Tensor, dtype: str) -> Iterator[Array]:
        row_scale, col_scale = self._scale(tensor.row_scale), self._scale(tensor.col_scale)
        step = max(_ROWS, _ELEMENTS // tensor.columns // _ROWS * _ROWS)
        for group in range(tensor.n_chains):
            start = group * tensor.group_rows
            rows = min(tensor.group_rows, tensor.rows - start)
            blocks = self._blocks(tensor.first_chain + group)
            columns = col_scale if col_scale.ndim == 1 else col_scale[group]

            def piece(
                first: int, start: int = start, rows: int = rows, blocks: Any = blocks, col: Any = columns
            ) -> Array:
                stop = min(rows, first + step)
                own = [part for form, data in blocks if (part := rows_of(form, tensor, rows, data, first, stop))]
                scale = row_scale[start + first : start + stop]
                return _rounded(rebuild.chain_values(tensor, stop - first, own, scale, col), dtype, tensor.name)

            yield from self._pool.map(piece, range(0, rows, step))


def rows_of(form: Form, tensor: Tensor, rows: int, data: bytes, first: int, stop: int) -> tuple[Form, bytes] | None:
    """The part of a block that concerns rows [first, stop) of its chain, as a block of those rows (spec §6.8).

    Args:
        rows: of the chain. first: a multiple of 64.

    Returns:
        None for a sparse block without entries there.
    """
    if form.kind == "sparse":
        entries = sparse.split(rows, data)
        begin = entries.row_starts()
        low, high = int(begin[first]), int(begin[stop])
        if low == high:
            return None
        row = np.repeat(np.arange(stop - first), np.diff(begin[first : stop + 1]))
        columns, values = entries.columns[low:high], entries.values[low:high]
        return form, sparse.join(stop - first, entries.scale, row, columns, values)
    parts = payload.split(form, tensor, rows, data)
    signs = payload.join_plane(parts.signs[first:stop])
    return form, signs + (payload.join_lowrank(parts.u[first:stop], parts.v, parts.scale) if form.has_factors else b"")


def _rounded(values: Array, dtype: str, name: str) -> Array:
    rounded = rebuild.round_to(values, dtype)
    if not np.isfinite(rounded).all() and np.isfinite(values).all():
        most = float(np.abs(values).max())
        raise ModelError(
            f"{name} has a weight of {most:.3g}, which {dtype} cannot hold: export it in another type",
            reason="export-overflow",
        )
    return (rounded.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else rounded


@contextmanager
def opened(
    uri: str | os.PathLike[str],
    budget: int | str,
    near: Path,
    *,
    root: str | None = None,
    report: Reporter,
    **options: Any,
) -> Iterator[Prefix]:
    """The tensors that a budget buys of a file. Of one that is not on this machine, the prefix is fetched first.

    Args:
        near: a path beside which a fetched prefix may lie; it is removed at the end.
        report: told how far fetching is.
        options: those of `bsformat.open`.

    Raises:
        SourceError, FormatError, BudgetError: as `bsformat.open` and `bsformat.fetch`. WriteError: there is no room.
    """
    with (
        _local(uri, budget, near, root, report, options) as (path, bought, known),
        bsformat.open(path, root=known, **options) as container,
        Prefix(container, bought) as prefix,
    ):
        yield prefix


@contextmanager
def _local(
    uri: str | os.PathLike[str],
    budget: int | str,
    near: Path,
    root: str | None,
    report: Reporter,
    options: dict[str, Any],
) -> Iterator[tuple[str | os.PathLike[str], int | str, str | None]]:
    """Where the file is on this machine, what is to be taken of that, and the root that it must have."""
    if "://" not in os.fspath(uri) or os.fspath(uri).startswith("file://"):
        yield uri, budget, root
        return
    with writing(os.fspath(near)):
        folder = TemporaryDirectory(dir=near.parent, prefix=f".{near.name}.", suffix=".fetched")
    with folder:
        with so_far(report, "fetch") as progress:
            path = Path(folder.name, "prefix.bstk")
            fetched = bsformat.fetch(uri, path, budget, root=root, progress=progress, **options)
        yield fetched.path, "100%", fetched.root  # percentages of a prefix file count what it holds
