"""Payloads on their way to a GPU: what is in the pinned buffers while copies run. The device is made up."""

import random
from typing import Any

import pytest
import torch

from bitstack.staging import HostCopies, Staging, uploads_to


class LateRuntime:
    """A device whose copies run as late as they may: when somebody waits for them, or looks.

    A pinned buffer that is written to before its copy ran gives wrong bytes, as on a GPU.
    """

    def __init__(self) -> None:
        self.queue: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.events = self.waits = self.most_queued = self.released = 0
        self.pinned_sizes: list[int] = []

    def pinned(self, size: int) -> torch.Tensor:
        self.pinned_sizes.append(size)
        return torch.full((size,), 0xEE, dtype=torch.uint8)

    def empty(self, size: int) -> torch.Tensor:
        return torch.full((size,), 0xDD, dtype=torch.uint8)

    def copy(self, source: torch.Tensor, out: torch.Tensor) -> int:
        assert source.shape == out.shape
        self.events += 1
        self.queue.append((self.events, source, out))
        self.most_queued = max(self.most_queued, sum(s.numel() for _, s, _ in self.queue))
        return self.events

    def wait(self, event: int) -> None:
        """The stream runs in order: up to this event, and no further."""
        self.waits += 1
        while self.queue and self.queue[0][0] <= event:
            _, source, out = self.queue.pop(0)
            out.copy_(source)

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize("buffers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_payloads_arrive_whatever_their_sizes(buffers: int, seed: int) -> None:
    draw, runtime = random.Random(seed), LateRuntime()
    payloads = [draw.randbytes(draw.choice([0, 1, 255, 256, 257, 1000, 4096, 4097, 10_000])) for _ in range(200)]
    with Staging(runtime, buffers=buffers, buffer_bytes=4096) as staging:
        out = []
        for i, payload in enumerate(payloads):
            source: Any = bytearray(payload) if i % 2 else payload
            out.append(staging(memoryview(source) if i % 3 else source))
            if isinstance(source, bytearray):
                source[:] = bytes(len(source))  # the caller may use its memory again
            assert staging.pinned_bytes <= buffers * 4096
    assert [tensor.numpy().tobytes() for tensor in out] == payloads
    assert runtime.pinned_sizes == [4096] * buffers
    assert (staging.pinned_bytes, runtime.released, runtime.queue) == (0, 1, [])


def test_copies_run_while_the_next_buffer_is_filled() -> None:
    runtime = LateRuntime()
    with Staging(runtime, buffers=3, buffer_bytes=1024) as staging:
        for _ in range(12):
            staging(bytes(256))
        # Three buffers of four payloads each: nobody had to wait yet.
        assert (runtime.waits, runtime.events) == (0, 12)
        staging(bytes(256))
        assert runtime.waits == 1
        assert runtime.events - len(runtime.queue) == 4  # for the first buffer only
    assert runtime.most_queued == 12 * 256


def test_each_payload_has_memory_of_its_own() -> None:
    with Staging(LateRuntime(), buffer_bytes=4096) as staging:
        tensors = [staging(bytes(100)) for _ in range(10)]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 10
    assert {t.untyped_storage().nbytes() for t in tensors} == {100}


def test_it_can_be_used_again_after_its_end() -> None:
    runtime = LateRuntime()
    staging = Staging(runtime, buffer_bytes=1024)
    first = staging(b"one")
    staging.finish()
    second = staging(b"two")
    staging.finish()
    assert (first.numpy().tobytes(), second.numpy().tobytes()) == (b"one", b"two")


def test_on_the_host_it_is_a_copy() -> None:
    upload = uploads_to(torch.device("cpu"))
    assert isinstance(upload, HostCopies)
    payload = bytearray(b"some bytes")
    out = upload(memoryview(payload))
    payload[:] = bytes(10)
    upload.finish()
    assert out.numpy().tobytes() == b"some bytes"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_bytes_arrive_in_the_order_of_the_stream() -> None:
    """Products that use a payload right after it was put, and drop it: its memory is given out again at once."""
    device, draw = torch.device("cuda"), random.Random(0)
    upload = uploads_to(device)
    assert isinstance(upload, Staging)
    sums, wanted = [], []
    for _ in range(300):
        payload = draw.randbytes(draw.randrange(1, 3 << 20))
        tensor = upload(bytearray(payload))
        sums.append(tensor.long().sum())
        wanted.append(int(torch.frombuffer(bytearray(payload), dtype=torch.uint8).long().sum()))
        del tensor
    upload.finish()
    assert [int(s) for s in sums] == wanted
    assert upload.pinned_bytes == 0
