"""Streaming a run of blocks: which bytes are read, in what order blocks come, and what is in memory meanwhile."""

import threading

import pytest

import bsformat
from bitstack.loader import stream_blocks
from bsformat.errors import FormatError, IntegrityError, SourceError
from bsformat.registry import ALIGNMENT
from tests.loader.tiny import WatchedSource, fails_beyond, fetched


def readers() -> list[str]:
    """The names of the threads that read."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bstk-read")]


def drain(
    container: bsformat.Container, first: int, stop: int, *, given: list[int] | None = None, **limits: int
) -> list[int]:
    """Take all blocks, keep no payload, and give the numbers of the blocks, in ``given`` too."""
    numbers = [] if given is None else given
    for block, payload in stream_blocks(container, first, stop, **limits):
        del payload
        numbers.append(block.number)
    return numbers


@pytest.mark.parametrize("requests", [1, 2, 4])
@pytest.mark.parametrize("request_bytes", [1, 300, 2000, 1 << 20])
@pytest.mark.parametrize("part", ["all", "middle", "one", "last"])
def test_reads_tile_the_range(
    source: WatchedSource, container: bsformat.Container, part: str, request_bytes: int, requests: int
) -> None:
    n = len(container)
    first, stop = {"all": (0, n), "middle": (n // 3, n - 7), "one": (n - 2, n - 1), "last": (n - 1, n)}[part]
    assert drain(container, first, stop, request_bytes=request_bytes, requests=requests) == list(range(first, stop))
    assert source.tiled() == fetched(container, first, stop)
    assert len(set(source.reads)) == len(source.reads)


def test_blocks_come_in_order_with_their_payloads(container: bsformat.Container) -> None:
    got = [(b, bytes(payload)) for b, payload in stream_blocks(container, 0, len(container), request_bytes=1000)]
    assert got == [(container.block(n), container.read_block(n)) for n in range(len(container))]


def test_order_does_not_depend_on_which_request_ends_first(
    source: WatchedSource, container: bsformat.Container
) -> None:
    n = len(container)
    ends: dict[int, threading.Event] = {}
    spans = list(container.spans(n // 2, n, 1000))
    for span in spans:
        ends[span.offset] = threading.Event()
    following = {a.offset: b.offset for a, b in zip(spans[::2], spans[1::2], strict=False)}

    def later_ones_first(offset: int, length: int) -> None:
        if offset in following:
            assert ends[following[offset]].wait(10), "the next request was not made meanwhile"
        ends[offset].set()

    source.trouble = later_ones_first
    assert drain(container, n // 2, n, request_bytes=1000, requests=2) == list(range(n // 2, n))


def test_nothing_is_read_for_no_blocks(source: WatchedSource, container: bsformat.Container) -> None:
    assert drain(container, 9, 9) == []
    assert source.reads == []


def test_a_large_block_is_one_request(source: WatchedSource, container: bsformat.Container) -> None:
    n = len(container)
    drain(container, n - 5, n, request_bytes=1)
    ends = [*(container.block(i + 1).offset for i in range(n - 5, n - 1)), container.size]
    assert sorted(source.reads) == [
        (container.block(i).offset, end - container.block(i).offset)
        for i, end in zip(range(n - 5, n), ends, strict=True)
    ]


@pytest.mark.parametrize("requests", [1, 2, 4])
def test_bytes_in_memory_are_bounded(source: WatchedSource, container: bsformat.Container, requests: int) -> None:
    request_bytes = 24 * ALIGNMENT
    assert max(int(length) for length in container.index.stored) < request_bytes
    drain(container, 0, len(container), request_bytes=request_bytes, requests=requests)
    assert len(source.reads) > 3 * requests
    assert source.most_running <= requests
    assert source.most_held <= requests * request_bytes
    assert source.held == 0


def test_requests_are_made_side_by_side(source: WatchedSource, container: bsformat.Container) -> None:
    together = threading.Barrier(3)
    source.trouble = lambda offset, length: len(source.reads) <= 3 and together.wait(10)
    drain(container, 60, len(container), request_bytes=1500, requests=3)
    assert source.most_running == 3


def test_a_slow_consumer_is_not_overrun(source: WatchedSource, container: bsformat.Container) -> None:
    stream = stream_blocks(container, len(container) // 2, len(container), request_bytes=1000, requests=3)
    block, payload = next(stream)
    # Two requests are ahead of the one that is consumed, however long that takes.
    for _ in range(3):
        assert len(source.reads) <= 3
        threading.Event().wait(0.02)
    assert block.number == len(container) // 2
    del payload
    stream.close()
    assert len(source.reads) <= 3


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_damaged_block_ends_the_stream(tiny_bytes: bytes, position: str) -> None:
    with bsformat.open(bsformat.MemorySource(tiny_bytes)) as sound:
        n = len(sound)
        number = {"first": 0, "middle": n // 2, "last": n - 1}[position]
        offset = sound.block(number).offset
    damaged = bytearray(tiny_bytes)
    damaged[offset] ^= 0x10
    given: list[int] = []
    with bsformat.open(WatchedSource(bytes(damaged))) as container:
        with pytest.raises(IntegrityError, match=f"block {number} ") as caught:
            drain(container, 0, n, given=given, request_bytes=1000)
        assert caught.value.reason == "block-digest"
        assert caught.value.offset == offset
        assert "\n" not in str(caught.value)
    assert given == list(range(len(given)))
    assert len(given) <= number
    assert readers() == []


def test_damaged_padding_ends_the_stream(tiny_bytes: bytes) -> None:
    with bsformat.open(bsformat.MemorySource(tiny_bytes)) as sound:
        n = len(sound)
        block = next(b for b in (sound.block(i) for i in range(n // 2, n - 1)) if b.stored % 64)
    damaged = bytearray(tiny_bytes)
    damaged[block.offset + block.stored] = 1
    with bsformat.open(WatchedSource(bytes(damaged))) as container, pytest.raises(FormatError) as caught:
        drain(container, 0, n)
    assert caught.value.reason == "padding"
    assert caught.value.offset == block.offset + block.stored


def test_a_failing_read_ends_the_stream(source: WatchedSource, container: bsformat.Container) -> None:
    n = len(container)
    limit = container.block(n - 10).offset
    source.trouble = fails_beyond(limit)
    given: list[int] = []
    with pytest.raises(SourceError, match="the cable is cut"):
        drain(container, n // 2, n, given=given, request_bytes=1000)
    assert given == list(range(n // 2, n // 2 + len(given)))
    assert 0 < len(given) <= n // 2
    assert readers() == []
    assert source.held == 0


def test_a_stream_that_is_given_up_reads_no_further(source: WatchedSource, container: bsformat.Container) -> None:
    stream = stream_blocks(container, len(container) // 2, len(container), request_bytes=600, requests=2)
    block, payload = next(stream)
    assert block.number == len(container) // 2
    del payload
    stream.close()
    assert readers() == []
    assert len(source.reads) <= 2
    assert source.held == 0
