"""Processes that load one file at the same time, over one cache: each byte comes over the network once."""

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

import bsformat
from bsformat.leases import Leases
from bsformat.superblock import SIZE
from tests.bsformat.many import REQUEST_BYTES, end_of, head_bytes, write_many
from tests.servers import Reply, Request, Scripted

#: Opens a URL over a cache when a line comes, reads the first blocks with some threads, and prints their digest.
PROGRAM = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
import bsformat
url, folder, n, threads, request_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
print("ready", flush=True)
sys.stdin.readline()
with bsformat.open(url, cache=bsformat.BlockCache(folder, 1 << 30)) as container:
    def read(span):
        return [bytes(p) for _, p in container.decode_span(span, container.read(span.offset, span.length))]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(read, container.spans(0, n, request_bytes)))
print(hashlib.sha256(b"".join(b"".join(part) for part in parts)).hexdigest(), flush=True)
"""


@pytest.fixture
def served(scripted: Scripted, tmp_path: Path) -> Scripted:
    scripted.data = write_many(tmp_path / "many.bstk")
    return scripted


class Loader:
    """A process that loads when it is told to."""

    def __init__(self, server: Scripted, folder: Path, n: int, threads: int, request_bytes: int) -> None:
        args = [server.url(), str(folder), str(n), str(threads), str(request_bytes)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> str:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return str(out).strip()


@contextmanager
def loaders(
    count: int, server: Scripted, tmp_path: Path, n: int, threads: int, request_bytes: int = REQUEST_BYTES
) -> Iterator[list[Loader]]:
    started = [Loader(server, tmp_path / "cache", n, threads, request_bytes) for _ in range(count)]
    try:
        yield started
    finally:
        for loader in started:
            loader.process.kill()
            loader.process.communicate()


def expected(server: Scripted, n: int) -> str:
    with bsformat.open(bsformat.MemorySource(server.data)) as container:
        return hashlib.sha256(b"".join(container.read_block(i) for i in range(n))).hexdigest()


def split(server: Scripted) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The ranges of heads and the ranges of blocks that were asked for, sorted."""
    with bsformat.open(bsformat.MemorySource(server.data)) as container:
        blocks_offset = container.superblock.blocks_offset
    asked = sorted((r.start, r.stop) for r in server.requests)
    return [r for r in asked if r[0] < blocks_offset], [r for r in asked if r[0] >= blocks_offset]


@pytest.mark.parametrize(("count", "threads"), [(2, 1), (4, 4), (6, 3)])
def test_each_byte_is_read_once(served: Scripted, tmp_path: Path, count: int, threads: int) -> None:
    n = 300
    with loaders(count, served, tmp_path, n, threads) as running:
        for loader in running:
            loader.begin()
        assert {loader.result() for loader in running} == {expected(served, n)}
    heads, blocks = split(served)
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        # One process read the head, the others the superblock.
        assert sum(stop - start for start, stop in heads) == head_bytes(container) + (count - 1) * SIZE
        assert (blocks[0][0], blocks[-1][1]) == (container.superblock.blocks_offset, end_of(container, n))
    assert all(a[1] == b[0] for a, b in pairwise(blocks)), "a byte was read twice, or not at all"


def test_processes_with_other_ranges(served: Scripted, tmp_path: Path) -> None:
    """Their requests cut the file at other places, and they want other prefixes: still nothing comes twice."""
    with (
        loaders(1, served, tmp_path, 300, 2) as first,
        loaders(1, served, tmp_path, 220, 2, 10_000) as second,
        loaders(1, served, tmp_path, 260, 3, 50_000) as third,
    ):
        for loader in (*first, *second, *third):
            loader.begin()
        for loader, n in ((first[0], 300), (second[0], 220), (third[0], 260)):
            assert loader.result() == expected(served, n)
    _, blocks = split(served)
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        wanted = [container.block(i) for i in range(300)]
    for block in wanted:
        assert sum(a <= block.offset and block.offset + block.stored <= b for a, b in blocks) == 1
    assert all(a[1] <= b[0] for a, b in pairwise(blocks))


@pytest.mark.parametrize("where", ["head", "blocks"])
def test_one_of_them_is_killed(served: Scripted, tmp_path: Path, where: str) -> None:
    n = 300
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        blocks_offset = container.superblock.blocks_offset
    stalled, go_on = threading.Event(), threading.Event()
    seen = 0

    def stall(request: Request) -> Reply:
        nonlocal seen
        with served.lock:
            seen += request.start >= (blocks_offset if where == "blocks" else 0)
            mine = seen == (4 if where == "blocks" else 1) and not stalled.is_set()
        if mine:
            stalled.set()
            assert go_on.wait(30)
        return served.good(request)

    served.reply = stall
    with loaders(3, served, tmp_path, n, 1) as (victim, *others):
        victim.begin()
        assert stalled.wait(30)
        before = len(served.requests)
        for loader in others:
            loader.begin()
        if where == "blocks":
            # They read on beyond the range that the victim has the lease of, and then wait for it.
            deadline = threading.Event()
            while len(served.requests) < before + 2:
                assert not deadline.wait(0.01)
        deadline = threading.Event()
        deadline.wait(0.3)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        assert {loader.result() for loader in others} == {expected(served, n)}
        go_on.set()
    _, blocks = split(served)
    # What the victim was reading when it was killed is all that was asked for twice.
    again = [a for a, b in pairwise(blocks) if a == b]
    assert len(again) == (where == "blocks")
    once = sorted(set(blocks))
    assert all(a[1] == b[0] for a, b in pairwise(once))
    assert sum(r.stop - r.start > SIZE and r.start == 0 for r in served.requests) == (2 if where == "head" else 1)


def test_a_holder_that_never_comes_back(served: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is held for ever, by a stopped process say, costs some patience and not the load."""
    cache = bsformat.BlockCache(tmp_path / "cache", 1 << 30)
    cache.prepare()
    monkeypatch.setattr("bsformat.cached.PATIENCE", 0.05)
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        root = bytes.fromhex(container.root)
        block = container.block(150)
    with cache.leases(root) as lease:
        assert lease.take(block.offset, block.offset + 1)
        with bsformat.open(served.url(), cache=cache) as container:
            assert container.read_block(150) == bsformat.open(bsformat.MemorySource(served.data)).read_block(150)


def test_leases_of_ranges(tmp_path: Path) -> None:
    path = str(tmp_path / "leases")
    with Leases(path, b"ab") as one, Leases(path, b"ab") as two, Leases(path, b"cd") as other:
        assert one.take(0, 100)
        assert one.take(50, 60)
        assert not two.take(99, 200)
        assert two.take(100, 200)
        assert other.take(0, 200)
        assert not one.take(150, 151)
        assert two.take(1 << 60, 1 << 61)
        one.release()
        assert two.take(0, 100)
