"""From host memory to a device: to a GPU through a few pinned buffers that are used again, beside what it computes.

A copy from ordinary memory makes the driver copy it to pinned memory of its own first, and the caller wait for both.
Here payloads are put into pinned buffers, and the copy to the GPU runs on a stream of its own, while the next one is
read, checked and put into the rest of the buffer, or into the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

import numpy as np
import torch

#: Pinned buffers, and bytes of each: while one is filled, one is copied, and one waits for either.
BUFFERS: Final = 3
BUFFER_BYTES: Final = 8 << 20
#: torch gives some of it no types.
_CUDA: Any = torch.cuda
#: Payloads begin at multiples of this in a buffer, as they do on the GPU.
_ALIGNMENT: Final = 256


class Runtime(Protocol):
    """What staging asks of a device: `CudaRuntime`, or what a test puts in its place."""

    def pinned(self, size: int) -> torch.Tensor:
        """uint8 [size] in page-locked host memory."""
        ...

    def empty(self, size: int) -> torch.Tensor:
        """uint8 [size] on the device, its bytes not set."""
        ...

    def copy(self, source: torch.Tensor, out: torch.Tensor) -> Any:
        """Begin to copy pinned bytes to the device; gives the event of its end, for `wait`."""
        ...

    def wait(self, event: Any) -> None:
        """Wait on the host until a copy has ended."""
        ...

    def release(self) -> None:
        """Give pinned memory that is not used any more back to the system."""
        ...


class CudaRuntime:
    """See `Runtime`; with a stream for copies.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream = _CUDA.Stream(device)

    def pinned(self, size: int) -> torch.Tensor:
        """See `Runtime`."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def empty(self, size: int) -> torch.Tensor:
        """See `Runtime`; memory of the caller's current stream."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def copy(self, source: torch.Tensor, out: torch.Tensor) -> torch.cuda.Event:
        """See `Runtime`. What the caller's current stream is given from now on comes after the copy."""
        current = torch.cuda.current_stream(self._device)
        # The memory of ``out`` may have been freed a moment ago by work that the current stream has not done yet.
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            out.copy_(source, non_blocking=True)
            event: torch.cuda.Event = _CUDA.Event()
            event.record(self._side)
        # If ``out`` is dropped before the copy has ended, its memory must not go to another tensor before that.
        out.record_stream(self._side)
        current.wait_event(event)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """See `Runtime`."""
        event.synchronize()

    def release(self) -> None:
        """See `Runtime`. torch keeps pinned memory for later tensors; it has no public call for this."""
        empty_cache: Callable[[], None] | None = getattr(torch._C, "_host_emptyCache", None)
        if empty_cache is not None:
            empty_cache()


@dataclass(slots=True)
class _Slot:
    memory: torch.Tensor
    used: int = 0
    event: Any = None


class Staging:
    """Copies payloads to a GPU. For one thread; use it in a ``with`` statement, which frees the pinned memory.

    Args:
        runtime: of the device.
        buffers, buffer_bytes: pinned buffers, which are made when first used, and bytes of each.
    """

    def __init__(self, runtime: Runtime, *, buffers: int = BUFFERS, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._runtime, self._most, self._size = runtime, buffers, buffer_bytes
        self._slots: list[_Slot] = []  # the one that is filled now is the last

    @property
    def pinned_bytes(self) -> int:
        """Bytes of pinned host memory that are held."""
        return sum(slot.memory.numel() for slot in self._slots)

    def __call__(self, payload: bytes | memoryview) -> torch.Tensor:
        """A payload on the device: uint8, flat, in memory of its own.

        The payload may be changed when this returns. The copy may run still: the stream that is current now sees the
        bytes, others after `finish`.
        """
        view = memoryview(payload)
        out = self._runtime.empty(len(view))
        for at in range(0, len(view), self._size):
            piece = view[at : at + self._size]
            slot = self._slot(len(piece))
            place = slot.memory[slot.used : slot.used + len(piece)]
            _fill(place, piece)
            slot.event = self._runtime.copy(place, out[at : at + len(piece)])
            slot.used += -(-len(piece) // _ALIGNMENT) * _ALIGNMENT
        return out

    def _slot(self, length: int) -> _Slot:
        """A buffer with room for some bytes that no copy reads any more."""
        if self._slots and self._slots[-1].used + length <= self._size:
            return self._slots[-1]
        if len(self._slots) < self._most:
            self._slots.append(_Slot(self._runtime.pinned(self._size)))
        else:
            self._slots.append(self._slots.pop(0))
            self._wait(self._slots[-1])
        return self._slots[-1]

    def _wait(self, slot: _Slot) -> None:
        # Copies run one after the other: with the last of a buffer, all of it have ended.
        event, slot.event, slot.used = slot.event, None, 0
        if event is not None:
            self._runtime.wait(event)

    def finish(self) -> None:
        """Wait until all copies have ended, and free the pinned memory."""
        while self._slots:
            self._wait(self._slots.pop(0))
        self._runtime.release()

    def __enter__(self) -> "Staging":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class HostCopies:
    """`Staging` where there is nothing to stage: each payload is copied, and to another device in one go.

    numpy copies without the interpreter, which the threads that read need meanwhile: the pages of new memory take the
    system as long as their bytes take to come.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, payload: bytes | memoryview) -> torch.Tensor:
        """See `Staging`; complete when it returns."""
        view = memoryview(payload)
        out = torch.empty(len(view), dtype=torch.uint8)
        if len(view):
            _fill(out, view)
        return out.to(self._device)

    def finish(self) -> None:
        """Nothing is under way."""


def uploads_to(device: torch.device) -> Staging | HostCopies:
    """What copies payloads to a device; call it with each, and ``finish`` at the end."""
    return Staging(CudaRuntime(device)) if device.type == "cuda" else HostCopies(device)


def _fill(place: torch.Tensor, payload: memoryview) -> None:
    # Not torch's copy: it warns of tensors over what may not be written to, and shares even small ones out to threads,
    # which is slow where these have other things to do.
    np.copyto(place.numpy(), np.frombuffer(payload, np.uint8))
