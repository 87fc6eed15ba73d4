"""One pass over a little text, forward and backward, that shows what the loss feels (`bitstack.collect`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bsformat.errors import ModelError

from .collect import Collector, LinearStatistics, Statistics, TokenStatistics
from .targets import Target
from .text import Windows

__all__ = ["LinearStatistics", "Statistics", "TokenStatistics", "calibrate"]


def calibrate(
    model: Any,
    targets: list[Target],
    windows: Windows,
    *,
    gradient_tokens: int | None = None,
    batch_tokens: int = 512,
    progress: Callable[[int], object] = lambda n: None,
) -> Statistics:
    """Run the text through the dense model, forward and backward, and collect the statistics of all targets.

    Args:
        model: a model with dense weights, and a task that the windows are prepared for.
        gradient_tokens: how many of the tokens go backward too, in whole batches; None is all of them.
        batch_tokens: tokens at a time; bounds the memory of activations and logits.
        progress: called with the number of tokens done since the last call.

    Raises:
        ModelError: the model's logits are not finite.
    """
    collector = Collector(targets, path_of(model, model.get_input_embeddings()))
    generator = torch.Generator().manual_seed(0)
    left, back = windows.ids.numel() if gradient_tokens is None else gradient_tokens, 0
    with collector.attached(model):
        for inputs, labels in windows.batches(batch_tokens):
            inputs = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            size = inputs["input_ids"].numel()
            with _differentiable(model, back < left):
                loss = _loss(model(**inputs), labels, windows.task, generator)
                if not torch.isfinite(loss):
                    raise ModelError("computes logits that are NaN or infinite", reason="model-values")
                if back < left:
                    loss.backward()  # type: ignore[no-untyped-call]
                    back += size
            collector.forget_inputs()
            progress(size)
    return collector.statistics(windows.ids.numel(), back)


def _loss(output: Any, labels: torch.Tensor, task: str, generator: torch.Generator) -> torch.Tensor:
    """What is differentiated, summed over positions.

    An encoder without a head has no loss. The squared gradients of a random projection of what it returns are, in the
    mean, those of half its squared error: every output counts alike.
    """
    if task == "features":
        parts = [output.get(name) for name in ("last_hidden_state", "pooler_output")]
        terms = [(x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in parts if x is not None]
        return torch.stack(terms).sum()
    logits = output.logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, labels.flatten().to(logits.device), reduction="sum")


@contextmanager
def _differentiable(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Give what embeddings look up a gradient, so that there is one even where they are no targets."""

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if output.requires_grad else output.detach().requires_grad_().clone()

    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)] if wanted else []
    handles = [m.register_forward_hook(hook) for m in tables]
    try:
        with torch.set_grad_enabled(wanted):
            yield
    finally:
        for handle in handles:
            handle.remove()


def path_of(model: nn.Module, wanted: nn.Module) -> str:
    """The path of a module in a model; empty if it is not there."""
    return next((path for path, module in model.named_modules() if module is wanted), "")
