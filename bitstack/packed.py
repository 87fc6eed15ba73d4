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
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
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

    def push(self, group: int, form: Form, payload: torch.Tensor) -> None:
        """Add the next level of a chain: uint8, flat, on the device of the scales. It is kept, not copied."""
        if not self._chains:
            raise RuntimeError(f"{self.tensor.name} has no scales yet")
        self._chains[group] = self._chains[group].add(form.kind, payload, form.rank, form.factors)
        self._payloads[group].append((form, payload))

    def pop(self, group: int) -> None:
        """Drop the last level of a chain; its memory is freed when no computation uses it any more."""
        chain = self._chains[group]
        self._chains[group] = replace(chain, blocks=chain.blocks[:-1])
        self._payloads[group].pop()

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

    def linear(self, x: torch.Tensor, group: int | None = None) -> torch.Tensor:
        """x·Wᵀ: [..., columns] -> [..., rows], in x's type; with the rows of one chain only if ``group`` names it."""
        chains = self._chains if group is None else [self._chains[group]]
        parts = [kernels.linear(x, chain) for chain in chains]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of W by number: [...] -> [..., columns]."""
        flat = ids.reshape(-1)
        if len(self._chains) == 1:
            out = kernels.rows(self._chains[0], flat, dtype=dtype)
        else:
            out = torch.empty(len(flat), self.tensor.columns, dtype=dtype, device=flat.device)
            group = flat // self.tensor.group_rows
            for number in torch.unique(group).tolist():
                chosen = (group == number).nonzero().squeeze(1)
                local = flat[chosen] - number * self.tensor.group_rows
                out[chosen] = kernels.rows(self._chains[number], local, dtype=dtype)
        return out.view(*ids.shape, self.tensor.columns)

    def matrix(self, dtype: torch.dtype = torch.float32, group: int | None = None) -> torch.Tensor:
        """W [rows, columns], rebuilt; or the rows of one chain."""
        chains = self._chains if group is None else [self._chains[group]]
        parts = [kernels.rebuild(chain, dtype=dtype) for chain in chains]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The model's parameter, rebuilt, in its own shape and orientation."""
        parameter = self.matrix(dtype).view(self.tensor.shape)
        return parameter.mT if self.tensor.transposed else parameter
