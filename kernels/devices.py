"""What the kernels ask of a device."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def has_bit_products(device: torch.device) -> bool:
    """Whether `hopper` is for a device: compute capability 9.0, and NVRTC there to compile for it."""
    if device.type != "cuda" or capability(device) != (9, 0):
        return False
    from .cuda_driver import compiler

    return compiler() is not None


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the one that kernels are launched on; does nothing for the CPU, where they are interpreted."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
