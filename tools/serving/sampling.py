"""From the logits of a token to the token."""

import hashlib
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

#: Below it, float32 can divide by no temperature.
_COLDEST: Final = 1e-6
#: What OpenAI's API says in the place of minus infinity, which JSON does not have.
_IMPOSSIBLE: Final = -9999.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, by the names of OpenAI's API.

    Attributes:
        temperature: 0: the most likely one, always.
        top_p: of the most likely tokens, those that together have this probability; one at least.
        seed: what the draws depend on, beside the request itself; None: a new one.
        frequency_penalty, presence_penalty: taken off the logit of a token that was written before, for each time and
            once.
        logit_bias: added to the logits of tokens.
        logprobs: how many alternatives to report with each token; None: report no probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token that was chosen.

    Attributes:
        token: its number.
        logprob: the natural logarithm of what the model gives it, before temperature, penalties and the like; None
            where nobody asked.
        top: the most likely tokens with theirs, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer, one after the other.

    The same settings, branch and logits give the same tokens, whatever else the process does.

    Args:
        branch: which answer of a request it is: each has draws of its own.
    """

    def __init__(self, sampling: Sampling, branch: int = 0) -> None:
        self._sampling = sampling
        self._written: Counter[int] = Counter()
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        digest = hashlib.sha256(f"{seed}:{branch}".encode()).digest()
        self._generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def choose(self, logits: torch.Tensor) -> Chosen:
        """The next token.

        Args:
            logits: of every token of the vocabulary, 1-D, of any floating type and device; left as they are.
        """
        sampling = self._sampling
        changed = self._changed(logits)
        token = int(changed.argmax()) if sampling.temperature == 0 else self._draw(changed)
        self._written[token] += 1
        if sampling.logprobs is None:
            return Chosen(token)
        likelihood = torch.log_softmax(logits.float(), dim=-1).clamp(min=_IMPOSSIBLE)
        best = likelihood.topk(min(sampling.logprobs, len(likelihood)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Chosen(token, float(likelihood[token]), top)

    def _changed(self, logits: torch.Tensor) -> torch.Tensor:
        """With biases and penalties."""
        sampling = self._sampling
        if not (sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty):
            return logits
        out = logits.float().clone()
        for token, bias in sampling.logit_bias.items():
            out[token] += bias
        for token, count in self._written.items():
            out[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
        return out

    def _draw(self, logits: torch.Tensor) -> int:
        # On the CPU whatever the device, so that a seed means the same everywhere.
        own = logits.float().cpu()
        # The largest is 0: a small temperature makes much of the others, and nothing of it.
        shares = torch.softmax((own - own.max()) / max(self._sampling.temperature, _COLDEST), dim=-1)
        if self._sampling.top_p >= 1:
            return int(torch.multinomial(shares, 1, generator=self._generator))
        ordered, tokens = shares.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        ordered[(before >= self._sampling.top_p) & (torch.arange(len(ordered)) > 0)] = 0
        return int(tokens[torch.multinomial(ordered, 1, generator=self._generator)])
