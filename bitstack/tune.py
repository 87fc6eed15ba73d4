"""Tuning scales, norms and biases of a packed model against the dense one, at many budgets at once.

Every level leaves an error, and the layers after it see it. Small multipliers on what every budget shares (row and
column scales, and the raw vectors between the matrices) take back a part of that: they are trained so that the packed
model's next-token distribution comes near the dense one's (Kullback-Leibler divergence), each step at another budget.
Signs and factors stay as they are, so nothing is decomposed again and no block grows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from bitstack import kernels

from .packed import PackedTensor

#: Rows of logits that are compared at once.
_ROWS: Final = 128
#: Tokens that go through the model at once: bounds the memory of activations and logits.
_TOKENS: Final = 512
_WARMUP: Final = 10
_LAST_RATE: Final = 0.05
_BETAS: Final = (0.9, 0.95)
#: Raw vectors feel every token at once, scales only through one matrix.
_VECTOR_RATE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, and how fast.

    Attributes:
        rate: of the logarithmic step of every multiplier (Adam).
        seed: of the order of windows and budgets.
    """

    rate: float
    seed: int


class TunedTensor(PackedTensor):
    """A packed tensor whose scales can be trained: what its blocks up to some level stand for is rebuilt, unscaled.

    Takes the place of a `PackedTensor` in the layers of a model. Holds as many elements as the dense matrix.

    Args:
        packed: with all the blocks that will be used, and its scales.
        dtype: what it computes in.
    """

    def __init__(self, packed: PackedTensor, dtype: torch.dtype) -> None:
        super().__init__(packed.tensor)
        if packed.row_scale is None or packed.col_scale is None:
            raise RuntimeError(f"{packed.tensor.name} has no scales yet")
        self._full = packed.chains
        self._row, self._col = packed.row_scale.float(), packed.col_scale.float()
        self.row_change = torch.zeros_like(self._row, requires_grad=True)
        self.col_change = torch.zeros_like(self._col, requires_grad=True)
        self._core = torch.zeros(packed.tensor.rows, packed.tensor.columns, dtype=dtype, device=self._row.device)
        self._levels: list[int] = [-1] * len(self._full)

    def scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column scales as they are now, float32."""
        return self._row * torch.exp(self.row_change), self._col * torch.exp(self.col_change)

    def use(self, levels: Sequence[int]) -> None:
        """Rebuild what the first so many levels of each chain stand for."""
        start = 0
        for group, (chain, count) in enumerate(zip(self._full, levels, strict=True)):
            if self._levels[group] != count:
                ones = (torch.ones_like(chain.row_scale), torch.ones_like(chain.col_scale))
                plain = replace(chain, row_scale=ones[0], col_scale=ones[1], blocks=chain.blocks[:count])
                kernels.rebuild(plain, dtype=self._core.dtype, out=self._core[start : start + chain.rows])
                self._levels[group] = count
            start += chain.rows

    def _part(self, group: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        row, col = self.scales()
        if group is None and col.ndim == 2:  # every chain has columns of its own
            return self._core, row, col.repeat_interleave(self.tensor.group_rows, 0)[: len(row)]
        if group is None:
            return self._core, row, col
        rows = slice(group * self.tensor.group_rows, (group + 1) * self.tensor.group_rows)
        return self._core[rows], row[rows], col if col.ndim == 1 else col[group]

    def linear(self, x: torch.Tensor, group: int | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See `PackedTensor.linear`; differentiable."""
        core, row, col = self._part(group)
        if col.ndim == 2:
            y = nn.functional.linear(x, core * (row[:, None] * col).to(core.dtype))
        else:
            scaled = (x * col.to(x.dtype)).to(core.dtype)
            y = (nn.functional.linear(scaled, core) * row.to(core.dtype)).to(x.dtype)
        return y if bias is None else y + bias

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `PackedTensor.rows`; differentiable."""
        core, row, col = self._part(None)
        col = col if col.ndim == 1 else col[ids]
        return (core[ids].float() * row[ids][..., None] * col).to(dtype)

    def matrix(self, dtype: torch.dtype = torch.float32, group: int | None = None) -> torch.Tensor:
        """See `PackedTensor.matrix`; differentiable."""
        core, row, col = self._part(group)
        return (core.float() * row[:, None] * col).to(dtype)


def tune(
    model: Any,
    teacher: Callable[[torch.Tensor], torch.Tensor],
    windows: torch.Tensor,
    levels: Sequence[Mapping[str, Sequence[int]]],
    schedule: Schedule,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, torch.Tensor]:
    """Train the scales, norms and biases of a packed model.

    Args:
        model: with all blocks resident. It is left as it was.
        teacher: logits [1, T, V] of the dense model for token ids [1, T].
        windows: int64 [steps, T], a step each.
        levels: the budgets: for each the levels of every chain of every packed tensor, by its name.
        dtype: what the matrices are multiplied in.
        progress: called with 1 after each step.

    Returns:
        New values, float32, by name: the scales as ``NAME#row_scale`` and ``NAME#col_scale``, the vectors by their own.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(schedule.seed)
    order = torch.randperm(len(windows), generator=generator)
    chosen = torch.randint(len(levels), (len(windows),), generator=generator).tolist()
    with _tunable(model, dtype) as (tensors, vectors):
        scales = [change for t in tensors.values() for change in (t.row_change, t.col_change)]
        changes = {name: torch.zeros_like(v, requires_grad=True) for name, v in vectors.items()}
        adam = torch.optim.Adam(
            [
                {"params": scales, "lr": schedule.rate},
                {"params": list(changes.values()), "lr": schedule.rate * _VECTOR_RATE},
            ],
            betas=_BETAS,
        )
        pace = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _pace(step, len(windows)))
        for number, budget in zip(order.tolist(), chosen, strict=True):
            for name, tensor in tensors.items():
                tensor.use(levels[budget][name])
            total = 0.0
            for ids in torch.split(windows[number : number + 1].to(device), _TOKENS, dim=1):
                with torch.no_grad():
                    wanted = teacher(ids)
                changed = {name: v * torch.exp(changes[name]) for name, v in vectors.items()}
                inputs = {"input_ids": ids, "use_cache": False}
                out = torch.func.functional_call(model, changed, (), inputs, strict=False)
                loss = _Divergence.apply(out.logits[0], wanted[0]) / windows.shape[1]  # type: ignore[no-untyped-call]
                loss.backward()
                total += float(loss.detach())
            # Divided by its own root, a step counts alike at small and at large budgets.
            for parameter in [*scales, *changes.values()]:
                if parameter.grad is not None:
                    parameter.grad /= max(total, 1e-24) ** 0.5
            adam.step()
            adam.zero_grad(set_to_none=True)
            pace.step()
            progress(1)
        return dict(_results(tensors, vectors, changes))


