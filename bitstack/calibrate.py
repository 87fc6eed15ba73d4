"""What the loss feels: second moments of inputs and of output gradients, from one pass over a little text.

For a linear layer y = x·Wᵀ the loss changes by about tr over rows i of g2[i] · (E H Eᵀ)[i, i] when W changes by E,
with H the mean of x xᵀ and g2 the mean squared gradient of the loss at y (the diagonal blocks of the Fisher
information, with the tokens' coupling dropped).
"""

from collections.abc import Callable
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
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            collector.count_tokens(ids)
            logits = model(inputs_embeds=embedded, use_cache=False).logits
            # The last position has no label; ignoring it costs less than cutting the logits, which are large.
            labels = nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
            if not torch.isfinite(loss):
                raise ModelError("computes logits that are NaN or infinite", reason="model-values")
            (gradient,) = torch.autograd.grad(loss, embedded)
            collector.embedding.add(gradient)
            collector.forget_inputs()
            progress(ids.numel())
    return collector.statistics(windows.ids.numel())
