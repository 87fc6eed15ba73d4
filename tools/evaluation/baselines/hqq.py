"""HQQ (half-quadratic quantisation) through the library ``hqq``; needs no data, and runs on a CPU as well."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitstack.targets import Target
from bitstack.tools.evaluation.quiet import hushed
from bitstack.tools.evaluation.sizes import matrix_bytes

from .base import BaselineError, Settings, Subject, as_stored, bits_of, weight_of
from .libraries import need

#: Its zero points are no whole numbers: they are stored as float16, as scales are.
_ZERO_BITS = 16


@dataclass(frozen=True, slots=True)
class Hqq:
    """Linear layers, embeddings and heads, groups along each row (axis 1), with the library's own optimisation."""

    name: str = "hqq"
    calibrated: bool = False

    def check(self) -> dict[str, str]:
        """See `Baseline.check`."""
        return need("hqq", extra="hqq")

    def quantise_linear(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_linear`."""
        return self._quantise(subject, subject.linear, settings)

    def quantise_token(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_token`."""
        return self._quantise(subject, subject.token if settings.embedding_bits is not None else (), settings)

    def _quantise(
        self, subject: Subject, targets: Sequence[Target], settings: Settings
    ) -> Iterator[tuple[str, torch.Tensor]]:
        with hushed():
            from hqq.core.quantize import Quantizer
        for target in targets:
            bits = bits_of(target, settings)
            if bits not in Quantizer.SUPPORTED_BITS:
                raise BaselineError(f"hqq has no codes of {bits} bits")
            weight = weight_of(subject.model, target, subject.device)
            yield target.name, as_stored(_quantise(Quantizer, weight, bits, settings.group_size), target)

    def size(self, target: Target, settings: Settings) -> int:
        """See `Baseline.size`."""
        return matrix_bytes(
            target.rows,
            target.columns,
            bits=bits_of(target, settings),
            group_size=settings.group_size,
            zero_bits=_ZERO_BITS,
        )


def _quantise(quantizer: Any, weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Whole groups at once, and a last, shorter group of every row as a matrix of its own."""
    whole = weight.shape[1] // group_size * group_size
    parts = [part for part in (weight[:, :whole], weight[:, whole:]) if part.numel()]
    out = []
    for part in parts:
        codes, meta = quantizer.quantize(
            part.contiguous(),
            nbits=bits,
            group_size=min(group_size, part.shape[1]),
            axis=1,
            bitpack=False,
            compute_dtype=torch.float32,
            device=str(part.device),
        )
        for key in ("scale", "zero"):  # as they would be stored
            meta[key] = meta[key].half().float()
        meta["compute_dtype"] = torch.float32
        out.append(quantizer.dequantize(codes, meta))
    return torch.cat(out, 1)
