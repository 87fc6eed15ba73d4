"""A packed tensor in memory: its scales, and the blocks that are resident just now."""

from collections.abc import Callable
from dataclasses import replace

import torch

from bitstack import kernels
from bsformat import Form, Tensor

Move = Callable[[torch.Tensor], torch.Tensor]


class PackedTensor:
    """One matrix W [rows, columns] as chains of resident blocks, one chain for each group of rows.

    Several modules may share it (a tied embedding and output head). Until its scales are set it holds nothing.

    Args:
        tensor: what the file says of it.
        room: what any of its chains may come to hold, so that on a GPU one table does for all of its states; by default
            the table is made anew when it must grow.
    """

    def __init__(self, tensor: Tensor, room: kernels.Room | None = None) -> None:
        self.tensor = tensor
        self._room = room
        self._table: kernels.Table | None = None
        self.row_scale: torch.Tensor | None = None
        self.col_scale: torch.Tensor | None = None
        self._payloads: list[list[tuple[Form, torch.Tensor]]] = [[] for _ in range(tensor.n_chains)]
        self._chains: list[kernels.Chain] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all that is resident for this tensor, scales included."""
        scales = sum(s.nbytes for s in (self.row_scale, self.col_scale) if s is not None)
        return scales + sum(data.nbytes for group in self._payloads for _, data in group)

    @property
    def chains(self) -> list[kernels.Chain]:
        """The chains as they are now; none before the scales are set."""
        return list(self._chains)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return torch.device("cpu") if self.row_scale is None else self.row_scale.device

    def levels(self, group: int) -> int:
        """How many levels of a chain are resident."""
        return len(self._payloads[group])

    def set_scales(self, row_scale: torch.Tensor | None = None, col_scale: torch.Tensor | None = None) -> None:
        """Give it its scales: [rows], and [columns] or [chains, columns]."""
        self.row_scale = self.row_scale if row_scale is None else row_scale
        self.col_scale = self.col_scale if col_scale is None else col_scale
        if self.row_scale is not None and self.col_scale is not None:
            self._chains = [self._chain(group) for group in range(self.tensor.n_chains)]
            self._table = None

    def push(self, group: int, form: Form, payload: torch.Tensor) -> None:
        """Add the next level of a chain: uint8, flat, on the device of the scales. It is kept, not copied."""
        if not self._chains:
            raise RuntimeError(f"{self.tensor.name} has no scales yet")
        self._payloads[group].append((form, payload))
        self._set(group, self._chains[group].add(form.kind, payload, form.rank, form.factors))

    def pop(self, group: int) -> None:
        """Drop the last level of a chain; its memory is freed when no computation uses it any more."""
        chain = self._chains[group]
        self._set(group, replace(chain, blocks=chain.blocks[:-1]))
        self._payloads[group].pop()

    def _set(self, group: int, chain: kernels.Chain) -> None:
        self._chains[group] = chain
        if self._table is not None and self._room is not None:
            self._table.update(chain, group)
        else:
            self._table = None

    def _matrix(self, group: int | None) -> kernels.Chain | kernels.Table:
        """What the kernels compute on: one chain, or the table of all of them."""
        if group is not None or (self.device.type != "cuda" and len(self._chains) == 1):
            return self._chains[group or 0]
        if self._table is None:
            self._table = kernels.Table(self._chains, self._room, row_scale=self.row_scale, col_scale=self.col_scale)
        return self._table

    def _chain(self, group: int) -> kernels.Chain:
        if self.row_scale is None or self.col_scale is None:
            raise RuntimeError(f"{self.tensor.name} has no scales yet")
        start = group * self.tensor.group_rows
        rows = min(self.tensor.group_rows, self.tensor.rows - start)
        col_scale = self.col_scale if self.col_scale.ndim == 1 else self.col_scale[group]
        chain = kernels.Chain(rows, self.tensor.columns, self.row_scale[start : start + rows], col_scale)
        for form, data in self._payloads[group]:
            chain = chain.add(form.kind, data, form.rank, form.factors)
        return chain

    def apply(self, move: Move) -> None:
        """Move everything to another device, as `torch.nn.Module.to` asks; element types stay as they are."""

        def moved(data: torch.Tensor) -> torch.Tensor:
            # Seen as bytes, so that a change of the model's floating type does not touch the stored values.
            return move(data.view(torch.uint8)).view(data.dtype)

        if self.row_scale is None or self.col_scale is None:
            return
        self._payloads = [[(form, move(data)) for form, data in group] for group in self._payloads]
        self.set_scales(moved(self.row_scale), moved(self.col_scale))

    def linear(self, x: torch.Tensor, group: int | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x·Wᵀ + bias: [..., columns] -> [..., rows], in x's type; or those rows that one chain has."""
        return kernels.linear(x, self._matrix(group), bias=bias)

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of W by number: [...] -> [..., columns]."""
        out = kernels.rows(self._matrix(None), ids.reshape(-1), dtype=dtype)
        return out.view(*ids.shape, self.tensor.columns)

    def matrix(self, dtype: torch.dtype = torch.float32, group: int | None = None) -> torch.Tensor:
        """W [rows, columns], rebuilt; or the rows of one chain."""
        return kernels.rebuild(self._matrix(group), dtype=dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The model's parameter, rebuilt, in its own shape and orientation."""
        parameter = self.matrix(dtype).view(self.tensor.shape)
        return parameter.mT if self.tensor.transposed else parameter
