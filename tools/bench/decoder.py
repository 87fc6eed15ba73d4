"""One step of a model of the Llama kind, in plain PyTorch, made to be captured: all that changes lies on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

Linear = Callable[[torch.Tensor], torch.Tensor]
"""From x [1, columns] to y [1, rows]."""
Linears = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""The same of several matrices for the same x."""
GROUPS: Final = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""Matrices of a layer by what they are multiplied by, in the order of `Shape.matrices`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; `positions` is how many tokens its cache holds."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int

    @property
    def head(self) -> int:
        """Elements of one head."""
        return self.hidden // self.heads

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the matrices of a layer."""
        kv = self.kv_heads * self.head
        return {
            "q": (self.hidden, self.hidden),
            "k": (kv, self.hidden),
            "v": (kv, self.hidden),
            "o": (self.hidden, self.hidden),
            "gate": (self.mlp, self.hidden),
            "up": (self.mlp, self.hidden),
            "down": (self.hidden, self.mlp),
        }


SHAPES: Final = {
    "8b": Shape(32, 4096, 14336, 32, 8, 128256, 1024),
    "tiny": Shape(2, 128, 256, 8, 2, 512, 64),
}
_EPSILON: Final = 1e-5
_BASE: Final = 500000.0


class Decoder:
    """Greedy decoding of one sequence; of every layer it gets the products of each of `GROUPS`.

    Attributes:
        token: int64 [1], the token that is read next.
        position: int64 [1], where it stands.
        logits: float32 [1, vocabulary] of the step before.
    """

    def __init__(
        self,
        shape: Shape,
        layers: Sequence[Sequence[Linears]],
        head: Linear,
        embed: Linear,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self._layers, self._head, self._embed, self._dtype = shape, layers, head, embed, dtype
        self.token = torch.ones(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, shape.vocabulary, device=device)
        self._norms = torch.ones(2 * shape.layers + 1, shape.hidden, dtype=dtype, device=device)
        cache = (2, shape.layers, 1, shape.kv_heads, shape.positions, shape.head)
        self._cache = torch.zeros(cache, dtype=dtype, device=device)
        self._places = torch.arange(shape.positions, device=device)
        turns = _BASE ** (-torch.arange(0, shape.head, 2, device=device) / shape.head)
        angles = torch.outer(self._places.float(), torch.cat([turns, turns]))
        self._cos, self._sin = angles.cos().to(dtype), angles.sin().to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that lie here: the norms."""
        return self._norms.nbytes

    def reset(self) -> None:
        """Begin anew, with an empty cache."""
        self.token.fill_(1)
        self.position.zero_()
        self._cache.zero_()

    def step(self) -> None:
        """Read `token`, write `logits`, and choose the next token."""
        shape, group = self.shape, self.shape.heads // self.shape.kv_heads
        cos, sin = self._cos[self.position], self._sin[self.position]
        hidden_from = (self._places > self.position).expand(1, shape.kv_heads, group, shape.positions)
        mask = torch.zeros(hidden_from.shape, dtype=self._dtype, device=cos.device)
        mask.masked_fill_(hidden_from, -torch.inf)
        x = self._embed(self.token)
        for number, (attend, out, gate, down) in enumerate(self._layers):
            h = self._norm(x, 2 * number)
            # The query heads that share keys stand where several queries would: no copy of the keys for each of them.
            q, k, v = attend(h)
            q = _turned(q.view(1, shape.kv_heads, group, shape.head), cos, sin)
            k = _turned(k.view(1, shape.kv_heads, 1, shape.head), cos, sin)
            v = v.view(1, shape.kv_heads, 1, shape.head)
            keys, values = self._cache[0, number], self._cache[1, number]
            keys.index_copy_(2, self.position, k)
            values.index_copy_(2, self.position, v)
            attended = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = x + out(attended.reshape(1, shape.hidden))[0]
            h = self._norm(x, 2 * number + 1)
            gated, up = gate(h)
            x = x + down(functional.silu(gated) * up)[0]
        self.logits.copy_(self._head(self._norm(x, 2 * shape.layers)))
        self.token.copy_(self.logits.argmax(-1))
        self.position.add_(1)

    def _norm(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return functional.rms_norm(x, (self.shape.hidden,), self._norms[number], _EPSILON)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [..., head] by cos and sin [1, head]."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
