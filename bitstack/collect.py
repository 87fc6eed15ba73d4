"""What is gathered while text goes through a model: second moments of inputs, squares of output gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .targets import Target, Use


@dataclass(slots=True)
class LinearStatistics:
    """Of one linear layer with W [M, N].

    Attributes:
        hessian: float32 [N, N], mean of x xᵀ over tokens; shared by layers with the same input.
        output: float64 [M], mean squared gradient of the loss (summed over tokens) at the layer's output.
    """

    hessian: torch.Tensor
    output: torch.Tensor


@dataclass(slots=True)
class TokenStatistics:
    """Of a matrix whose rows are token ids, [V, D]: diagonal Fisher = Σ over uses of row ⊗ column.

    Attributes:
        terms: one (rows float64 [V], columns float64 [D]) for each use: token frequency and squared gradient of an
            embedding, squared logit gradient and squared hidden state of an output head.
    """

    terms: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


@dataclass(slots=True)
class Statistics:
    """All of a model, by the name of the parameter."""

    linear: dict[str, LinearStatistics]
    token: dict[str, TokenStatistics]
    tokens: int


class _Moment:
    """The running second moment of one input, which several layers may share."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.sum = torch.zeros(size, size, device=device)
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        self.sum.addmm_(flat.T, flat)
        self.count += len(flat)

    def mean(self) -> torch.Tensor:
        return self.sum / max(self.count, 1)


class _Squares:
    """The running mean of squares over all but the last dimension."""

    def __init__(self) -> None:
        self.sum: torch.Tensor | None = None
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        squares = torch.linalg.vector_norm(flat, dim=0, dtype=torch.float32).double().square().cpu()
        self.sum = squares if self.sum is None else self.sum + squares
        self.count += len(flat)

    def mean(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.float64) if self.sum is None else self.sum / self.count


class Collector:
    """Attached to the modules of a model, gathers what the statistics of some targets are made of."""

    def __init__(self, model: Any, targets: list[Target]) -> None:
        self.model, self.targets = model, targets
        self.linear = {u.module: t for t in targets for u in t.uses if u.role != "embedding"}
        self.input_embedding = model.get_input_embeddings()
        self.moments: dict[str, _Moment] = {}
        self.inputs: dict[str, _Squares] = {}
        self.outputs: dict[str, _Squares] = {m: _Squares() for m in self.linear}
        self.embedding = _Squares()
        self.frequency: torch.Tensor | None = None
        self._seen: list[tuple[torch.Tensor, _Moment]] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it, everything that runs through the layers of the targets is counted."""
        handles = []
        for path, module in self.model.named_modules():
            target = self.linear.get(path)
            if target is not None:
                handles.append(module.register_forward_hook(self._hook(path, target)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, target: Target) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if target.by_token:
                self.inputs.setdefault(path, _Squares()).add(args[0])
            else:
                self._add_moment(path, args[0])
            if output.requires_grad:  # a layer whose input does not depend on the text has no gradient
                output.register_hook(self.outputs[path].add)  # type: ignore[no-untyped-call]

        return hook

    def _add_moment(self, path: str, x: torch.Tensor) -> None:
        """Layers that read the same tensor (q, k and v, say) share one moment, added to once."""
        for seen, moment in self._seen:
            if seen is x and self.moments.setdefault(path, moment) is moment:
                return
        moment = self.moments.setdefault(path, _Moment(x.shape[-1], x.device))
        moment.add(x)
        self._seen.append((x, moment))

    def count_tokens(self, ids: torch.Tensor) -> None:
        """Count how often each token id occurs."""
        rows = self.input_embedding.num_embeddings
        counts = torch.bincount(ids.flatten().cpu(), minlength=rows).double()
        self.frequency = counts if self.frequency is None else self.frequency + counts

    def forget_inputs(self) -> None:
        """At the end of a batch: only within one do layers share an input."""
        self._seen.clear()

    def statistics(self, tokens: int) -> Statistics:
        """The means of everything collected over ``tokens`` tokens."""
        means = {id(moment): moment.mean() for moment in self.moments.values()}
        linear, token = {}, {}
        for target in self.targets:
            if target.by_token:
                token[target.name] = TokenStatistics([self._term(u, target, tokens) for u in target.uses])
                continue
            # A weight shared by several layers feels the sum of what they feel.
            paths = [use.module for use in target.uses]
            hessians = [means[id(self.moments[p])] for p in paths if p in self.moments]
            output = sum((self.outputs[p].mean(target.rows) for p in paths), torch.zeros(target.rows).double())
            if not hessians:  # the layer never ran
                hessians = [torch.eye(target.columns)]
            hessian = hessians[0] if len(hessians) == 1 else torch.stack(hessians).mean(0)
            linear[target.name] = LinearStatistics(hessian, output)
        return Statistics(linear, token, tokens)

    def _term(self, use: Use, target: Target, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        if use.role != "embedding":
            inputs = self.inputs.get(use.module, _Squares())
            return self.outputs[use.module].mean(target.rows), inputs.mean(target.columns)
        gradient = self.embedding.mean(target.columns)
        if self.frequency is not None and self.model.get_submodule(use.module) is self.input_embedding:
            return self.frequency / tokens, gradient
        # Positions or token types: every row alike.
        return torch.full((target.rows,), 1.0 / target.rows, dtype=torch.float64), gradient
