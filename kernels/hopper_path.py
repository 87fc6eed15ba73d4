"""Every operation on compute capability 9.0: products of bits for few tokens, and Triton for everything else."""

from typing import Final

import torch

from . import hopper, triton_path
from .table import Table
from .triton_path import rebuild, rows

__all__ = ["linear", "rebuild", "rows"]

FEW: Final = 16
"""Up to this number of tokens bits are multiplied, two at a time; from there on W is rebuilt. On an H200, for four
blocks and 16 tokens, the one takes 255 µs on 14336 by 4096 and 141 on 4096 by 4096; the other some 310 and 90, and on
top what cuBLAS takes (tools/bench/results/kernels-h200.json).
"""


def linear(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns]."""
    if len(x) <= FEW and hopper.takes(x, table):
        hopper.multiply_few(x, table, bias, out)
    else:
        triton_path.linear(x, table, bias, out)
