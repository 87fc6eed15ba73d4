"""What the kernels are compared with: bf16 cuBLAS, PyTorch's int4 tinygemm, bitsandbytes nf4.

Each is a function that makes one product with random weights of its own, ready to be called again and again, and the
matrix that these weights stand for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional


class Unavailable(Exception):
    """An anchor does not run here, and why."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product y = x·Wᵀ with fixed weights.

    Attributes:
        run: from x [tokens, columns] to y [tokens, rows].
        dense: makes W, float64 [rows, columns].
        nbytes: of the weights as they are held.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    dense: Callable[[], torch.Tensor]
    nbytes: int


Make = Callable[[int, int, torch.dtype, torch.device], Product]
GROUP: Final = 128
"""Columns that share a scale and a zero point in tinygemm."""
_TILES: Final = 8
"""Tiles of 16 columns that tinygemm packs together."""


def _weights(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=dtype, device=device).normal_(std=columns**-0.5)


def dense(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Product:
    """`torch.nn.functional.linear`: cuBLAS on CUDA."""
    w = _weights(rows, columns, dtype, device)
    return Product(lambda x: functional.linear(x, w), w.double, w.nbytes)


def random_int4(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random weights for tinygemm: packed codes, scales with zero points, and the plain codes.

    A weight is (code - 8) · scale + zero; the zero points are 0.

    Returns:
        codes as the kernel takes them; bfloat16 [columns / 128, rows, 2]; uint8 [rows, columns] from 0 to 15.

    Raises:
        Unavailable: the kernel takes no such shape.
    """
    if rows % 16 or columns % (16 * _TILES) or columns % GROUP:
        raise Unavailable(f"tinygemm takes rows in sixteens and columns in groups of {GROUP}")
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device=device)
    scales = torch.zeros(columns // GROUP, rows, 2, dtype=torch.bfloat16, device=device)
    scales[..., 0] = (torch.rand(columns // GROUP, rows, device=device) + 0.5) * (columns**-0.5 / 5)
    if device.type == "cuda":
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        return torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES), scales, codes
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), _TILES), scales, codes


def int4_linear(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x·Wᵀ for bfloat16 x [tokens, columns] and what `random_int4` made."""
    aten = torch.ops.aten
    run = aten._weight_int4pack_mm if x.is_cuda else aten._weight_int4pack_mm_for_cpu
    y: torch.Tensor = run(x, packed, GROUP, scales)
    return y


def tinygemm(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Product:
    """PyTorch's own product with 4-bit codes in groups of 128 columns."""
    if dtype != torch.bfloat16:
        raise Unavailable("tinygemm takes bfloat16 only")
    packed, scales, codes = random_int4(rows, columns, device)

    def matrix() -> torch.Tensor:
        return (codes.double() - 8) * scales[..., 0].T.double().repeat_interleave(GROUP, 1)

    return Product(lambda x: int4_linear(x, packed, scales), matrix, packed.nbytes + scales.nbytes)


def nf4(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Product:
    """bitsandbytes' 4-bit normal floats in blocks of 64, without double quantisation."""
    try:
        library: Any = importlib.import_module("bitsandbytes")
        functions: Any = importlib.import_module("bitsandbytes.functional")
    except Exception as error:  # it loads a library of its own, which fails in many ways
        raise Unavailable(f"bitsandbytes does not import ({type(error).__name__}: {error})") from None
    if device.type != "cuda":
        raise Unavailable("measured on CUDA only")
    weights = _weights(rows, columns, dtype, device)
    torch.cuda.synchronize(device)  # the library quantises on the default stream, whatever the current one
    packed, state = functions.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    torch.cuda.synchronize(device)
    return Product(
        lambda x: library.matmul_4bit(x, packed.t(), quant_state=state),
        lambda: functions.dequantize_4bit(packed, state).double(),
        packed.nbytes + state.absmax.nbytes,
    )


ANCHORS: Final[dict[str, Make]] = {"cublas": dense, "tinygemm": tinygemm, "nf4": nf4}
"""By the name that `--only` takes."""
