"""The layers that run on packed weights."""

from collections.abc import Callable

import torch
from torch import nn

from .packed import PackedTensor


class _Packed(nn.Module):
    """What the layers share: a weight that is a `PackedTensor`, which follows the module from device to device."""

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.packed = packed

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, rebuilt at every access: for inspection, not for computing."""
        return self.packed.dense()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "_Packed":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed.apply(fn)
        return self


class BitStackLinear(_Packed):
    """y = x·Wᵀ + b on a packed W [out_features, in_features]; also in place of transformers' Conv1D.

    Args:
        packed: the weight.
        bias: [out_features] or None.
    """

    bias: nn.Parameter | None

    def __init__(self, packed: PackedTensor, bias: nn.Parameter | None = None) -> None:
        super().__init__(packed)
        self.in_features, self.out_features = packed.tensor.columns, packed.tensor.rows
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features], in x's type."""
        y = self.packed.linear(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Shape and what is resident."""
        bias = self.bias is not None
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {_resident(self.packed)}"
        )


class BitStackEmbedding(_Packed):
    """Rows of a packed table [num_embeddings, embedding_dim].

    Args:
        packed: the table.
        dtype: the type of what it returns; the model's.
    """

    _like: torch.Tensor

    def __init__(self, packed: PackedTensor, padding_idx: int | None, dtype: torch.dtype) -> None:
        super().__init__(packed)
        self.num_embeddings, self.embedding_dim = packed.tensor.rows, packed.tensor.columns
        self.padding_idx = padding_idx
        # A buffer of no elements follows `.to(dtype)`, and so says what type the model computes in.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., embedding_dim]."""
        return self.packed.rows(ids, self._like.dtype)

    def extra_repr(self) -> str:
        """Shape and what is resident."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {_resident(self.packed)}"


def _resident(packed: PackedTensor) -> str:
    levels = [packed.levels(group) for group in range(packed.tensor.n_chains)]
    span = str(levels[0]) if min(levels) == max(levels) else f"{min(levels)}-{max(levels)}"
    return f"levels={span}, bytes={packed.nbytes}"
