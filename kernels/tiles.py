"""What the Triton kernels share: reading factors and signs into tiles."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
import triton
import triton.language as tl

jit: Final[Callable[[Callable[..., Any]], Any]] = triton.jit
"""`triton.jit` with a type, since triton has none."""


@jit
def load_factors(pointer, offsets, mask, FP8: tl.constexpr):
    """Load float16 factors, or float8_e4m3fn ones given as bytes, as float32; zero where masked.

    The bytes are decoded here because neither every device nor the interpreter converts e4m3.
    """
    raw = tl.load(pointer + offsets, mask=mask, other=0)
    if FP8:
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


@jit
def load_signs(pointer, rows, columns, row_bytes, mask):
    """Load the signs of rows × columns as float32 ±1; the address is computed in 64 bits. Masked ones are -1."""
    offsets = rows.to(tl.int64)[:, None] * row_bytes + (columns >> 3)[None, :]
    word = tl.load(pointer + offsets, mask=mask, other=0).to(tl.int32)
    return (((word >> (columns & 7)[None, :]) & 1) * 2 - 1).to(tl.float32)


def raw_factors(factors: torch.Tensor) -> torch.Tensor:
    """Return factors as the kernels take them: float16, or the bytes of float8_e4m3fn."""
    return factors.view(torch.uint8) if factors.dtype == torch.float8_e4m3fn else factors


def rank_tile(rank: int) -> int:
    """Return the columns of the factors that a tile holds: a power of two from 16 to 64. Larger ranks take several."""
    return min(64, max(16, 1 << (rank - 1).bit_length()))


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the one that kernels are launched on; does nothing for the CPU, where they are interpreted."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