def _pace(step: int, steps: int) -> float:
    wave = (1 + math.cos(math.pi * step / max(steps, 1))) / 2
    return min(1.0, (step + 1) / _WARMUP) * (_LAST_RATE + (1 - _LAST_RATE) * wave)


class _Divergence(torch.autograd.Function):
    """Summed Kullback-Leibler divergence of the student's next-token distributions from the teacher's.

    The gradient is known on the way forward and takes the place of the teacher's logits: nothing else so large is held.
    """

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Of logits [T, V] each; ``teacher`` is written over where its type is the student's."""
        gradient = teacher if teacher.dtype == student.dtype else torch.empty_like(student)
        total = torch.zeros((), device=student.device)
        for s, t, g in zip(*(torch.split(logits, _ROWS) for logits in (student, teacher, gradient)), strict=True):
            wanted, got = torch.log_softmax(t.float(), -1), torch.log_softmax(s.float(), -1)
            total += nn.functional.kl_div(got, wanted, log_target=True, reduction="sum")
            g.copy_(got.exp_().sub_(wanted.exp_()))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Of the student's logits only."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outer[0]), None


def _results(
    tensors: Mapping[str, TunedTensor], vectors: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        row, col = tensor.scales()
        yield f"{name}#row_scale", row.detach().cpu()
        yield f"{name}#col_scale", col.detach().cpu()
    for name, vector in vectors.items():
        yield name, (vector * torch.exp(changes[name])).detach().cpu()


@contextmanager
def _tunable(model: Any, dtype: torch.dtype) -> Iterator[tuple[dict[str, TunedTensor], dict[str, torch.Tensor]]]:
    """Within it, the packed tensors of the model can be trained; and its raw vectors, by name, beside them."""
    tensors: dict[int, TunedTensor] = {}
    swapped: list[tuple[nn.Module, PackedTensor]] = []
    for module in model.modules():
        packed = getattr(module, "packed", None)
        if isinstance(packed, PackedTensor):
            swapped.append((module, packed))
            if id(packed) not in tensors:
                tensors[id(packed)] = TunedTensor(packed, dtype)
            vars(module)["packed"] = tensors[id(packed)]
    vectors = {
        name: p.detach().float() for name, p in model.named_parameters() if p.ndim == 1 and p.is_floating_point()
    }
    try:
        yield {t.tensor.name: t for t in tensors.values()}, vectors
    finally:
        for module, packed in swapped:
            vars(module)["packed"] = packed
