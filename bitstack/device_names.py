"""Where a model is to be, by its name."""

import torch

from bsformat import BstkError


def device_named(name: str) -> torch.device:
    """The device of this machine that has a name.

    Raises:
        BstkError: there is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # Which one it is depends on the kind of device: torch without CUDA asserts, and raises the last for kinds that no
    # library implements; unknown names and numbers are the first.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        detail = str(error).strip().split("\n")[0][:200]
        raise BstkError(f"no device {name!r} here: {detail}", reason="device") from None
    return device
