"""What a budget means in bytes, on this machine and for this file."""

import os
from contextlib import suppress
from typing import Final

import torch

from bsformat import Container, parse_size
from bsformat.errors import BudgetError

#: Of the free memory, what ``auto`` takes; the rest is for activations, the cache of keys and values, and others.
AUTO_SHARE: Final = 0.8
#: Where Linux tells how much memory is available.
MEMINFO: Final = "/proc/meminfo"


def resolve_budget(budget: int | str | None, container: Container, device: torch.device) -> int:
    """Bytes of a budget.

    Args:
        budget: bytes, a size (``80MiB``), a percentage of all blocks (``60%``), or ``auto`` or None: four fifths of
            the memory that is free on ``device``, at most all blocks.

    Raises:
        BudgetError: it is none of these, or ``auto`` where the free memory cannot be told.
    """
    if budget is None or budget == "auto":
        free = free_bytes(device)
        if free is None:
            raise BudgetError(
                f"the free memory of {device} cannot be told: name a budget, as 80MiB",
                reason="budget-invalid",
            )
        return min(int(free * AUTO_SHARE), container.total_bytes)
    return parse_size(budget, container.total_bytes)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _free_host_bytes() if device.type == "cpu" else None


def _free_host_bytes() -> int | None:
    # Linux counts what it can take back from its caches, the file just read among it, as available but not as free.
    with suppress(OSError, StopIteration, ValueError), open(MEMINFO, encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
