"""Second moments of inputs and of output gradients, noted while somebody else runs the model.

For a linear layer y = x·Wᵀ the loss changes by about tr over rows i of g2[i] · (E H Eᵀ)[i, i] when W changes by E,
with H the mean of x xᵀ and g2 the squared gradient of the loss at y, a token of the text (the diagonal blocks of the
Fisher information, with the tokens' coupling dropped).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from .probe import use_eager_experts
from .standin import Matrix, Source, Stack, put_in, take_out
from .targets import Target, Use

#: Share of the mean expert's g2 that every expert has at least: one that the text never reached may be needed later.
EXPERT_FLOOR: Final = 0.02


@dataclass(slots=True)
class LinearStatistics:
    """Of one linear layer with W [M, N], or of all experts of one stack, M rows together.

    Attributes:
        hessian: float32 [N, N], mean of x xᵀ over what the layer was given; shared by layers with the same input, and
            by the experts of a stack, where it is the mean over all that was routed to any of them.
        output: float64 [M], squared gradient of the loss (summed over tokens) at the layer's output, per token of the
            text: an expert that runs for one token in ten weighs a tenth.
    """

    hessian: torch.Tensor
    output: torch.Tensor


@dataclass(slots=True)
class TokenStatistics:
    """Of a matrix whose rows are token ids, [V, D]: an error e in row v costs the sum over uses of w[v] · e A eᵀ.

    Attributes:
        terms: (w float64 [V], A float32 [D, D]) for each use: token frequency and second moment of the gradient of an
            embedding, squared logit gradient and second moment of the hidden states of an output head.
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

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(size, size, device=device)
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        self.sum.addmm_(flat.T, flat)
        self.count += len(flat)

    def mean(self) -> torch.Tensor:
        return self.sum.cpu() / self.count if self.count else torch.eye(len(self.sum))


class _Squares:
    """The running sum of squares over all but the last dimension, and of how many rows."""

    def __init__(self, size: int) -> None:
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.count = 0

    def add(self, x: torch.Tensor, first: int = 0) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        squares = torch.linalg.vector_norm(flat, dim=0, dtype=torch.float32).double().square()
        self.sum = self.sum.to(x.device)
        self.sum[first : first + len(squares)] += squares
        self.count += len(flat)

    def mean(self) -> torch.Tensor:
        return self.sum.cpu() / max(self.count, 1)


