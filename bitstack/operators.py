"""The product with a packed matrix as torch sees it: with a gradient to its input, and as an operator of a graph.

Blocks are data, so a graph that torch compiled survives a resize: it calls these operators, and they take what is
resident when they run.
"""

import itertools
import weakref
from typing import TYPE_CHECKING, Any, Final

import torch

from bitstack import kernels

if TYPE_CHECKING:
    from .packed import PackedTensor

#: Packed tensors by their numbers: a compiled graph names its operands by numbers.
_known: "Final[weakref.WeakValueDictionary[int, PackedTensor]]" = weakref.WeakValueDictionary()
_numbers: Final = itertools.count(1)
#: The number of the group that means all of them.
ALL: Final = -1


def number(packed: "PackedTensor") -> int:
    """Make a packed tensor known to the operators, for as long as it lives, and give its number."""
    chosen = next(_numbers)
    _known[chosen] = packed
    return chosen


def _matrix(handle: int, group: int) -> Any:
    return _known[handle].operand(None if group == ALL else group)


class _Product(torch.autograd.Function):
    """x·Wᵀ; keeps the blocks that were resident for the backward pass, and no dense W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """See `linear`."""
        ctx.matrix = matrix
        return kernels.linear(x, matrix, bias=bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        """Dx = dy·W, with W rebuilt tile by tile."""
        dx = kernels.input_gradient(dy, ctx.matrix) if ctx.needs_input_grad[0] else None
        bias = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, bias


def linear(packed: "PackedTensor", x: torch.Tensor, group: int | None, bias: torch.Tensor | None) -> torch.Tensor:
    """x·Wᵀ + bias, with gradients to x and bias where they are asked for.

    The backward pass sees the blocks of the forward pass on a CPU, where chains never change; on a GPU those that are
    resident by then, so that whoever resizes while training holds `Elastic.frozen` over both.
    """
    if torch.compiler.is_compiling():
        rows = packed.tensor.rows if group is None else packed.group_rows(group)
        y: torch.Tensor = torch.ops.bitstack.linear(x, packed.number, ALL if group is None else group, rows)
        return y if bias is None else y + bias
    matrix = packed.operand(group)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        result: torch.Tensor = _Product.apply(x, matrix, bias)  # type: ignore[no-untyped-call]
        return result
    return kernels.linear(x, matrix, bias=bias)


def lookup(packed: "PackedTensor", ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of W by number: int64 [n] -> [n, columns]."""
    if torch.compiler.is_compiling():
        result: torch.Tensor = torch.ops.bitstack.rows(ids, packed.number, packed.tensor.columns, dtype)
        return result
    return kernels.rows(packed.operand(None), ids, dtype=dtype)


@torch.library.custom_op("bitstack::linear", mutates_args=())
def _linear(x: torch.Tensor, handle: int, group: int, rows: int) -> torch.Tensor:
    return kernels.linear(x, _matrix(handle, group))


@_linear.register_fake
def _linear_shape(x: torch.Tensor, handle: int, group: int, rows: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.custom_op("bitstack::input_gradient", mutates_args=())
def _input_gradient(dy: torch.Tensor, handle: int, group: int, columns: int) -> torch.Tensor:
    return kernels.input_gradient(dy, _matrix(handle, group))


@_input_gradient.register_fake
def _input_gradient_shape(dy: torch.Tensor, handle: int, group: int, columns: int) -> torch.Tensor:
    return dy.new_empty(*dy.shape[:-1], columns)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, ctx.handle, ctx.group, _ = inputs
    ctx.columns = x.shape[-1]


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    return torch.ops.bitstack.input_gradient(dy, ctx.handle, ctx.group, ctx.columns), None, None, None


_linear.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op("bitstack::rows", mutates_args=())
def _rows(ids: torch.Tensor, handle: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return kernels.rows(_matrix(handle, ALL), ids, dtype=dtype)


@_rows.register_fake
def _rows_shape(ids: torch.Tensor, handle: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return ids.new_empty(len(ids), columns, dtype=dtype)
