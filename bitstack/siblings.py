"""Layers that are given the same x one after the other, as those of queries, keys and values are.

The first of them has the products of all made, in one launch where the kernels can; the others take theirs. What they
are called with decides, not the architecture: another x, or one that was written to since, gets a product of its own.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import nn

from bitstack import kernels
from bitstack.kernels.cuda_graphs import capture_number
from bitstack.kernels.devices import has_bit_products

if TYPE_CHECKING:
    from .layers import BitStackLinear

#: Names that such layers have in a module.
NAMES: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
#: After products that nobody took have been made so many times in a row, no more are.
PATIENCE: Final = 3


class _State(NamedTuple):
    """What a product of a layer depends on beside x."""

    packed: int
    bias: nn.Parameter | None
    written: int

    def same(self, other: "_State") -> bool:
        return self.packed == other.packed and self.bias is other.bias and self.written == other.written


class _Left(NamedTuple):
    """Products that were made for layers which have not asked for them yet: by the place of the layer."""

    x: torch.Tensor
    version: int
    stream: tuple[int, int]
    products: dict[int, tuple[torch.Tensor, _State]]


class Siblings:
    """Layers of one module; each knows its place among them. A copy of a layer has none.

    Args:
        layers: two or more with as many columns.
    """

    def __init__(self, layers: Sequence["BitStackLinear"]) -> None:
        self._layers = [weakref.ref(layer) for layer in layers]
        self._own = threading.local()
        self._together: kernels.Together | None = None
        self._tables: tuple[weakref.ref[Any], ...] = ()
        self._wasted = 0
        for place, layer in enumerate(layers):
            layer.siblings, layer.place = self, place

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()

    def product(self, layer: "BitStackLinear", x: torch.Tensor) -> torch.Tensor | None:
        """x·Wᵀ + bias of a layer; None where it is to be made alone."""
        if self._wasted >= PATIENCE or type(x) is not torch.Tensor or (stream := _stream(x)) is None:
            return None
        left: _Left | None = getattr(self._own, "left", None)
        if left is not None and left.x is x and left.version == x._version and left.stream == stream:
            return self._take(left, layer)
        layers = [there for ref in self._layers if (there := ref()) is not None]
        if len(layers) < len(self._layers) or layers[layer.place] is not layer:
            return None
        # Inference tensors do not count how often they are written to.
        biases = [each.bias for each in layers]
        if any(tensor is not None and tensor.is_inference() for tensor in (x, *biases)):
            return None
        if _wants_gradient(x, *biases):
            return None
        together = self._made(layers, captured=stream[1] != 0)
        if together is None or x.shape[-1] != layer.in_features or x.device != layer.packed.device:
            return None
        states = [_state(each) for each in layers]
        products = kernels.linear_together(x, together, biases=biases)
        if products is None:
            return None
        if left is not None:
            self._wasted += 1
        made = dict(enumerate(zip(products, states, strict=True)))
        y, _ = made.pop(layer.place)
        self._own.left = _Left(x, x._version, stream, made)
        return y

    def _take(self, left: _Left, layer: "BitStackLinear") -> torch.Tensor | None:
        """What was made for a layer, if it would be the same now."""
        if self._layers[layer.place]() is not layer or layer.place not in left.products:
            return None
        y, state = left.products.pop(layer.place)
        if not left.products:
            self._own.left, self._wasted = None, 0
        return y if state.same(_state(layer)) and not _wants_gradient(left.x, layer.bias) else None

    def _made(self, layers: Sequence["BitStackLinear"], captured: bool) -> kernels.Together | None:
        """What the tables of the layers are multiplied by, if they can be; made anew where they are others."""
        tables = [each.packed.operand(None) for each in layers if each.packed.groups]
        if len(tables) == len(self._tables) and all(
            ref() is table for ref, table in zip(self._tables, tables, strict=True)
        ):
            return self._together
        if captured:
            return None  # shares that a graph writes are there only once it has run
        self._tables = tuple(weakref.ref(table) for table in tables)
        usable = [table for table in tables if isinstance(table, kernels.Table)]
        fit = len(usable) == len(layers) and kernels.Together.possible(usable)
        self._together = kernels.Together(usable) if fit else None
        return self._together


def find_siblings(model: nn.Module) -> None:
    """Let the layers of every module of a model know which of them are given the same x."""
    from .layers import BitStackLinear

    for module in model.modules():
        for names in NAMES:
            children = [module._modules.get(name) for name in names]
            layers = [child for child in children if isinstance(child, BitStackLinear)]
            if len(layers) > 1 and len({layer.in_features for layer in layers}) == 1:
                Siblings(layers)


def _stream(x: torch.Tensor) -> tuple[int, int] | None:
    """The stream that products are made on, and the number of its capture or 0; None where none are made together.

    What a graph captures is there only when that graph has run: nothing outside of it may take it for its own.
    """
    if not x.is_cuda or not has_bit_products(x.device):
        return None
    stream = torch.cuda.current_stream(x.device).cuda_stream
    known = x.get_device() == torch.cuda.current_device()
    return stream, 0 if known and not torch.cuda.is_current_stream_capturing() else capture_number(stream)


def _state(layer: "BitStackLinear") -> _State:
    bias = layer.bias
    return _State(layer.packed.version, bias, 0 if bias is None or bias.is_inference() else bias._version)


def _wants_gradient(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _none() -> None:
    return None
