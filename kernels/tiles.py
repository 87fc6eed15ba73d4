"""What the Triton kernels share: reading factors, and launching on a device."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
import triton
import triton.language as tl

from .devices import capability

jit: Final[Callable[[Callable[..., Any]], Any]] = triton.jit
"""`triton.jit` with a type, since triton has none."""


@jit
def load_factors(pointer, offsets, mask, FP8: tl.constexpr):
    """Load float16 factors, or float8_e4m3fn ones given as bytes, as float32; zero where masked.

    FP8 says which: 0 for float16; 1 decodes the bytes here, since neither every device nor the interpreter converts
    e4m3; 2 leaves it to the device.
    """
    raw = tl.load(pointer + offsets, mask=mask, other=0)
    if FP8 == 2:
        value = raw.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    elif FP8 == 1:
        bits = raw.to(tl.int32)
        exponent = (bits >> 3) & 15
        fraction = bits & 7
        word = ((exponent + 120) << 23) | (fraction << 20)
        word = tl.where((bits & 127) == 127, 0x7FC00000, word)
        magnitude = tl.where(exponent == 0, fraction.to(tl.float32) * 0.001953125, word.to(tl.float32, bitcast=True))
        value = tl.where(bits > 127, -magnitude, magnitude)
    else:
        value = raw.to(tl.float32)
    return value


@cache
def float8_decoding(device: torch.device) -> int:
    """Return how a device reads float8_e4m3fn: 2 by itself (compute capability 8.9 and later), 1 by arithmetic."""
    return 2 if device.type == "cuda" and capability(device) >= (8, 9) else 1
