"""Reading 8-bit floats with PyTorch alone."""

from functools import cache

import torch


@cache
def e4m3_values() -> torch.Tensor:
    """Return the 256 values of float8_e4m3fn as float32 [256]."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def to_float(values: torch.Tensor) -> torch.Tensor:
    """Return float16 or float8 as float32; on the CPU torch's own conversion of float8 is far slower than a look-up."""
    if values.dtype == torch.float8_e4m3fn and values.device.type == "cpu":
        indices = values.view(torch.uint8).flatten().int()
        return torch.index_select(e4m3_values(), 0, indices).view(values.shape)
    return values.float()
