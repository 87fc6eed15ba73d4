"""What a budget means in bytes, on this machine and for this file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from bsformat import Container, format_size, parse_size
from bsformat.errors import BudgetError

from . import memory
from .free import Free, free_memory

#: Of what is free, what ``auto`` keeps for all that nobody counted: 1 in so many bytes, but see the bounds.
SPARE_SHARE: Final = 20
#: Bytes that are enough to keep on any device.
MOST_SPARE: Final = 4 << 30
#: Bytes that ``auto`` always keeps, by the kind of device.
LEAST_SPARE: Final[Mapping[str, int]] = {"cpu": 64 << 20, "cuda": 128 << 20}


class Needs(Protocol):
    """What a model takes beside its weights, in bytes."""

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the whole context."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """The most that activations, logits and kernels take at once."""
        ...

    @property
    def cache_shape(self) -> str:
        """How the cache comes about, in a few words."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        ...


@dataclass(frozen=True, slots=True)
class AutoBudget:
    """What ``auto`` came to, and why: free + held - cache - workspace - spare, at most all blocks.

    Attributes:
        device: name of the device. free: what is free on it.
        held: bytes of the weights that are resident already, which are this model's to spend too.
        needs: what the model takes beside its weights; None: not known.
        spare: bytes that are kept for what nobody counted.
        least, most: bytes of the smallest and of the largest prefix of the file.
    """

    device: str
    free: Free
    held: int
    needs: Needs | None
    spare: int
    least: int
    most: int

    @property
    def room(self) -> int:
        """Bytes that are left for weights; negative where even the rest does not fit."""
        beside = self.needs.cache_bytes + self.needs.workspace_bytes if self.needs else 0
        return self.free.bytes + self.held - beside - self.spare

    @property
    def budget(self) -> int:
        """Bytes of the budget."""
        return max(0, min(self.room, self.most))

    def __str__(self) -> str:
        """One line."""
        needs, room = self.needs, self.room
        line = f"auto: {format_size(self.free.bytes)} free on {self.device} ({self.free.bound})"
        if self.held:
            line += f" + {format_size(self.held)} held"
        if needs:
            line += f" - {format_size(needs.cache_bytes)} cache ({needs.cache_shape})"
            line += f" - {format_size(needs.workspace_bytes)} workspace"
        end = f"{format_size(room)} for weights" if room >= 0 else f"{format_size(-room)} too little"
        if room > self.most:
            end += f", more than the {format_size(self.most)} of all blocks"
        return f"{line} - {format_size(self.spare)} spare = {end}"

    def to_json(self) -> dict[str, Any]:
        """The numbers of the line, as plain values."""
        return {
            "device": self.device,
            "free_bytes": self.free.bytes,
            "free_of": self.free.bound,
            "total_bytes": self.free.total,
            "held_bytes": self.held,
            **(self.needs.to_json() if self.needs else {}),
            "spare_bytes": self.spare,
            "room_bytes": self.room,
            "budget_bytes": self.budget,
        }


def spare_bytes(memory: int, device: torch.device) -> int:
    """Of some bytes of memory those that are to stay free whatever was counted: a twentieth, within bounds."""
    return max(min(memory // SPARE_SHARE, MOST_SPARE), LEAST_SPARE.get(device.type, 0))


def auto_budget(
    device: torch.device,
    needs: Callable[[], Needs] | None,
    *,
    least: int,
    most: int,
    held: int = 0,
    where: str = "",
) -> AutoBudget:
    """What fits into the free memory of a device just now.

    Where memory is short on a CPU, the heap of this process becomes steady first: see `steady_heap`.

    Args:
        needs: what the model takes beside its weights, with the heap as it is at the call; None: not known. A cache
            that the model holds already is counted once more: what it has in use nobody can tell from outside.
        least, most: bytes of the smallest and of the largest prefix of the file.
        held: bytes of weights that are resident on the device already.
        where: path or URI, for messages.

    Raises:
        BudgetError: the free memory cannot be told, or is too little for the smallest prefix.
    """
    free = free_memory(device)
    if free is None:
        raise BudgetError(
            f"the free memory of {device} cannot be told: name a budget, as 80MiB", reason="budget-invalid"
        )

    def decided() -> AutoBudget:
        spare = spare_bytes(free.bytes, device)
        return AutoBudget(str(device), free, held, needs() if needs else None, spare, least, most)

    out = decided()
    if needs and out.room < most and device.type == "cpu" and not memory.heap_is_steady():
        memory.steady_heap()
        out = decided()
    if out.room < least:
        raise BudgetError(
            f"{out}, below the minimum of this file, {least} bytes ({format_size(least)}): use a shorter context "
            "or a smaller batch, free some memory, or name a budget",
            where=where,
            reason="budget-too-small",
        )
    return out


def resolve_budget(budget: int | str | None, container: Container, device: torch.device) -> int:
    """Bytes of a budget.

    Args:
        budget: bytes, a size (``80MiB``), a percentage of all blocks (``60%``), or ``auto`` or None: what is free,
            less a spare and nothing for a cache or a workspace; see `auto_budget`.

    Raises:
        BudgetError: it is none of these, or ``auto`` where the free memory cannot be told or is too little.
    """
    if budget is None or budget == "auto":
        least, most = container.minimum_bytes, container.total_bytes
        return auto_budget(device, None, least=least, most=most, where=container.uri).budget
    return parse_size(budget, container.total_bytes)
