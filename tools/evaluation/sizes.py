"""How many bytes a quantised matrix keeps resident: codes, group scales and zero points, each at its packed width."""

import math
from typing import Any, Final

#: What is not quantised is held in 16 bits: embeddings and heads that are left alone, norms, biases.
KEPT_BYTES: Final = 2
SCALE_BITS: Final = 16


def groups_of(columns: int, group_size: int) -> int:
    """Groups of one row; the last one may be shorter."""
    return math.ceil(columns / group_size)


def matrix_bytes(rows: int, columns: int, *, bits: int, group_size: int, zero_bits: int) -> int:
    """Resident bytes of a matrix [rows, columns] in groups along its rows.

    Args:
        bits: of one code.
        zero_bits: of one group's zero point; 0: there is none.

    Returns:
        Codes, 16-bit scales and zero points, each packed without gaps and rounded up to whole bytes.
    """
    groups = rows * groups_of(columns, group_size)
    return sum(math.ceil(n * width / 8) for n, width in ((rows * columns, bits), (groups, SCALE_BITS + zero_bits)))


def tensor_sizes(model: Any) -> dict[str, int]:
    """Bytes of every tensor of a dense model held in 16 bits; a tied tensor once, under its first name."""
    seen: set[int] = set()
    out = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            out[name] = tensor.numel() * (KEPT_BYTES if tensor.is_floating_point() else tensor.itemsize)
    return out
