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
    # Which one depends on the kind of device: torch without CUDA asserts, and does not import a kind whose library is
    # missing; unknown names and numbers are the first, and so are kinds that no library implements.
    except (RuntimeError, AssertionError, ImportError) as error:
        detail = str(error).strip().split("\n")[0][:200]
        raise BstkError(f"no device {name!r} here: {detail}", reason="device") from None
    return device
