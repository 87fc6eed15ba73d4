"""Where a model runs, and what this machine is."""

import os
import platform
from typing import Any

import torch

from bitstack.device_names import device_named
from bsformat import BstkError, __version__


def find_device(name: str | None) -> torch.device:
    """A device by name; None: CUDA if there is one, else the CPU.

    Raises:
        BstkError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device_named(name)


def use_kernels(name: str | None, device: torch.device) -> None:
    """Use the kernels of one backend in this process; None leaves the choice to the device.

    Raises:
        BstkError: it is unknown, or does not run there.
    """
    from bitstack import kernels

    if name is None:
        return
    there = kernels.available_backends(device)
    if name not in there:
        known = "is unknown" if name not in kernels.BACKENDS else f"does not run on {device}"
        raise BstkError(f"backend {name!r} {known}; there: {', '.join(there)}", reason="device")
    kernels.set_backend(name)


def find_devices(name: str | None) -> list[torch.device]:
    """The devices that a name stands for: ``cuda`` for every GPU there is. None: see `find_device`.

    Raises:
        BstkError: there is no such device.
    """
    device = find_device(name)
    if str(device) == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [device]


def find_dtype(name: str | None) -> torch.dtype | None:
    """A floating type by its name in torch; None stays None."""
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def default_dtype(device: torch.device) -> torch.dtype:
    """What `bitstack.load` computes in on a device where nothing else is said."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def hardware(device: torch.device) -> dict[str, Any]:
    """What a measurement was taken on."""
    out: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        out["gpu"] = torch.cuda.get_device_name(device)
    return out


def versions() -> dict[str, str]:
    """What it was taken with."""
    import transformers

    return {
        "bitstack": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
