"""The cache of remote files: what is asked of the server with it, and what it does when something is wrong with it."""

import logging
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import bsformat
from bsformat import BlockCache, cache_place, catalogue
from bsformat.errors import BudgetError, IntegrityError
from bsformat.flow import Flow
from bsformat.superblock import SIZE
from tests.bsformat.many import end_of, head_bytes, read_blocks, write_many
from tests.servers import Nginx, Scripted

Read = Callable[..., list[bytes]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_many(tmp_path_factory.mktemp("many") / "many.bstk")


@pytest.fixture(scope="module")
def plain(data: bytes) -> list[bytes]:
    """The payloads of all blocks."""
    with bsformat.open(bsformat.MemorySource(data)) as container:
        return [container.read_block(i) for i in range(len(container))]


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def served(scripted: Scripted, data: bytes) -> Scripted:
    scripted.data = data
    return scripted


def ranges(server: Scripted) -> list[tuple[int, int]]:
    """The ranges asked for since the last call, in order of their starts."""
    got = sorted((r.start, min(r.stop, len(server.data))) for r in server.requests)
    server.requests.clear()
    return got


def total(asked: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in asked)


def segments(cache: BlockCache) -> list[Path]:
    return sorted(Path(cache.folder).glob("blocks.*/segments/*"))


def load(server: Scripted, cache: BlockCache | bool, n_blocks: int) -> list[bytes]:
    """Open, and read a prefix."""
    with bsformat.open(server.url(), cache=cache) as container:
        return read_blocks(container, 0, n_blocks)


IDENTITY = [(0, SIZE)]


def test_the_second_load_asks_for_the_superblock_only(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    with bsformat.open(served.url(), cache=cache) as container:
        assert read_blocks(container, 0, 200) == plain[:200]
        first = ranges(served)
        # The attached file lies between head and blocks, and nobody asked for it.
        assert total(first) == head_bytes(container) + end_of(container, 200) - container.superblock.blocks_offset
        assert container.source.bytes_read == total(first)
        assert container.bytes_cached == 0
    for n_blocks in (200, 120, 150):
        assert load(served, cache, n_blocks) == plain[:n_blocks]
        assert ranges(served) == IDENTITY


def test_with_a_cache_the_first_load_reads_what_it_reads_without(served: Scripted, cache: BlockCache) -> None:
    load(served, False, 200)
    without = ranges(served)
    load(served, cache, 200)
    assert ranges(served) == without


def test_growing_reads_the_difference(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    load(served, cache, 150)
    ranges(served)
    with bsformat.open(served.url(), cache=cache) as container:
        assert read_blocks(container, 0, 250) == plain[:250]
        asked = ranges(served)
        assert asked[0] == (0, SIZE)
        assert (asked[1][0], asked[-1][1]) == (container.block(150).offset, end_of(container, 250))
        assert all(a[1] == b[0] for a, b in pairwise(asked[1:]))
        assert container.bytes_cached == sum(container.block(i).stored for i in range(150))


def test_attachments_are_kept_too(served: Scripted, cache: BlockCache) -> None:
    with bsformat.open(served.url(), cache=cache) as container:
        file = container.attachment("tokenizer.json")
    ranges(served)
    with bsformat.open(served.url(), cache=cache) as container:
        assert container.attachment("tokenizer.json") == file
    assert ranges(served) == IDENTITY


def test_blocks_that_came_with_a_short_head_are_kept(scripted: Scripted, cache: BlockCache, tmp_path: Path) -> None:
    scripted.data = write_many(tmp_path / "short.bstk", n_tensors=9)
    with bsformat.open(scripted.url(), cache=cache) as container:
        assert container.superblock.head_length < 1 << 14
        n = len(container)
        blocks = read_blocks(container, 0, n)
    first = ranges(scripted)
    assert total(first) <= len(scripted.data)
    assert load(scripted, cache, n) == blocks
    assert ranges(scripted) == IDENTITY


def test_one_block_of_many_that_are_there(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    """Blocks that are there are not asked for again, wherever they lie in a range."""
    with bsformat.open(served.url(), cache=cache) as container:
        for number in (131, 132, 140):
            container.read_block(number)
        ranges(served)
        span = next(container.spans(125, 145, 1 << 20))
        payloads = [bytes(p) for _, p in container.decode_span(span, container.read(span.offset, span.length))]
        assert payloads == plain[125:145]
        at = [container.block(i).offset for i in range(146)]
        assert ranges(served) == [(at[125], at[131]), (at[133], at[140]), (at[141], end_of(container, 145))]


def test_any_range_is_what_stands_there(served: Scripted, cache: BlockCache, data: bytes) -> None:
    load(served, cache, 200)
    with bsformat.open(served.url(), cache=cache) as container:
        s, block = container.superblock, container.block(130)
        starts = (0, 50, s.head_length - 1, s.head_length, s.blocks_offset, block.offset, block.offset + 1)
        stops = (s.head_length, s.blocks_offset, block.offset, block.offset + block.stored, container.size)
        for start in starts:
            for stop in stops:
                if start < stop:
                    assert container.read(start, stop - start) == data[start:stop], (start, stop)


def test_files_share_blocks(served: Scripted, cache: BlockCache, tmp_path: Path, data: bytes) -> None:
    load(served, cache, 360)
    ranges(served)
    with bsformat.open(bsformat.MemorySource(data)) as container:
        chains = [int(c) for c in container.index.chain[container.index.required :]]
        order = [(chain, float(i)) for i, chain in enumerate(reversed(chains))]
        other = tmp_path / "other.bstk"
        root = bsformat.rewrite(container, other, order=order[::-1])
        assert root != container.root
    served.data, served.etag = other.read_bytes(), '"other"'
    with bsformat.open(served.url("other.bstk"), cache=cache) as container:
        read_blocks(container, 0, 360)
        assert total(ranges(served)) == head_bytes(container)


def test_another_name_of_the_same_file(served: Scripted, cache: BlockCache) -> None:
    load(served, cache, 200)
    ranges(served)
    with bsformat.open(served.url("signed?until=1"), cache=cache) as container:
        read_blocks(container, 0, 200)
    assert ranges(served) == [(0, 1 << 14)]


def test_an_object_that_was_replaced(served: Scripted, cache: BlockCache, tmp_path: Path) -> None:
    load(served, cache, 200)
    ranges(served)
    served.data, served.etag = write_many(tmp_path / "new.bstk", seed=2), '"new"'
    new = load(served, False, 200)
    without = total(ranges(served))
    assert load(served, cache, 200) == new
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        # The superblock was read alone, and what stands after it once it turned out to be another file's.
        assert total(ranges(served)) == without - (head_bytes(container) - container.superblock.head_length)


def test_over_nginx(nginx: Nginx, data: bytes, cache: BlockCache, plain: list[bytes]) -> None:
    url = nginx.put("many.bstk", data)
    for turn in range(2):
        nginx.clear()
        with bsformat.open(url, cache=cache) as container:
            assert read_blocks(container, 0, len(container)) == plain
        log = nginx.log()
        assert turn == 0 or [(r.range, r.bytes) for r in log] == [(f"bytes=0-{SIZE - 1}", SIZE)]


# --- damage ---------------------------------------------------------------------------------------------------------


def damage(path: Path, at: int) -> None:
    stored = bytearray(path.read_bytes())
    stored[at] ^= 1
    path.write_bytes(stored)


def test_a_damaged_block_is_fetched_again(
    served: Scripted, cache: BlockCache, plain: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    load(served, cache, 200)
    damage(segments(cache)[0], 5)
    ranges(served)
    with caplog.at_level(logging.WARNING):
        assert load(served, cache, 200) == plain[:200]
    assert "damaged" in caplog.text
    asked = ranges(served)
    assert len(asked) == 2
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        assert asked[1][0] in {container.block(i).offset for i in range(200)}
    assert load(served, cache, 200) == plain[:200]
    assert ranges(served) == IDENTITY


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "zeros"])
def test_a_segment_that_is_not_what_it_was(served: Scripted, cache: BlockCache, plain: list[bytes], how: str) -> None:
    load(served, cache, 200)
    path = segments(cache)[1]
    stored = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": stored[: len(stored) // 2 + 3], "zeros": bytes(len(stored))}[how])
    for turn in range(2):
        ranges(served)
        assert load(served, cache, 200) == plain[:200]
        assert turn == 0 or ranges(served) == IDENTITY


@pytest.mark.parametrize("how", ["gone", "torn", "zeros", "noise", "cut"])
def test_a_damaged_catalogue(served: Scripted, cache: BlockCache, plain: list[bytes], how: str) -> None:
    load(served, cache, 200)
    path = Path(cache.folder) / "blocks.1" / "catalogue"
    stored = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        rest = {"torn": stored[:30], "zeros": bytes(640), "noise": os.urandom(200), "cut": b""}[how]
        path.write_bytes((stored[: len(stored) // 2] if how == "cut" else stored) + rest)
    for turn in range(2):
        ranges(served)
        assert load(served, cache, 250) == plain[:250]
        assert turn == 0 or ranges(served) == IDENTITY


@pytest.mark.parametrize("how", ["changed", "cut", "empty"])
def test_a_damaged_head(served: Scripted, cache: BlockCache, plain: list[bytes], how: str) -> None:
    load(served, cache, 200)
    (path,) = (Path(cache.folder) / "blocks.1" / "heads").iterdir()
    if how == "changed":
        damage(path, 1000)
    else:
        path.write_bytes(path.read_bytes()[: 999 if how == "cut" else 0])
    ranges(served)
    assert load(served, cache, 200) == plain[:200]
    with bsformat.open(bsformat.MemorySource(served.data)) as container:
        assert ranges(served) == [(0, SIZE), (SIZE, container.superblock.head_length)]
    load(served, cache, 200)
    assert ranges(served) == IDENTITY


def test_what_a_server_damaged_is_not_kept(
    served: Scripted, cache: BlockCache, data: bytes, plain: list[bytes]
) -> None:
    with bsformat.open(bsformat.MemorySource(data)) as container:
        offset = container.block(150).offset
    served.data = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
    with pytest.raises(IntegrityError) as caught:
        load(served, cache, 200)
    assert (caught.value.reason, caught.value.offset) == ("block-digest", offset)
    served.data = data
    assert load(served, cache, 200) == plain[:200]


def test_a_run_that_ends_while_it_writes(
    served: Scripted, cache: BlockCache, plain: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far a segment came before the power went, nothing of it is taken for a block."""

    class PowerCut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise PowerCut

    for place in ("os.fsync", "os.replace", "os.pwrite", "bsformat.catalogue.append"):
        for content in (b"", b"half of it", bytes(4096)):
            with monkeypatch.context() as patch:
                patch.setattr(place, cut)
                with pytest.raises(PowerCut):
                    load(served, cache, 200)
            for path in Path(cache.folder).glob("blocks.1/*/*.part"):
                path.write_bytes(content)
    assert load(served, cache, 200) == plain[:200]


# --- limits ---------------------------------------------------------------------------------------------------------


def held(cache: BlockCache) -> int:
    return sum(path.stat().st_size for path in segments(cache))


def test_the_least_recently_used_goes_first(scripted: Scripted, tmp_path: Path) -> None:
    files = {name: write_many(tmp_path / name, seed=i) for i, name in enumerate(("a", "b", "c"), 1)}
    cache = BlockCache(tmp_path / "cache", int(2.4 * (len(files["a"]) - 30_000)))
    n = 360

    def use(name: str) -> int:
        scripted.data, scripted.etag = files[name], f'"{name}"'
        with bsformat.open(scripted.url(name), cache=cache) as container:
            assert len(read_blocks(container, 0, n)) == n
            for path in segments(cache):  # an hour passes
                stat = path.stat()
                os.utime(path, (stat.st_atime - 3600, stat.st_mtime - 3600))
            return container.source.bytes_read

    assert use("a") > SIZE
    assert use("b") > SIZE
    assert use("a") == SIZE
    assert use("c") > SIZE
    assert held(cache) <= cache.limit
    assert use("a") == SIZE
    assert use("c") == SIZE
    assert use("b") > SIZE


def test_a_file_larger_than_the_limit_keeps_its_beginning(served: Scripted, tmp_path: Path, plain: list[bytes]) -> None:
    cache = BlockCache(tmp_path / "cache", 100_000)
    for turn in range(3):
        ranges(served)
        with bsformat.open(served.url(), cache=cache) as container:
            assert read_blocks(container, 0, len(container)) == plain
        assert held(cache) <= 100_000
        if turn:
            assert ranges(served)[1][0] > end_of(container, 200) - container.superblock.blocks_offset


def test_a_frozen_cache_is_read_and_not_written(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    load(served, cache.frozen(), 200)
    assert not Path(cache.folder).exists()
    load(served, cache, 150)
    before = held(cache)
    ranges(served)
    assert load(served, cache.frozen(), 200) == plain[:200]
    assert ranges(served)[0] == (0, SIZE)
    assert held(cache) == before


def test_the_default_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_frsize = 4096
        f_bavail = (1 << 40) // 4096

    monkeypatch.setattr("os.statvfs", lambda path: Disk)
    assert BlockCache(tmp_path).limit == 20 << 30
    Disk.f_bavail = (50 << 30) // 4096
    assert BlockCache(tmp_path).limit == 5 << 30


@pytest.mark.parametrize("what", ["a file in its place", "no permission", "a full disk"])
def test_a_cache_that_cannot_be_used(
    served: Scripted,
    tmp_path: Path,
    plain: list[bytes],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "cache"
    if what == "a file in its place":
        folder.write_bytes(b"")
    else:
        monkeypatch.setattr("os.makedirs" if what == "no permission" else "os.fsync", refuse)
    with caplog.at_level(logging.WARNING):
        assert load(served, BlockCache(folder, 1 << 30), 200) == plain[:200]
    assert "cache" in caplog.text


# --- which cache ----------------------------------------------------------------------------------------------------


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BSTK_CACHE", "BSTK_CACHE_SIZE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def place() -> str | None:
        cache = bsformat.default_cache()
        return cache and cache.folder

    assert place() == str(tmp_path / ".cache" / "bitstack")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert place() == str(tmp_path / ".cache" / "bitstack")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert place() == "/xdg/bitstack"
    monkeypatch.setenv("BSTK_CACHE", "~/blocks")
    assert place() == str(tmp_path / "blocks")
    monkeypatch.setenv("BSTK_CACHE_SIZE", "3GiB")
    assert (cache := bsformat.default_cache())
    assert cache.limit == 3 << 30
    monkeypatch.setenv("BSTK_CACHE_SIZE", "much")
    with pytest.raises(BudgetError, match="BSTK_CACHE_SIZE: 'much'"):
        bsformat.default_cache()
    monkeypatch.setenv("BSTK_CACHE_SIZE", "0")
    assert place() is None
    monkeypatch.delenv("BSTK_CACHE_SIZE")
    for word in ("off", "OFF", "0", "none"):
        monkeypatch.setenv("BSTK_CACHE", word)
        assert place() is None


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        *[(uri, True) for uri in ("http://a/b", "https://a/b", "S3://a/b", "hf://a/b", "gs://a/b")],
        *[(uri, False) for uri in ("a.bstk", "/a", "file:///a", "local:///a", "memory://a", Path("http:/a"), b"")],
        *[(uri, False) for uri in ("simplecache::s3://a/b", "zip://a::http://b", "http-a/b", "a://b")],
    ],
)
def test_what_is_remote(uri: object, remote: bool) -> None:
    assert cache_place.is_remote(uri) is remote


def test_the_user_s_cache_is_used_for_urls_and_not_for_local_files(
    served: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSTK_CACHE", str(tmp_path / "mine"))
    path = tmp_path / "local.bstk"
    path.write_bytes(served.data)
    for uri in (path, f"file://{path}", bsformat.MemorySource(served.data)):
        with bsformat.open(uri) as container:
            read_blocks(container, 0, 200)
    load(served, False, 200)
    assert bsformat.verify(served.url()).ok
    assert not (tmp_path / "mine").exists()
    ranges(served)
    load(served, True, 200)
    load(served, True, 200)
    assert ranges(served).count((0, SIZE)) == 1
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


# --- upkeep ---------------------------------------------------------------------------------------------------------


def test_info_verify_and_clear(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    assert cache.info().n_blocks == 0
    assert cache.clear() == 0
    load(served, cache, 200)
    info = cache.info()
    assert (info.n_blocks, info.n_heads, info.n_segments) == (200, 1, len(segments(cache)))
    assert info.n_segments < 20
    assert cache.verify() == (200, 0)
    damage(segments(cache)[0], 0)
    assert cache.verify() == (199, 1)
    assert cache.verify() == (199, 0)
    assert cache.clear() == info.size
    assert cache.info().size == 0
    assert load(served, cache, 200) == plain[:200]


def test_clearing_under_a_reader(served: Scripted, cache: BlockCache, plain: list[bytes]) -> None:
    load(served, cache, 200)
    with bsformat.open(served.url(), cache=cache) as container:
        assert read_blocks(container, 0, 100) == plain[:100]
        cache.clear()
        assert read_blocks(container, 0, 200) == plain[:200]


def test_what_nobody_writes_any_more_is_removed(served: Scripted, cache: BlockCache) -> None:
    load(served, cache, 200)
    folder = segments(cache)[0].parent
    for name in ("0123456789abcdef", "0123456789abcdef.7.1.part"):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - 7200,) * 2)
    (folder / "fedcba9876543210").write_bytes(b"just written")
    cache._evict(cache.limit, set())
    assert {path.name for path in segments(cache)} >= {"fedcba9876543210"}
    assert not [path for path in segments(cache) if path.name.startswith("0123456789abcdef")]


def test_rows_say_what_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    digests = [bytes([i]) * 32 for i in range(5)]
    known = catalogue.Catalogue(path, digests[:4])
    known.refresh()
    catalogue.append(path, catalogue.make_rows(7, digests, range(0, 50, 10), [10] * 5))
    known.refresh()
    assert [known.find(d) for d in digests] == [(7, i * 10, 10) for i in range(4)] + [None]
    catalogue.append(path, catalogue.make_rows(8, digests[:1], [3], [4]))
    catalogue.append(path, catalogue.make_rows(7, digests[1:2], [0], [0]))
    known.refresh()
    assert [known.find(d) for d in digests[:3]] == [(8, 3, 4), None, (7, 20, 10)]
    assert len(catalogue.read_all(path)) == 4


def test_padding_of_blocks_from_the_cache_is_zero_in_memory_that_was_used_before(
    served: Scripted, cache: BlockCache
) -> None:
    """`Flow` reads into buffers again and again, and the cache keeps no padding."""
    for _ in range(2):
        with bsformat.open(served.url(), cache=cache) as container:
            flow = Flow(container, [(0, len(container))], memory=1 << 20, request_bytes=1 << 14)
            assert sum(len(part.blocks) for part in flow) == len(container)
