"""How much memory is free on a device, and what says so."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from .cgroup import limited_groups

#: Where Linux tells how much memory there is, and how much is available.
MEMINFO: Final = "/proc/meminfo"


@dataclass(frozen=True, slots=True)
class Free:
    """Memory that can be allocated on a device.

    Attributes:
        bytes: how much.
        total: of how much: the memory of the device, or the limit that binds.
        bound: what binds: ``system memory``, ``cgroup`` and its folder, the memory of a GPU, or the share of it that
            torch was told to keep to.
    """

    bytes: int
    total: int
    bound: str

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def free_memory(device: torch.device) -> Free | None:
    """What is free on a device; None where that cannot be told.

    On the CPU what Linux counts as available, or what the narrowest control group leaves, if that is less. On CUDA what
    the driver has, and what torch's allocator keeps for itself without using it.
    """
    if device.type == "cuda":
        return _free_on_cuda(device)
    return _free_on_host() if device.type == "cpu" else None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    free = free_memory(device)
    return None if free is None else free.bytes


def _free_on_cuda(device: torch.device) -> Free:
    # Not all of these take a device without a number.
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    kept = max(0, torch.cuda.memory_reserved(device) - allocated)
    out = Free(free + kept, total, f"memory of {device}")
    # torch refuses to reserve beyond the share that it was given, however much the driver has.
    fraction = 1.0
    with suppress(AttributeError, RuntimeError):  # older versions, and other allocators, have no share
        fraction = torch.cuda.get_per_process_memory_fraction(device)
    if fraction < 1:
        share = int(fraction * total)
        if share - allocated < out.bytes:
            return Free(max(0, share - allocated), share, f"torch's share of {device}")
    return out


def _free_on_host() -> Free | None:
    candidates = [Free(group.free, group.limit, f"cgroup {group.path}") for group in limited_groups()]
    system = _system()
    if system is not None:
        candidates.insert(0, system)
    return min(candidates, key=lambda free: free.bytes, default=None)


def _system() -> Free | None:
    # Linux counts what it can take back from its caches, the file just read among it, as available but not as free.
    with suppress(OSError, ValueError, KeyError), open(MEMINFO, encoding="ascii") as lines:
        fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        available = int(fields["MemAvailable"][0]) << 10
        total = int(fields["MemTotal"][0]) << 10 if "MemTotal" in fields else available
        return Free(available, total, "system memory")
    with suppress(OSError, ValueError):
        page = os.sysconf("SC_PAGE_SIZE")
        available = os.sysconf("SC_AVPHYS_PAGES") * page
        total = available
        with suppress(ValueError, KeyError):
            total = os.sysconf("SC_PHYS_PAGES") * page
        return Free(available, total, "system memory")
    return None
