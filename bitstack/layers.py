"""The layers that run on packed weights, and what stands for one in a module that keeps its own forward."""

from collections.abc import Callable

import torch
from torch import nn

from .packed import PackedTensor
from .siblings import Siblings
from .standin import Matrix, Source, Stack, StandIn, Whole, put_in


class _Packed(nn.Module):
    """What the layers share: a weight that is a `PackedTensor`, which follows the module from device to device."""

    _like: torch.Tensor

    def __init__(self, packed: PackedTensor, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # that of a subclass's other base would make a dense weight
        self.packed = packed
        # A buffer of no elements follows `.to(dtype)`, and so says what type the model computes in.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._like.dtype

    def stand_in(self) -> StandIn:
        """What acts as the dense parameter: a matrix, or a stack of them if each is a chain of its own."""
        tensor = self.packed.tensor
        if len(tensor.shape) == 2:
            return Matrix(_PackedSource(self), flipped=tensor.transposed)
        if len(tensor.shape) != 3 or tensor.group_rows != tensor.shape[1]:
            shape = (*tensor.shape[:-2], *tensor.shape[-2:][::-1]) if tensor.transposed else tensor.shape
            return Whole(shape, _PackedSource(self), lambda: self.packed.dense(self.dtype))
        sources: list[Source] = [_PackedSource(self, group) for group in range(tensor.n_chains)]
        return Stack(sources, flipped=tensor.transposed)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "_Packed":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed.apply(fn)
        return self


class BitStackLinear(_Packed, nn.Linear):
    """y = x·Wᵀ + b on a packed W [out_features, in_features]; also in place of transformers' Conv1D.

    Gradients go to x and b, and W stays what it is. To others it is a linear layer, so that adapters know what to do
    with it.

    Args:
        packed: the weight.
        bias: [out_features] or None.
        dtype: the type of its weight, as others see it; the model's.
    """

    bias: nn.Parameter | None  # type: ignore[assignment]
    #: Layers that are given the same x, and its place among them.
    siblings: Siblings | None = None
    place: int = 0

    def __init__(
        self, packed: PackedTensor, bias: nn.Parameter | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(packed, dtype)
        self.in_features, self.out_features = packed.tensor.columns, packed.tensor.rows
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> StandIn:  # type: ignore[override]
        """What acts as the dense weight; `StandIn.dense` rebuilds it."""
        return self.stand_in()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features], in x's type."""
        if self.siblings is not None and not torch.compiler.is_compiling():
            y = self.siblings.product(self, x)
            if y is not None:
                return y
        return self.packed.linear(x, bias=self.bias)

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

    def __init__(self, packed: PackedTensor, padding_idx: int | None, dtype: torch.dtype) -> None:
        super().__init__(packed, dtype)
        self.num_embeddings, self.embedding_dim = packed.tensor.rows, packed.tensor.columns
        self.padding_idx = padding_idx

    @property
    def weight(self) -> StandIn:
        """What acts as the dense weight; `StandIn.dense` rebuilds it."""
        return self.stand_in()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., embedding_dim]."""
        return self.packed.rows(ids, self.dtype)

    def extra_repr(self) -> str:
        """Shape and what is resident."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {_resident(self.packed)}"


class BitStackParameter(_Packed):
    """A packed parameter of a module that keeps its own forward: a subclass of a linear layer, a stack of experts.

    It is a child of that module, so that it follows it from device to device; the module computes with a stand-in.

    Args:
        packed: the weight.
        dtype: the type that the module sees; the model's.
    """

    def install(self, module: nn.Module, attribute: str) -> None:
        """Take the place of a parameter; among the module's children as ``packed_`` and the parameter's name."""
        module._parameters.pop(attribute, None)
        module.add_module(f"packed_{attribute}", self)
        put_in(module, attribute, self.stand_in())

    def extra_repr(self) -> str:
        """Shape and what is resident."""
        return f"{list(self.packed.tensor.shape)}, {_resident(self.packed)}"


class _PackedSource:
    """A packed matrix, or one chain of it, as `Source`."""

    def __init__(self, owner: _Packed, group: int | None = None) -> None:
        self._owner, self._group = owner, group
        tensor = owner.packed.tensor
        self.rows = tensor.rows if group is None else tensor.group_rows
        self.columns = tensor.columns

    @property
    def dtype(self) -> torch.dtype:
        return self._owner.dtype

    @property
    def device(self) -> torch.device:
        return self._owner.packed.device

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self._owner.packed.linear(x, self._group)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dense()[ids] if self._group is not None else self._owner.packed.rows(ids, self.dtype)

    def dense(self) -> torch.Tensor:
        return self._owner.packed.matrix(self.dtype, self._group)


def _resident(packed: PackedTensor) -> str:
    levels = [packed.levels(group) for group in range(packed.tensor.n_chains)]
    span = str(levels[0]) if min(levels) == max(levels) else f"{min(levels)}-{max(levels)}"
    return f"levels={span}, bytes={packed.nbytes}"
