"""Single entries with Triton: where those of a row are, and what they say."""

import triton.language as tl

from .tiles import jit, load_factors


@jit
def row_begins(starts, offsets, rows, m, count, SHORT: tl.constexpr):
    """Load where rows begin; from row m on, the number of entries."""
    mask = rows < m
    inside = tl.load(offsets + rows, mask=mask, other=0).to(tl.int32)
    if SHORT:
        inside = inside & 0xFFFF
    return tl.where(mask, tl.load(starts + (rows >> 6), mask=mask, other=0) + inside, count)


@jit
def load_entries(indices, values, scale, at, mask, FP8: tl.constexpr):
    """Load columns as int32 and scaled values as float32; zero where masked."""
    columns = tl.load(indices + at, mask=mask, other=0).to(tl.int32) & 0xFFFF
    return columns, load_factors(values, at, mask, FP8) * tl.load(scale)
