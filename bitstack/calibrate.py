"""What the loss feels: second moments of inputs and of output gradients, from one pass over a little text.

For a linear layer y = x·Wᵀ the loss changes by about tr over rows i of g2[i] · (E H Eᵀ)[i, i] when W changes by E,
with H the mean of x xᵀ and g2 the mean squared gradient of the loss at y (the diagonal blocks of the Fisher
information, with the tokens' coupling dropped).
"""

from collections.abc import Callable
from typing import Any

import torch

from .collect import Collector, LinearStatistics, Statistics, TokenStatistics
from .runner import forward, next_token_loss
from .targets import Target
from .text import Windows

__all__ = ["LinearStatistics", "Statistics", "TokenStatistics", "calibrate"]


def calibrate(
    model: Any,
    targets: list[Target],
    windows: Windows,
    *,
    batch_tokens: int = 512,
    progress: Callable[[int], object] = lambda n: None,
) -> Statistics:
    """Run the text through the dense model, forward and backward, and collect the statistics of all targets.

    Args:
        model: a causal language model with dense weights.
        batch_tokens: tokens at a time; bounds the memory of activations and logits.
        progress: called with the number of tokens done since the last call.

    Raises:
        ModelError: the model's logits are not finite.
    """
    collector = Collector(model, targets)
    per_batch = max(1, batch_tokens // windows.ids.shape[1])
    with collector.attached(), torch.enable_grad():
        for ids in torch.split(windows.ids, per_batch):
            moved = ids.to(model.device)
            embedded = model.get_input_embeddings()(moved).detach().requires_grad_()
            collector.count_tokens(ids)
            loss = next_token_loss(forward(model, embedded), moved)
            (gradient,) = torch.autograd.grad(loss, embedded)
            collector.embedding.add(gradient)
            collector.forget_inputs()
            progress(ids.numel())
    return collector.statistics(windows.ids.numel())
