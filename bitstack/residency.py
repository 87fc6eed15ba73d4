"""Which weights of a model are in memory just now: those of one layer, and few others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .outline import Outline, Tensors


class Residency:
    """Puts weights into a model on the meta device, and takes them out again.

    Args:
        outline: the model. tensors: its weights.
        device, dtype: where the weights go, and what floating ones become.
    """

    def __init__(self, outline: Outline, tensors: Tensors, *, device: torch.device, dtype: torch.dtype) -> None:
        self.model = outline.model
        self.device, self.dtype = device, dtype
        self._tensors = tensors
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        for name in [*outline.names, *outline.aliases]:
            path, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(path)
            self._places.setdefault(outline.aliases.get(name, name), []).append((owner, attribute))
        self._live: dict[str, int] = {}
        #: Most bytes of weights that were in memory at once.
        self.peak_bytes = 0
        for module in self.model.modules():  # buffers that are in no file
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)
        self._empty = {name: getattr(*places[0]) for name, places in self._places.items()}

    def under(self, path: str) -> list[str]:
        """The tensors that a module holds, by their first names."""
        owners = {id(module) for module in self.model.get_submodule(path).modules()}
        return [n for n, places in self._places.items() if any(id(owner) in owners for owner, _ in places)]

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._places)

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Within it, these tensors are in memory; those that were there before stay there after it."""
        new = [name for name in names if name not in self._live]
        try:
            for name in new:
                self._put(name)
            yield
        finally:
            for name in new:
                self._take(name)

    def _put(self, name: str) -> None:
        stored = self._tensors.get(name)
        value = stored.to(self.device, self.dtype if stored.is_floating_point() else stored.dtype)
        self._live[name] = value.nbytes
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
        self._set(name, value)

    def _take(self, name: str) -> None:
        if self._live.pop(name, None) is not None:
            self._set(name, self._empty[name])

    def _set(self, name: str, value: torch.Tensor) -> None:
        if isinstance(self._empty[name], nn.Parameter) and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        for owner, attribute in self._places[name]:
            if isinstance(value, nn.Parameter):
                owner._parameters[attribute] = value
            else:
                owner._buffers[attribute] = value
