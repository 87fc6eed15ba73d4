"""What a module sees in the place of a weight that is not there as a dense tensor.

A stand-in takes part in torch's functions as the tensor would (a tensor-like type, see `torch.overrides`), so that a
module keeps its own forward, whatever that adds: the product and the look-up go to the source of the weight, and every
function not known here gets the matrix rebuilt. The answer is the same either way; only the workspace differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import torch
from torch import nn
from torch.nn import functional


class Source(Protocol):
    """One matrix W [rows, columns], however it is kept."""

    rows: int
    columns: int

    @property
    def dtype(self) -> torch.dtype:
        """The element type that W has for its module."""
        ...

    @property
    def device(self) -> torch.device:
        """Where W is."""
        ...

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """x·Wᵀ: [..., columns] -> [..., rows], in x's type."""
        ...

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of W by number: int64 [...] -> [..., columns], in W's type."""
        ...

    def dense(self) -> torch.Tensor:
        """W itself, [rows, columns], in W's type."""
        ...


class StandIn(ABC):
    """What matrices and stacks of matrices share: all that a tensor of this shape is asked for without computing."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: Final = False

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """The tensor that this stands for, rebuilt."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The shape, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def is_meta(self) -> bool:
        """As of a weight that is there."""
        return False

    @property
    def data(self) -> torch.Tensor:
        """A copy of the tensor that this stands for; it cannot be put back.

        Raises:
            TypeError: when it is assigned.
        """
        return self.dense()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise TypeError(
            "a packed weight cannot be changed or merged into: keep the adapter beside it, or add it to the dense "
            "model and pack that"
        )

    def is_floating_point(self) -> bool:
        """As of a weight."""
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        return self.dense()[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # protocols (copying, pickling) ask for what is not there
            raise AttributeError(name)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = _KNOWN.get(func)
        result = NotImplemented if known is None else known(*args, **(kwargs or {}))
        if result is NotImplemented:
            return func(*_rebuilt(args), **_rebuilt(kwargs or {}))
        return result


class Matrix(StandIn):
    """Stands for W [rows, columns], or for Wᵀ.

    Args:
        source: of W.
        flipped: this is Wᵀ, so that W is this one's transpose.
    """

    def __init__(self, source: Source, *, flipped: bool = False) -> None:
        self.source, self.flipped = source, flipped

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """[rows, columns], or the other way round."""
        size = (self.source.rows, self.source.columns)
        return torch.Size(size[::-1] if self.flipped else size)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of the source."""
        return self.source.device

    def dense(self) -> torch.Tensor:
        """See `StandIn.dense`."""
        weight = self.source.dense()
        return weight.T if self.flipped else weight

    @property
    def T(self) -> "Matrix":
        """The transpose, nothing rebuilt."""
        return Matrix(self.source, flipped=not self.flipped)

    mT = T

    def t(self) -> "Matrix":
        """The transpose, nothing rebuilt."""
        return self.T

    def transpose(self, first: int, second: int) -> "Matrix":
        """The transpose, or this one if both dimensions are the same; nothing rebuilt."""
        return self if first % 2 == second % 2 else self.T


class Stack(StandIn):
    """Stands for a stack of matrices [E, rows, columns], of which a module takes one at a time or all at once: experts.

    Args:
        sources: of each matrix.
        flipped: each of them is the transpose of its source's.
    """

    def __init__(self, sources: list[Source], *, flipped: bool = False) -> None:
        self.matrices = [Matrix(source, flipped=flipped) for source in sources]

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """[E, rows, columns]."""
        return torch.Size((len(self.matrices), *self.matrices[0].shape))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type of the sources."""
        return self.matrices[0].dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of the sources."""
        return self.matrices[0].device

    def dense(self) -> torch.Tensor:
        """See `StandIn.dense`."""
        return torch.stack([matrix.dense() for matrix in self.matrices])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, torch.Tensor) and key.ndim == 0 and key.dtype in (torch.int64, torch.int32):
            key = int(key)
        return self.matrices[key] if type(key) is int else self.dense()[key]


class Whole(StandIn):
    """Stands for a tensor that is rebuilt whole at every use.

    Args:
        shape: of the tensor.
        source: of all its elements as one matrix; it has the type and the device.
        dense: rebuilds it.
    """

    def __init__(self, shape: Iterable[int], source: Source, dense: Callable[[], torch.Tensor]) -> None:
        self.shape, self.source, self._dense = torch.Size(shape), source, dense

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of the source."""
        return self.source.device

    def dense(self) -> torch.Tensor:
        """See `StandIn.dense`."""
        return self._dense()


def put_in(module: nn.Module, attribute: str, stand_in: StandIn) -> None:
    """Make a module see a stand-in for one of its parameters; the parameter stays registered, but hidden."""
    vars(module)[attribute] = stand_in


def take_out(module: nn.Module, attribute: str) -> None:
    """Undo `put_in`."""
    del vars(module)[attribute]


def _rebuilt(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.dense()
    if isinstance(value, list | tuple):
        return type(value)(map(_rebuilt, value))
    return {k: _rebuilt(v) for k, v in value.items()} if isinstance(value, dict) else value


def _linear(input: Any, weight: Any, bias: torch.Tensor | None = None) -> Any:
    if isinstance(input, StandIn) or not isinstance(weight, Matrix) or weight.flipped:
        return NotImplemented
    y = weight.source.linear(input)
    return y if bias is None else y + bias


def _matmul(input: Any, other: Any) -> Any:
    if isinstance(input, StandIn) or not isinstance(other, Matrix) or not other.flipped:
        return NotImplemented
    return other.source.linear(input)


def _bmm(input: Any, other: Any) -> Any:
    """All experts at once, each with tokens of its own."""
    if isinstance(input, StandIn) or not isinstance(other, Stack) or not other.matrices[0].flipped:
        return NotImplemented
    return torch.stack([matrix.source.linear(x) for x, matrix in zip(input, other.matrices, strict=True)])


def _embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, *rest: Any, **more: Any
) -> Any:
    if isinstance(input, StandIn) or not isinstance(weight, Matrix) or weight.flipped or max_norm is not None:
        return NotImplemented
    return weight.source.lookup(input)


#: Functions that need not rebuild anything. Each gives NotImplemented where its arguments are of another form.
_KNOWN: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.matmul: _matmul,
    torch.bmm: _bmm,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.bmm: _bmm,
    torch.Tensor.mm: _matmul,
}
