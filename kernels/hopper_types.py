"""Types of numbers, as the kernels for compute capability 9.0 are told them."""

from typing import Final

import torch

SCALE_TYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Of the scale vectors and of a bias."""
