"""What a baseline is: a method that quantises a dense model at a setting, and says what that costs in bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import torch

from bitstack.targets import Target
from bitstack.text import Windows
from bsformat import BstkError

#: As ``embeddings``: they are left in 16 bits.
KEPT: Final = 16


class BaselineError(BstkError):
    """A baseline cannot run here: its library is missing or fails, or it does not do what was asked of it."""

    default_reason = "baseline"


@dataclass(frozen=True, slots=True)
class Settings:
    """At what a baseline quantises.

    Attributes:
        bits: of a code of a linear layer.
        group_size: columns of a row that share a scale; the last group of a row may be shorter.
        embeddings: bits of a code of an embedding or output head: a number, ``same`` as ``bits``, or 16: they are left
            alone.
    """

    bits: int
    group_size: int
    embeddings: int | str

    @property
    def embedding_bits(self) -> int | None:
        """Bits of a code of an embedding or output head; None: they stay in 16 bits."""
        if self.embeddings == "same":
            return self.bits
        return None if self.embeddings == KEPT else int(self.embeddings)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def label(self) -> str:
        """For people: ``4 bits, g64, embeddings 8``."""
        return f"{self.bits} bits, g{self.group_size}, embeddings {self.embedding_bits or KEPT}"


class Calibration:
    """The text that baselines may look at, made when one first asks for it."""

    def __init__(self, make: Callable[[], Windows]) -> None:
        self._make = make
        self._windows: Windows | None = None

    @property
    def windows(self) -> Windows:
        """Token windows, on the CPU."""
        if self._windows is None:
            self._windows = self._make()
        return self._windows

    @property
    def record(self) -> dict[str, Any] | None:
        """What it was, for the results; None: nobody asked."""
        if self._windows is None:
            return None
        return {"text": self._windows.name, "windows": len(self._windows), "window": self._windows.ids.shape[1]}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be quantised.

    Attributes:
        model: the dense model on the CPU in float32. Not to be written to.
        tokenizer: its tokenizer.
        linear, token: which of its parameters are weights of linear layers, and which have a row for each token id.
        calibration: text to calibrate on.
        device: where to compute.
    """

    model: Any
    tokenizer: Any
    linear: Sequence[Target]
    token: Sequence[Target]
    calibration: Calibration
    device: torch.device


class Baseline(Protocol):
    """A method to compare with."""

    @property
    def name(self) -> str:
        """As ``--baselines`` and the results have it."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether it looks at the calibration text."""
        ...

    def check(self) -> dict[str, str]:
        """Versions of the libraries that it needs, by name.

        Raises:
            BaselineError: one is missing; says how to install it.
        """
        ...

    def quantise_linear(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """New values of parameters by name, dequantised, in float32; parameters that do not change are left out.

        Raises:
            BaselineError: it cannot do this model at these settings.
        """
        ...

    def quantise_token(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """The same for embeddings and output heads; nothing where they are left alone."""
        ...

    def size(self, target: Target, settings: Settings) -> int:
        """Resident bytes of one quantised parameter: codes, scales and zero points."""
        ...


def weight_of(model: Any, target: Target, device: torch.device) -> torch.Tensor:
    """The matrix W float32 [rows, columns] of y = x·Wᵀ, on a device."""
    weight: torch.Tensor = model.get_parameter(target.name).detach().to(device=device, dtype=torch.float32)
    return weight.T if target.transposed else weight


def as_stored(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """W in the layout of its parameter."""
    return weight.T if target.transposed else weight


def bits_of(target: Target, settings: Settings) -> int:
    """Bits of a code of this parameter.

    Raises:
        BaselineError: embeddings and output heads are not quantised at these settings.
    """
    bits = settings.embedding_bits if target.by_token else settings.bits
    if bits is None:
        raise BaselineError(f"{target.name} is not quantised at these settings")
    return bits
