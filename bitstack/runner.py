"""A model run one layer at a time, by its own code.

The layers of a transformer stand in one list, and its forward hands a hidden state from each to the next, along with
masks, position embeddings and whatever else that architecture has. To run layer l, that same forward runs with the
layers before l passing on what they get, layer l fed with a hidden state that was kept, and an end right behind it. So
nothing here knows any architecture, and whether one can be run like this is found out by trying.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from bsformat.errors import ModelError

from .residency import Residency

#: Tokens of the window that a model is tried on.
TRIAL_TOKENS: Final = 48
#: How far the logits may be from those of the plain forward, relative to their norm.
_TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-6}

_Forward = Callable[..., Any]


class Unsuitable(Exception):
    """The model cannot be run one layer at a time; the message says why."""


class _Reached(Exception):
    """Ends a forward, with what was wanted of it."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def forward(model: Any, embedded: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] for embedded tokens [B, T, D]."""
    logits: torch.Tensor = model(inputs_embeds=embedded, use_cache=False).logits
    return logits


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The summed negative log-likelihood of every token [B, T] but the first of its window.

    Raises:
        ModelError: it is not finite.
    """
    # The last position has no label; ignoring it costs less than cutting the logits, which are large.
    labels = nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
    if not torch.isfinite(loss):
        raise ModelError("computes logits that are NaN or infinite", reason="model-values")
    return loss


def find_layers(model: Any) -> str:
    """The path of the list of a model's layers: of the lists that are in no other list, the one with most parameters.

    Raises:
        Unsuitable: there is none.
    """
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer in sizes)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not nested:
            sizes[path] = sum(p.numel() for p in module.parameters())
    if not sizes:
        raise Unsuitable("it has no list of layers")
    return max(sizes, key=lambda path: sizes[path])


class LayerRunner:
    """Runs parts of a model: what comes before the layers, one layer, and what comes after them.

    Args:
        residency: the model, and what puts its weights in place. While this lives, the small weights outside of the
            layers are to be held.
        path: the list of layers.
    """

    def __init__(self, residency: Residency, path: str) -> None:
        self.residency, self.model, self.path = residency, residency.model, path
        self.layers: list[Any] = list(self.model.get_submodule(path))
        if len({id(layer) for layer in self.layers}) != len(self.layers):
            raise Unsuitable("one of its layers is there several times")
        self._hidden = [next(iter(inspect.signature(layer.forward).parameters)) for layer in self.layers]
        self._extra: list[int | None] = [None] * len(self.layers)
        #: Of the hidden state between layers; `check` finds it out.
        self.width = 0
        self._names = [residency.under(f"{path}.{i}") for i in range(len(self.layers))]
        inside = {name for names in self._names for name in names}
        if sum(map(len, self._names)) != len(inside):
            raise Unsuitable("its layers share weights")
        both = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        tables = {id(module) for module in both if module is not None}
        large = [p for p, m in self.model.named_modules() if id(m) in tables]
        self._tables = list(dict.fromkeys(name for path in large for name in residency.under(path)))
        if inside & {*self._tables}:
            raise Unsuitable("a layer shares its weight with an embedding")
        #: Weights outside of layers and tables: few and small, so they stay.
        self.rest = [name for name in residency.names if name not in inside and name not in self._tables]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedded tokens [B, T, D] for ids [B, T]. The tables must be held."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids.to(self.residency.device))
        return embedded

    def tables(self) -> Any:
        """A context in which the input embedding and the output head are in memory."""
        return self.residency.holding(self._tables)

    def layer(self, number: int) -> Any:
        """A context in which a layer is in memory."""
        return self.residency.holding(self._names[number])

    def run_prologue(self, embedded: torch.Tensor) -> torch.Tensor:
        """What the first layer is given [B, T, D]."""

        def first(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            raise _Reached(self._given(layer, args, kwargs))

        return self._run(embedded, {0: first})

    def run_layer(self, number: int, state: torch.Tensor) -> torch.Tensor:
        """What layer ``number`` makes of a hidden state [B, T, D]. It must be held."""
        original: _Forward = self.layers[number].forward

        def fed(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = original(state, *args[1:], **kwargs) if args else original(**{**kwargs, self._hidden[layer]: state})
            raise _Reached(out if isinstance(out, torch.Tensor) else out[0])

        return self._run(self._blank(state), {number: fed})

    def run_epilogue(self, state: torch.Tensor, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, T, V] for what the last layer returned [B, T, D]. The tables must be held."""
        last = len(self.layers) - 1
        with self._replaced({last: lambda layer, args, kwargs: self._returned(layer, state)}):
            return forward(self.model, self._blank(state) if embedded is None else embedded)

    def _blank(self, state: torch.Tensor) -> torch.Tensor:
        """Stands for embedded tokens, where what is made of them is not looked at."""
        width = self.model.get_input_embeddings().embedding_dim
        return state.new_zeros(*state.shape[:2], width)

    def _run(self, embedded: torch.Tensor, special: dict[int, _Forward]) -> torch.Tensor:
        try:
            with self._replaced(special):
                forward(self.model, embedded)
        except _Reached as reached:
            return reached.value
        raise Unsuitable("its forward does not reach all layers")

    @contextmanager
    def _replaced(self, special: dict[int, _Forward]) -> Iterator[None]:
        """Within it, layers pass on what they are given, but the special ones."""

        def passing(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._returned(layer, self._given(layer, args, kwargs))

        def bound(number: int) -> _Forward:
            how: _Forward = special.get(number, passing)

            def run(*args: Any, **kwargs: Any) -> Any:
                return how(number, args, kwargs)

            return run

        for number, layer in enumerate(self.layers):
            layer.forward = bound(number)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _given(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        value = args[0] if args else kwargs.get(self._hidden[layer])
        if not isinstance(value, torch.Tensor) or value.ndim != 3:
            raise Unsuitable("its layers are not given a hidden state of [windows, tokens, width]")
        return value

    def _returned(self, layer: int, state: torch.Tensor) -> Any:
        # What a layer returns beside the hidden state is its attention, say, which nobody asked for; if the model does
        # need it, `check` finds out.
        extra = self._extra[layer]
        return state if extra is None else (state, *[None] * extra)

    # Trying

    @property
    def findings(self) -> dict[str, Any]:
        """What `check` found out, as plain values, so that another run can do without it."""
        return {"width": self.width, "extra": self._extra}

    @findings.setter
    def findings(self, value: dict[str, Any]) -> None:
        self.width, self._extra = value["width"], value["extra"]

    def check(self, ids: torch.Tensor) -> None:
        """Compare with the plain forward on a short window [1, T]. Never more than one layer is in memory.

        A second window, the first one backwards, goes along: a layer that looks at what another one left behind would
        see the wrong window's.

        Raises:
            Unsuitable: it does not come out the same.
        """
        ids = ids[:, :TRIAL_TOKENS]
        with torch.no_grad(), self.tables():
            embedded = [self.embed(one) for one in (ids, ids.flip(1))]
            wanted = [self._plain(one) for one in embedded]
            states = [self.run_prologue(one) for one in embedded]
            self.width = states[0].shape[-1]
            for number in range(len(self.layers)):
                with self.layer(number):
                    states = [self.run_layer(number, state) for state in states]
                if states[0].shape[-1] != self.width:
                    raise Unsuitable("the width of its hidden state changes from layer to layer")
            got = [self.run_epilogue(state) for state in states]
        plain, walked = torch.cat(wanted).float(), torch.cat(got).float()
        if not torch.isfinite(plain).all():
            raise ModelError("computes logits that are NaN or infinite", reason="model-values")
        off = float((walked - plain).norm() / plain.norm().clamp_min(1e-30))
        if not off <= _TOLERANCE.get(self.residency.dtype, 3e-2):
            raise Unsuitable(f"its logits come out {off:.2g} off when it is")

    def _plain(self, embedded: torch.Tensor) -> torch.Tensor:
        """The model's forward, each layer's weights put in place while it runs, and what the layers return noted."""
        order: list[int] = []

        def bound(number: int, original: _Forward) -> _Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                order.append(number)
                self._given(number, args, kwargs)
                with self.layer(number):
                    out = original(*args, **kwargs)
                self._extra[number] = None if isinstance(out, torch.Tensor) else len(out) - 1
                return out

            return run

        for number, layer in enumerate(self.layers):
            layer.forward = bound(number, layer.forward)
        try:
            logits = forward(self.model, embedded)
        finally:
            for layer in self.layers:
                del layer.forward
        if order != list(range(len(self.layers))):
            raise Unsuitable("its layers do not run once each, in their order")
        return logits
