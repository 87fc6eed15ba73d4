"""Rounding to nearest, in groups along each row: what everything else has to beat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bitstack.targets import Target
from bitstack.tools.evaluation.sizes import groups_of, matrix_bytes

from .base import Settings, Subject, as_stored, bits_of, weight_of

#: Rows that are rounded at once; an embedding of a large vocabulary is not held several times over.
_ROWS = 1 << 13
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Rtn:
    """Rounds linear layers, embeddings and heads alike.

    Asymmetric: codes 0 … 2^b−1 between the group's least and greatest value (0 always among them), with a zero point of
    b bits. Symmetric: codes −2^(b−1) … 2^(b−1)−1 around 0, without one. Scales are float16 and used as rounded.
    """

    symmetric: bool = False
    calibrated: bool = False

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "rtn-symmetric" if self.symmetric else "rtn"

    def check(self) -> dict[str, str]:
        """Needs nothing."""
        return {}

    def quantise_linear(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_linear`."""
        return self._quantise(subject, subject.linear, settings)

    def quantise_token(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_token`."""
        return self._quantise(subject, subject.token if settings.embedding_bits is not None else (), settings)

    def _quantise(
        self, subject: Subject, targets: Sequence[Target], settings: Settings
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for target in targets:
            bits = bits_of(target, settings)
            weight = weight_of(subject.model, target, subject.device)
            parts = [round_rows(w, bits, settings.group_size, self.symmetric) for w in torch.split(weight, _ROWS)]
            yield target.name, as_stored(torch.cat(parts), target)

    def size(self, target: Target, settings: Settings) -> int:
        """See `Baseline.size`."""
        bits = bits_of(target, settings)
        zero_bits = 0 if self.symmetric else bits
        return matrix_bytes(target.rows, target.columns, bits=bits, group_size=settings.group_size, zero_bits=zero_bits)


def round_rows(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> torch.Tensor:
    """Values float32 [M, N] that the codes of ``weight`` stand for.

    Args:
        weight: float32 [M, N].
        bits: of a code, from 2 to 8.
        group_size: columns that share a scale; the last group may be shorter.
    """
    rows, columns = weight.shape
    groups = groups_of(columns, group_size)
    # Zeros after the last column change no group: the range of an asymmetric one holds 0 anyway.
    padded = torch.nn.functional.pad(weight, (0, groups * group_size - columns)).view(rows, groups, group_size)
    levels = 2**bits - 1
    if symmetric:
        scale = padded.abs().amax(-1, keepdim=True) * 2 / levels
        zero: torch.Tensor | float = 0.0
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        least, greatest = padded.amin(-1, keepdim=True).clamp(max=0), padded.amax(-1, keepdim=True).clamp(min=0)
        scale = (greatest - least) / levels
        low, high = 0, levels
    scale = scale.clamp(max=_LARGEST).half().float()
    steps = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    if not symmetric:
        zero = (-least * steps).round().clamp(0, levels)
    codes = (padded * steps + zero).round().clamp(low, high)
    values: torch.Tensor = (codes - zero) * scale
    return values.view(rows, -1)[:, :columns]
