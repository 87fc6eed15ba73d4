"""The arithmetic of block chains: y = x·Wᵀ, W and single rows of W, from signs, low-rank factors and single entries.

A chain stands for a matrix W of `rows` × `columns` (BitStack, arXiv 2410.23918, section 3)::

    W[i, j] = row_scale[i] · col_scale[j] · Σ_blocks sign[i, j] · Σ_k scale[k] · U[i, k] · V[j, k]

Blocks without signs (`LowRankBlock`) and blocks of few entries (`SparseBlock`) add to the same sum.

Importing this package imports torch, but neither triton nor any kernel: the first call that needs them loads them.
"""

from .backends import BACKENDS, available_backends
from .blocks import LowRankBlock, SignBlock, payload_bytes
from .chain import Chain
from .dispatch import linear, linear_together, rebuild, rows
from .gradient import input_gradient
from .preference import set_backend
from .sparse import SparseBlock
from .table import Room, Table, segments
from .together import Together
from .walk import walk_columns

__all__ = [
    "BACKENDS",
    "Chain",
    "LowRankBlock",
    "Room",
    "SignBlock",
    "SparseBlock",
    "Table",
    "Together",
    "available_backends",
    "input_gradient",
    "linear",
    "linear_together",
    "payload_bytes",
    "rebuild",
    "rows",
    "segments",
    "set_backend",
    "walk_columns",
]
