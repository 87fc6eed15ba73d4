"""Reading runs of blocks side by side: what is read, what is held, how it ends, and what it makes of a bad server."""

import asyncio
import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bsformat
from bsformat import Flow, Network, Reading
from bsformat.errors import IntegrityError, SourceError
from bsformat.s3 import S3Source
from bsformat.volumes import Extent
from tests.bsformat import faulty
from tests.bsformat.encoder import Block, Image
from tests.bsformat.faulty import FaultyServer, serving, status
from tests.bsformat.test_faults import Clock, network, watched
from tests.servers import S3, Nginx, Scripted

MIB = 1 << 20


def write_file(path: Path, n_blocks: int, side: int = 256, *, compressed: int = 0) -> bytes:
    """Sign blocks of 8 KiB and a little each, behind raw tensors of which ``compressed`` shrink to little."""
    draw = np.random.default_rng(1)
    form = bsformat.Form("sign", rank=1, factors="F16")
    tensors = [bsformat.Tensor(f"t{i}", (side, side), "F32") for i in range(compressed)]
    tensors += [bsformat.Tensor(name, (side,), "F16") for name in ("w#r", "w#c")]
    tensors.append(bsformat.Tensor("w", (side, side), "BF16", side, compressed, compressed + 1))
    with bsformat.Writer(path, tensors) as writer:
        *others, packed = writer.tensors
        for i, tensor in enumerate(others):
            data = draw.integers(1, 9, side * side, np.uint8).astype("<f4") if i < compressed else np.ones(side, "<f2")
            writer.put(tensor.first_chain, bsformat.Form("raw"), data.tobytes())
        for _ in range(n_blocks):
            data = draw.bytes(side * side // 8) + np.ones(2 * side, "<f2").tobytes()
            writer.put(packed.first_chain, form, data)
        writer.finish([(packed.first_chain, float(n_blocks - i)) for i in range(n_blocks)])
    return path.read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_file(tmp_path_factory.mktemp("flow") / "f.bstk", 250)


def held_apart(flow: Flow) -> list[tuple[int, bytes]]:
    """The payloads of a flow, copied, with the numbers of their blocks."""
    return [(block.number, bytes(payload)) for part in flow for block, payload in part.blocks]


def expected(data: bytes) -> list[tuple[int, bytes]]:
    with bsformat.open(bsformat.MemorySource(data)) as container:
        return [(i, container.read_block(i)) for i in range(len(container))]


@pytest.mark.parametrize("ordered", [True, False])
def test_runs_of_a_file_over_http(data: bytes, nginx: Nginx, ordered: bool) -> None:
    """Every byte of the runs once, and none beside them; the head was read when it was opened."""
    url, want = nginx.put("f.bstk", data), expected(data)
    with bsformat.open(url, cache=False) as container:
        nginx.log()
        nginx.clear()
        n = len(container)
        runs = [(3, 40), (41, 42), (100, n)]
        got = held_apart(Flow(container, runs, memory=MIB, request_bytes=50_000, ordered=ordered))
        if ordered:
            assert [i for i, _ in got] == [i for first, stop in runs for i in range(first, stop)]
        assert sorted(got) == [want[i] for first, stop in runs for i in range(first, stop)]
        assert sum(r.bytes for r in nginx.log()) == sum(container.layout.extent(*run) for run in runs)
        assert {r.status for r in nginx.log()} == {206}
        assert {r.if_match for r in nginx.log()} != {""}


def test_verifying_reads_side_by_side_and_every_byte_once(data: bytes, nginx: Nginx) -> None:
    url, seen = nginx.put("f.bstk", data), list[int]()
    nginx.log()
    nginx.clear()
    report = bsformat.verify(url, network=network(Clock(), memory=MIB), progress=seen.append)
    assert report.ok
    assert sum(seen) == report.size == len(data) == sum(r.bytes for r in nginx.log())
    assert len(nginx.log()) > 4


@pytest.mark.parametrize("where", ["memory", "file"])
def test_verifying_lists_all_damage_in_its_order(data: bytes, tmp_path: Path, where: str) -> None:
    with bsformat.open(bsformat.MemorySource(data)) as container:
        wrong = [3, 4, 90, 91, 200, len(container) - 1]
        offsets = [container.block(i).offset for i in wrong]
    spoiled = bytearray(data)
    for at in offsets:
        spoiled[at + 7] ^= 1
    path = tmp_path / "f.bstk"
    path.write_bytes(spoiled)
    report = bsformat.verify(path if where == "file" else bsformat.MemorySource(bytes(spoiled)))
    found = [(problem.reason, problem.offset) for problem in report.problems]
    assert found == [("block-digest", at) for at in offsets]


def test_connections_are_used_again(data: bytes, nginx: Nginx) -> None:
    url = nginx.put("f.bstk", data)
    with bsformat.open(url, cache=False) as container:
        held_apart(Flow(container, [(0, len(container))], memory=MIB, request_bytes=50_000, requests=3))
    log = nginx.log()
    assert len(log) > 30
    assert len({r.connection for r in log}) <= 4


@pytest.mark.parametrize("memory", [200_000, MIB, 8 * MIB])
@pytest.mark.parametrize("where", ["memory", "file", "http"])
def test_what_is_held_is_bounded(where: str, memory: int, tmp_path: Path, nginx: Nginx) -> None:
    """What came, what is asked for, and what compressed blocks become, with a caller that takes its time."""
    raw = write_file(tmp_path / "z.bstk", 200, compressed=30)
    place: Any = {"memory": bsformat.MemorySource(raw), "file": tmp_path / "z.bstk"}.get(where)
    with bsformat.open(place or nginx.put("z.bstk", raw), cache=False) as container:
        assert sum(form.codec == "zstd" for form in container.metadata.forms) == 1
        decoded = 256 * 256 * 4
        flow, most = Flow(container, [(0, len(container))], memory=memory), 0
        for part in flow:
            if part.span.first % 20 == 0:
                time.sleep(0.01)
            most = max(most, flow.reading().held)
        assert 0 < most <= max(memory, container.layout.span(0, 1, 1)[0].length + decoded + 4096)
        assert flow._buffers.most_used <= max(memory, container.layout.span(0, 1, 1)[0].length + decoded + 4096)
        assert flow._buffers.used == 0


def test_a_payload_that_is_kept_stays_what_it_is(data: bytes, tmp_path: Path) -> None:
    """The rule is to copy it. Who does not, loses nothing but memory."""
    path = tmp_path / "f.bstk"
    path.write_bytes(data)
    want = dict(expected(data))
    with bsformat.open(path) as container:
        kept = {}
        for part in Flow(container, [(0, len(container))], memory=300_000, request_bytes=20_000):
            for block, payload in part.blocks:
                kept[block.number] = np.frombuffer(payload, np.uint8)
        assert {number: array.tobytes() for number, array in kept.items()} == want
        views = []
        for part in Flow(container, [(0, len(container))], memory=300_000, request_bytes=20_000):
            views += [payload for _, payload in part.blocks]
        with pytest.raises(ValueError, match="released"):
            bytes(views[0])


def test_who_watches_sees_all_of_it(data: bytes, nginx: Nginx) -> None:
    seen: list[Reading] = []
    with bsformat.open(nginx.put("f.bstk", data), cache=False) as container:
        runs = [(0, len(container))]
        held_apart(Flow(container, runs, memory=MIB, request_bytes=50_000, watch=seen.append))
        assert seen[-1].done == seen[-1].total == container.layout.extent(*runs[0])
    assert [r.done for r in seen] == sorted(r.done for r in seen)
    assert all(r.held <= MIB and r.running <= r.requests for r in seen)


def test_a_watcher_that_raises_ends_it(data: bytes) -> None:
    def interrupt(reading: Reading) -> None:
        raise KeyboardInterrupt

    with bsformat.open(bsformat.MemorySource(data)) as container, pytest.raises(KeyboardInterrupt):
        held_apart(Flow(container, [(0, len(container))], memory=MIB, watch=interrupt))
    assert not [t for t in threading.enumerate() if t.name.startswith("bstk-read")]


@pytest.mark.parametrize("ordered", [True, False])
def test_damage_ends_it(data: bytes, ordered: bool) -> None:
    with bsformat.open(bsformat.MemorySource(data)) as sound:
        offset = sound.block(120).offset
    bad = bytearray(data)
    bad[offset] ^= 1
    with (
        bsformat.open(bsformat.MemorySource(bytes(bad))) as container,
        pytest.raises(IntegrityError, match="block 120 "),
    ):
        held_apart(Flow(container, [(0, len(container))], memory=MIB, request_bytes=20_000, ordered=ordered))


# --- bad servers ----------------------------------------------------------------------------------------------------


def test_fewer_requests_run_at_a_server_that_says_slow_down(data: bytes) -> None:
    seen: list[Reading] = []
    with serving(FaultyServer(data, status(503), 0.3, seed=2, spared=1)) as server:
        clock = Clock()
        with bsformat.open(server.url(), network=network(clock, attempts=30), cache=False) as container:
            flow = Flow(container, [(0, len(container))], memory=64 * MIB, request_bytes=30_000, watch=seen.append)
            assert watched(lambda: held_apart(flow)) == expected(data)
    assert server.faults > 5
    assert seen[-1].setbacks == server.faults
    assert min(r.requests for r in seen) < 4


@pytest.mark.parametrize("fault", [faulty.stall, status(503, "600"), faulty.hang_up], ids=["stall", "busy", "hang up"])
def test_giving_up_waits_for_nothing(data: bytes, fault: faulty.Fault) -> None:
    """Who ends early, or meets an error elsewhere, does not sit out timeouts and pauses of ranges nobody wants."""
    settings = Network(stall_timeout=300, pause=200, longest_pause=200, deadline=3000)
    with (
        serving(FaultyServer(data, fault, 1.0, spared=3)) as server,
        bsformat.open(server.url(), network=settings, cache=False) as container,
    ):
        flow = iter(Flow(container, [(0, len(container))], memory=64 * MIB, request_bytes=100_000, requests=4))
        next(flow)
        watched(flow.close)  # within less than half a minute
    assert not [t for t in threading.enumerate() if t.name.startswith("bstk-read")]


def test_giving_up_does_not_wait_for_the_session_of_a_file_system(data: bytes) -> None:
    """What needs that session, as a proxy does, is read in a loop of another thread."""
    settings = Network(stall_timeout=300, deadline=3000)
    options: dict[str, Any] = {"client_kwargs": {"headers": {"X-Plain": "p"}}, "skip_instance_cache": True}
    with (
        serving(FaultyServer(data, faulty.stall, 1.0, spared=3)) as server,
        bsformat.open(server.url(), network=settings, cache=False, **options) as container,
    ):
        flow = iter(Flow(container, [(0, len(container))], memory=64 * MIB, request_bytes=100_000, requests=4))
        next(flow)
        watched(flow.close, 10)
    assert not [t for t in threading.enumerate() if t.name.startswith("bstk-read")]


def test_giving_up_does_not_wait_for_s3(data: bytes, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Network(stall_timeout=300, deadline=3000)
    uri = s3.put("stalls.bstk", data)
    with bsformat.open(uri, network=settings, cache=False, **s3.storage_options) as container:
        attempt, count = S3Source._attempt, itertools.count()

        async def stalls(source: S3Source, body: Any) -> bool:
            if next(count) >= 3:
                await asyncio.sleep(300)
            return await attempt(source, body)

        monkeypatch.setattr(S3Source, "_attempt", stalls)
        flow = iter(Flow(container, [(0, len(container))], memory=64 * MIB, request_bytes=100_000, requests=4))
        next(flow)
        watched(flow.close, 10)
    assert not [t for t in threading.enumerate() if t.name.startswith("bstk-read")]


def test_giving_up_does_not_wait_for_another_process(data: bytes, scripted: Scripted, tmp_path: Path) -> None:
    """It holds the lease of a range, and nothing of that comes."""
    scripted.data = data
    cache = bsformat.BlockCache(tmp_path / "cache", 1 << 30)
    with bsformat.open(scripted.url(), cache=cache) as container, cache.leases(container.superblock.root) as other:
        assert other.take(container.block(100).offset, container.size)
        flow = iter(Flow(container, [(0, len(container))], memory=64 * MIB, request_bytes=100_000, requests=4))
        next(flow)
        watched(flow.close, 10)
    assert not [t for t in threading.enumerate() if t.name.startswith("bstk-read")]


def test_a_server_without_ranges_is_read_in_one_piece(data: bytes) -> None:
    with serving(FaultyServer(data, faulty.ignores_range, 1.0)) as server:
        settings = network(Clock(), allow_stream=True)
        with bsformat.open(server.url(), network=settings, cache=False) as container:
            flow = Flow(container, [(0, len(container))], memory=64 * MIB)
            assert watched(lambda: held_apart(flow)) == expected(data)
            assert flow.reading().requests == 1
    # One that is refused, as it is none of a range, and the one that is read.
    assert server.requests == 2


def test_an_error_comes_after_what_is_sound(data: bytes) -> None:
    got: list[tuple[int, bytes]] = []
    with serving(FaultyServer(data)) as server:

        def take_all(container: bsformat.Container) -> None:
            for part in Flow(container, [(0, len(container))], memory=MIB, request_bytes=40_000, requests=2):
                got.extend((block.number, bytes(payload)) for block, payload in part.blocks)
                server.fault, server.rate = faulty.cut, 1.0

        settings = network(Clock(), attempts=2)
        with bsformat.open(server.url(), network=settings, cache=False) as container, pytest.raises(SourceError):
            take_all(container)
    assert got == expected(data)[: len(got)]
    assert got


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No process has so much memory that a block of 2^40 bytes fits it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 39, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("where", ["local", "http", "cache", "volume"])
def test_a_block_that_no_memory_holds(where: str, tmp_path: Path, scripted: Scripted, little_memory: None) -> None:
    """A file of some hundred bytes, and a server that says that it is larger, can ask for it: one line says so."""
    size = (1 << 40) - 64
    tensors = [{"name": "a", "shape": [size], "dtype": "U8"}]
    meta = {"writer": "t", "forms": [{"kind": "raw", "codec": "none"}], "aliases": {}, "attachments": []}
    image = Image(
        meta | {"tensors": tensors, "curves": [], "extra": {}}, [Block(b"", 0, 0, 0, length=size, stored=size)]
    )
    image.required = 1
    total = len(image.seal()) + size
    image.superblock = {"file_length": total, "present_length": total}
    path = tmp_path / "huge.bstk"
    path.write_bytes(image.seal())
    scripted.data = image.seal().ljust(1 << 14, b"\0")
    scripted.reply = lambda request: scripted.good(
        request, Content_Range=f"bytes 0-{len(scripted.data) - 1}/{total}", Content_Length=str(len(scripted.data))
    )
    os.truncate(path, total)
    uri = str(path) if where in ("local", "volume") else scripted.url()
    cache = bsformat.BlockCache(tmp_path / "cache", 1 << 20) if where == "cache" else False
    settings = network(Clock(), attempts=1)
    with bsformat.open(uri, cache=cache, network=settings) as container:
        if where == "volume":
            container.source.join([Extent("huge.bstk", 0, 1, 0, total)])
        calls = [lambda: container.read_block(0), lambda: bsformat.verify(container), lambda: list(flow_of(container))]
        calls.append(lambda: bsformat.repack(container, tmp_path / "out.bstk"))
        for call in calls:
            with pytest.raises(SourceError, match=r"10995116\d{5} bytes \(1.0 TiB\).*more memory") as caught:
                call()
            assert caught.value.where == uri
    assert not (tmp_path / "out.bstk").exists()


def flow_of(container: bsformat.Container) -> Flow:
    return Flow(container, [(0, len(container))], memory=1 << 20)


def test_a_thread_that_breaks_leaves_nobody_waiting(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    with bsformat.open(bsformat.MemorySource(data)) as container:
        flow = Flow(container, [(0, len(container))], memory=MIB)
        monkeypatch.setattr(flow._pace, "ended", broken)
        with pytest.raises(RuntimeError, match="a mistake"):
            watched(lambda: held_apart(flow))
