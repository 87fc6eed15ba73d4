"""A packed tensor in memory: its scales, and the blocks that are resident just now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bitstack import kernels
from bsformat import Form, Tensor

from . import operators

Move = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The resident levels of one chain. It never changes: growing and shrinking make another.

    Attributes:
        chain: what the kernels compute on, over the bytes of the payloads.
        payloads: uint8, flat, with their forms, in the order of the levels.
    """

    chain: kernels.Chain
    payloads: tuple[tuple[Form, torch.Tensor], ...] = ()

    def pushed(self, form: Form, payload: torch.Tensor) -> "Levels":
        """With one level more: uint8, flat, on the device of the chain. It is kept, not copied."""
        chain = self.chain.add(form.kind, payload, form.rank, form.factors)
        return Levels(chain, (*self.payloads, (form, payload)))

    def popped(self) -> "Levels":
        """Without the last level."""
        return Levels(replace(self.chain, blocks=self.chain.blocks[:-1]), self.payloads[:-1])


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
        self._groups: tuple[Levels, ...] = ()
        #: Another one after every change.
        self.version = 0
        #: What compiled graphs know it by.
        self.number = operators.number(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.number = operators.number(self)  # a copy is another tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all that is resident for this tensor, scales included."""
        blocks = sum(data.nbytes for group in self._groups for _, data in group.payloads)
        return blocks + sum(scale.nbytes for scale in self.scale_vectors)

    @property
    def scale_vectors(self) -> tuple[torch.Tensor, ...]:
        """Its scale vectors, as far as they are set; other tensors of the file may share them."""
        return tuple(scale for scale in (self.row_scale, self.col_scale) if scale is not None)

    @property
    def groups(self) -> tuple[Levels, ...]:
        """The levels of every chain as they are now; none before the scales are set."""
        return self._groups

    @property
    def chains(self) -> list[kernels.Chain]:
        """The chains as they are now; none before the scales are set."""
        return [group.chain for group in self._groups]

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return torch.device("cpu") if self.row_scale is None else self.row_scale.device

    def levels(self, group: int) -> int:
        """How many levels of a chain are resident."""
        return len(self._groups[group].payloads) if self._groups else 0

    def set_scales(self, row_scale: torch.Tensor | None = None, col_scale: torch.Tensor | None = None) -> None:
        """Give it its scales: [rows], and [columns] or [chains, columns]."""
        self.row_scale = self.row_scale if row_scale is None else row_scale
        self.col_scale = self.col_scale if col_scale is None else col_scale
        if self.row_scale is not None and self.col_scale is not None:
            former = [group.payloads for group in self._groups] or [()] * self.tensor.n_chains
            self._groups = tuple(self._over(number, payloads) for number, payloads in enumerate(former))
            self._table = None
            self.version += 1

    def push(self, group: int, form: Form, payload: torch.Tensor) -> None:
        """Add the next level of a chain: uint8, flat, on the device of the scales. It is kept, not copied."""
        self.put({group: self._there(group).pushed(form, payload)})

    def pop(self, group: int) -> None:
        """Drop the last level of a chain; its memory is freed when no computation uses it any more."""
        self.put({group: self._there(group).popped()})

    def put(self, groups: Mapping[int, Levels]) -> None:
        """Put other states of chains in the place of what was there.

        Nothing may compute with this tensor meanwhile: a table on a GPU is written in its place.
        """
        if self._table is not None and self._room is not None:
            for number, levels in groups.items():
                self._table.update(levels.chain, number)
        else:
            self._table = None
        self._groups = tuple(groups.get(number, levels) for number, levels in enumerate(self._groups))
        self.version += 1

    def _there(self, group: int) -> Levels:
        if not self._groups:
            raise RuntimeError(f"{self.tensor.name} has no scales yet")
        return self._groups[group]

    def group_rows(self, group: int) -> int:
        """Rows of W that a chain has."""
        return min(self.tensor.group_rows, self.tensor.rows - group * self.tensor.group_rows)

    def operand(self, group: int | None) -> kernels.Chain | kernels.Table:
        """What the kernels compute on: one chain, or the table of all of them."""
        if group is not None or (self.device.type != "cuda" and len(self._groups) == 1):
            return self._groups[group or 0].chain
        if self._table is None:
            self._table = kernels.Table(self.chains, self._room, row_scale=self.row_scale, col_scale=self.col_scale)
        return self._table

    def _over(self, group: int, payloads: tuple[tuple[Form, torch.Tensor], ...]) -> Levels:
        if self.row_scale is None or self.col_scale is None:
            raise RuntimeError(f"{self.tensor.name} has no scales yet")
        start = group * self.tensor.group_rows
        rows = self.group_rows(group)
        col_scale = self.col_scale if self.col_scale.ndim == 1 else self.col_scale[group]
        levels = Levels(kernels.Chain(rows, self.tensor.columns, self.row_scale[start : start + rows], col_scale))
        for form, data in payloads:
            levels = levels.pushed(form, data)
        return levels

    def apply(self, move: Move) -> None:
        """Move everything to another device, as `torch.nn.Module.to` asks; element types stay as they are."""

        def moved(data: torch.Tensor) -> torch.Tensor:
            # Seen as bytes, so that a change of the model's floating type does not touch the stored values.
            return move(data.view(torch.uint8)).view(data.dtype)

        if self.row_scale is None or self.col_scale is None:
            return
        payloads = [tuple((form, move(data)) for form, data in group.payloads) for group in self._groups]
        self.row_scale, self.col_scale, self._table = moved(self.row_scale), moved(self.col_scale), None
        self._groups = tuple(self._over(number, group) for number, group in enumerate(payloads))
        self.version += 1

    def linear(self, x: torch.Tensor, group: int | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x·Wᵀ + bias: [..., columns] -> [..., rows], in x's type; or those rows that one chain has.

        Gradients go to x and bias; W has none.
        """
        return operators.linear(self, x, group, bias)

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of W by number: [...] -> [..., columns]."""
        out = operators.lookup(self, ids.reshape(-1), dtype)
        return out.view(*ids.shape, self.tensor.columns)

    def matrix(self, dtype: torch.dtype = torch.float32, group: int | None = None) -> torch.Tensor:
        """W [rows, columns], rebuilt; or the rows of one chain."""
        return kernels.rebuild(self.operand(group), dtype=dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The model's parameter, rebuilt, in its own shape and orientation."""
        parameter = self.matrix(dtype).view(self.tensor.shape)
        return parameter.mT if self.tensor.transposed else parameter
