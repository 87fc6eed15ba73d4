"""The arithmetic of block chains: y = x·Wᵀ, W and single rows of W, from signs and low-rank factors.

A chain stands for a matrix W of `rows` × `columns` (BitStack, arXiv 2410.23918, section 3)::

    W[i, j] = row_scale[i] · col_scale[j] · Σ_blocks sign[i, j] · Σ_k scale[k] · U[i, k] · V[j, k]

Importing this package imports torch, but neither triton nor any kernel: the first call that needs them loads them.
"""

from .blocks import Chain, SignBlock, payload_bytes
from .dispatch import available_backends, linear, rebuild, rows

__all__ = ["Chain", "SignBlock", "available_backends", "linear", "payload_bytes", "rebuild", "rows"]
