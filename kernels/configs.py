"""How the kernels are cut for the device they run on: measured once and shipped, so that no first call searches."""

from dataclasses import dataclass
from typing import Final

import torch

from .devices import capability


@dataclass(frozen=True, slots=True)
class Config:
    """How `decode` cuts its work.

    Attributes:
        tokens: tokens that one launch takes; more take several.
        rows: rows of a tile.
        slice: columns of a slice, a multiple of 8 · bytes.
        bytes: bytes of signs of a row that are loaded at a time.
        warps: of a program.
        stages: tiles of signs that are in flight, plus one.
        chunk: columns that a program takes which scales the input; divides the slice, a multiple of 8 · bytes.
        scale_warps: warps of such a program.
    """

    tokens: int
    rows: int
    slice: int
    bytes: int
    warps: int
    stages: int
    chunk: int
    scale_warps: int


HOPPER: Final = Config(tokens=2, rows=128, slice=2048, bytes=64, warps=4, stages=3, chunk=512, scale_warps=8)
"""NVIDIA H100 and H200."""
SMALL: Final = Config(tokens=1, rows=32, slice=256, bytes=16, warps=1, stages=2, chunk=128, scale_warps=4)
"""For the interpreter, where a program costs the same whatever it does."""
OTHER: Final = Config(tokens=1, rows=64, slice=1024, bytes=32, warps=4, stages=2, chunk=512, scale_warps=8)
"""Any other GPU."""


def choose(device: torch.device) -> Config:
    """Return the configuration for a device."""
    if device.type != "cuda":
        return SMALL
    return HOPPER if capability(device)[0] == 9 else OTHER
