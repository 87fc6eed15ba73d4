"""Where a model is to be, and what it is to compute in."""

from typing import Any, Final

import torch

from bsformat import BstkError
from bsformat.errors import ModelError

#: What kernels compute in.
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def device_named(name: str) -> torch.device:
    """The device of this machine that has a name.

    Raises:
        BstkError: there is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # Which one depends on the kind of device: torch without CUDA asserts, and does not import a kind whose library is
    # missing; unknown names and numbers are the first, and so are kinds that no library implements.
    except (RuntimeError, AssertionError, ImportError) as error:
        detail = str(error).strip().split("\n")[0][:200]
        raise BstkError(f"no device {name!r} here: {detail}", reason="device") from None
    return device


def checked_dtype(dtype: Any) -> torch.dtype:
    """A type that a packed model computes in.

    Raises:
        ModelError: it is another one, or only the name of one.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ModelError(
            f"computes in torch.float32, torch.float16 or torch.bfloat16, not in {dtype!r}: pass one of them as dtype=",
            reason="model-dtype",
        )
    return dtype