class Collector:
    """Notes what every use of the targets sees, forward and backward, in whatever part of the model is run.

    It hangs on modules while `attached`, and knows nothing of who drives them: a driver may run the whole model, or
    one layer at a time. Each use has its own statistics, so that the text may come in any number of batches.

    Args:
        targets: of the whole model.
        vocabulary: the module that turns token ids into vectors, by its path; its look-ups are counted by row.
    """

    def __init__(self, targets: Iterable[Target], vocabulary: str = "") -> None:
        self.targets = list(targets)
        self._of = {use.name: (target, use) for target in self.targets for use in target.uses}
        self._vocabulary = vocabulary
        self._moments: dict[str, _Moment] = {}
        self._tables: dict[str, _Moment] = {}
        self._outputs: dict[str, _Squares] = {}
        self._frequency: dict[str, torch.Tensor] = {}
        self._seen: list[tuple[torch.Tensor, _Moment]] = []

    @contextmanager
    def attached(self, root: nn.Module, prefix: str = "") -> Iterator[None]:
        """Within it, running ``root`` or any module in it is noted.

        What an embedding looks up gets a gradient, so that a loss computed from it can be differentiated although no
        parameter asks for one. Modules that keep their own forward see a stand-in, which reads the parameter that is
        registered at that moment. All is undone at the end.

        Args:
            prefix: the path of ``root`` in the model; empty for the model itself.
        """
        undo: list[Callable[[], object]] = []
        try:
            for path, module in root.named_modules(prefix=prefix):
                for attribute in list(module._parameters):
                    found = self._of.get(f"{path}.{attribute}" if path else attribute)
                    if found is not None:
                        undo.append(self._attach(module, *found))
                        undo.append(_eager(module))
            yield
        finally:
            self.forget_inputs()
            for step in reversed(undo):
                step()

    def _attach(self, module: nn.Module, target: Target, use: Use) -> Callable[[], object]:
        if use.own_forward:
            sources: list[Source] = [
                _Observed(self, module, target, use, number) for number in range(max(target.experts, 1))
            ]
            seen = Stack if target.experts else Matrix
            put_in(module, use.attribute, seen(sources if target.experts else sources[0], flipped=target.transposed))  # type: ignore[arg-type]
            return lambda: take_out(module, use.attribute)

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if use.role == "embedding":
                return self.looked_up(use, target, args[0], output)
            self.multiplied(use, target, args[0], output)
            return None

        return module.register_forward_hook(hook).remove

    def multiplied(self, use: Use, target: Target, x: torch.Tensor, y: torch.Tensor, first_row: int = 0) -> None:
        """Note a product y = x·Wᵀ, and the gradient at y when it comes; of the rows of W from ``first_row`` on."""
        if target.by_token:
            self._tables.setdefault(use.name, _Moment(target.columns, x.device)).add(x)
        else:
            self._add_moment(use.name, x)
        if y.requires_grad:  # a layer whose input does not depend on the text has no gradient
            squares = self._outputs.setdefault(use.name, _Squares(target.rows))
            y.register_hook(lambda gradient: squares.add(gradient, first_row))  # type: ignore[no-untyped-call]

    def looked_up(self, use: Use, target: Target, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Note a look-up of rows; what to compute with instead, so that the gradient at them is noted, too."""
        if use.module == self._vocabulary:
            counts = torch.bincount(ids.flatten().cpu(), minlength=target.rows).double()
            self._frequency[use.name] = self._frequency.get(use.name, 0) + counts
        if not torch.is_grad_enabled():
            return rows
        leaf = rows.detach().requires_grad_()
        moment = self._tables.setdefault(use.name, _Moment(target.columns, rows.device))
        leaf.register_hook(moment.add)  # type: ignore[no-untyped-call]
        return leaf.clone()  # not the leaf itself, which a module must not change in place

    def _add_moment(self, name: str, x: torch.Tensor) -> None:
        """Layers that read the same tensor (q, k and v, say) share one moment, added to once."""
        for seen, moment in self._seen:
            if seen is x and self._moments.setdefault(name, moment) is moment:
                return
        if name not in self._moments:
            self._moments[name] = _Moment(x.shape[-1], x.device)
        moment = self._moments[name]
        moment.add(x)
        self._seen.append((x, moment))

    def forget_inputs(self) -> None:
        """Let go of the inputs of this batch; to be called after each."""
        self._seen.clear()

    def statistics(self, tokens: int, gradient_tokens: int | None = None) -> Statistics:
        """The means of everything noted.

        Args:
            tokens: how many tokens of text went through the model.
            gradient_tokens: how many of them went back as well; None is all of them.
        """
        back = max(tokens if gradient_tokens is None else gradient_tokens, 1)
        means = {id(moment): moment.mean() for moment in self._moments.values()}
        linear, token = {}, {}
        for target in self.targets:
            if target.by_token:
                token[target.name] = TokenStatistics([self._term(use, target, tokens, back) for use in target.uses])
                continue
            names = [use.name for use in target.uses]
            hessians = [means[id(self._moments[name])] for name in names if name in self._moments]
            if not hessians:  # the layer never ran
                hessians = [torch.eye(target.columns)]
            hessian = hessians[0] if len(hessians) == 1 else torch.stack(hessians).mean(0)
            # A weight shared by several layers feels the sum of what they feel.
            output = sum((self._output(name, target.rows) / back for name in names), torch.zeros(target.rows).double())
            linear[target.name] = LinearStatistics(hessian, _with_floor(output, target))
        return Statistics(linear, token, tokens)

    def _output(self, name: str, size: int) -> torch.Tensor:
        return self._outputs[name].sum.cpu() if name in self._outputs else torch.zeros(size, dtype=torch.float64)

    def _term(self, use: Use, target: Target, tokens: int, back: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self._tables.get(use.name, _Moment(target.columns))
        if use.role != "embedding":
            return self._output(use.name, target.rows) / back, seen.mean()
        gradient = seen.sum / back
        if use.name in self._frequency:
            return self._frequency[use.name] / tokens, gradient
        # Positions or token types: every row alike.
        return torch.full((target.rows,), 1.0 / target.rows, dtype=torch.float64), gradient


class _Observed:
    """A dense matrix as `Source` that tells a collector of its uses.

    Args:
        number: which matrix of the parameter, if that is a stack.
    """

    def __init__(self, collector: Collector, module: nn.Module, target: Target, use: Use, number: int) -> None:
        self._collector, self._module, self._target, self._use = collector, module, target, use
        self._number = number
        self.rows = target.rows // max(target.experts, 1)
        self.columns = target.columns

    def _parameter(self) -> torch.Tensor:
        parameter = self._module._parameters[self._use.attribute]
        if parameter is None:
            raise RuntimeError(f"{self._use.name} was taken away while it was watched")
        return parameter

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter().dtype

    @property
    def device(self) -> torch.device:
        return self._parameter().device

    def dense(self) -> torch.Tensor:
        parameter = self._parameter()
        matrix = parameter[self._number] if self._target.experts else parameter
        return matrix.T if self._target.transposed else matrix

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.dense())
        self._collector.multiplied(self._use, self._target, x, y, self._number * self.rows)
        return y

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return self._collector.looked_up(self._use, self._target, ids, functional.embedding(ids, self.dense()))


def _eager(module: nn.Module) -> Callable[[], object]:
    before = use_eager_experts(module)
    return lambda: None if before is None else setattr(module.config, "_experts_implementation", before)


def _with_floor(output: torch.Tensor, target: Target) -> torch.Tensor:
    if not target.experts:
        return output
    mean = output.view(target.experts, -1).mean(0)
    return output + EXPERT_FLOOR * mean.repeat(target.experts)
