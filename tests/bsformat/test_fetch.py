"""`bsformat.fetch`: a local prefix file, grown and resumed, whatever ends the process that makes it."""

import errno
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import bsformat
from bsformat import BlockCache, fetch
from bsformat.errors import BudgetError, FormatError, IntegrityError, SourceError, WriteError
from bsformat.superblock import SIZE
from bsformat.work_file import WorkFile
from tests.bsformat.many import end_of, head_bytes, read_blocks, write_many
from tests.servers import Reply, Request, Scripted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_many(tmp_path_factory.mktemp("many") / "many.bstk")


@pytest.fixture
def served(scripted: Scripted, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setattr("bsformat.filling.REQUEST_BYTES", 1 << 14)
    monkeypatch.setattr("bsformat.http._PAUSE", 0.001, raising=False)
    scripted.data = data
    return scripted


@pytest.fixture
def whole(data: bytes) -> bsformat.Container:
    return bsformat.open(bsformat.MemorySource(data))


def budget(whole: bsformat.Container, n_blocks: int) -> int:
    return whole.planner.resident_bytes(n_blocks)


def ranges(server: Scripted) -> list[tuple[int, int]]:
    got = sorted((r.start, min(r.stop, len(server.data))) for r in server.requests)
    server.requests.clear()
    return got


def is_prefix(path: Path, whole: bsformat.Container, n_blocks: int) -> bool:
    """Whether a file is the prefix of so many blocks, by the reader that verifies every byte, and by its bytes."""
    assert bsformat.verify(path, root=whole.root).ok
    with bsformat.open(path) as container:
        assert container.available_blocks == n_blocks
    stored, original = path.read_bytes(), bytes(whole.read(0, whole.size))
    at = slice(80, 88)
    assert stored[:80] + stored[88:] == original[:80] + original[88 : len(stored)]
    return stored[at] == len(stored).to_bytes(8, "little")


def test_a_prefix_its_growth_and_the_whole(served: Scripted, whole: bsformat.Container, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    done = fetch(served.url(), path, budget(whole, 150))
    assert is_prefix(path, whole, 150)
    assert (done.n_blocks, done.total_blocks, done.whole) == (150, len(whole), False)
    asked = ranges(served)
    assert sum(b - a for a, b in asked) == done.bytes_read
    assert (asked[0][0], asked[-1][1]) == (0, end_of(whole, 150))
    assert all(a[1] == b[0] for a, b in pairwise(asked)), "not each byte once"

    done = fetch(served.url(), path, budget(whole, 250))
    assert is_prefix(path, whole, 250)
    asked = ranges(served)
    assert asked[0] == (0, SIZE)
    assert (asked[1][0], asked[-1][1]) == (whole.block(150).offset, end_of(whole, 250))
    assert all(a[1] == b[0] for a, b in pairwise(asked[1:]))
    assert done.bytes_read == SIZE + end_of(whole, 250) - whole.block(150).offset

    assert fetch(served.url(), path).whole
    assert path.read_bytes() == served.data
    assert ranges(served)[1][0] == whole.block(250).offset
    assert os.listdir(tmp_path) == ["local.bstk"]


def test_what_is_there_already_is_not_asked_for(served: Scripted, whole: bsformat.Container, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    fetch(served.url(), path, budget(whole, 200))
    before = path.stat()
    ranges(served)
    done = fetch(served.url(), path, budget(whole, 160))
    assert (done.n_blocks, done.size, done.bytes_read) == (200, before.st_size, SIZE)
    assert ranges(served) == [(0, SIZE)]
    after = path.stat()  # not the time of access, which reading may change
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_file_that_is_read_while_it_grows(served: Scripted, whole: bsformat.Container, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    fetch(served.url(), path, budget(whole, 150))
    with bsformat.open(path) as running:
        fetch(served.url(), path)
        assert read_blocks(running, 0, 150) == read_blocks(whole, 0, 150)


@pytest.mark.parametrize("name", ["path", "prefix"])
def test_from_other_places(served: Scripted, whole: bsformat.Container, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source.bstk"
    source.write_bytes(served.data)
    if name == "path":
        fetch(source, tmp_path / "local.bstk")
        assert (tmp_path / "local.bstk").read_bytes() == served.data
        return
    fetch(source, tmp_path / "short.bstk", budget(whole, 150))
    fetch(tmp_path / "short.bstk", tmp_path / "local.bstk")
    assert is_prefix(tmp_path / "local.bstk", whole, 150)


def test_a_small_file(tmp_path: Path, small: Path) -> None:
    done = fetch(small, tmp_path / "local.bstk")
    assert done.requests == 1
    assert (tmp_path / "local.bstk").read_bytes() == small.read_bytes()


def test_the_cache_is_used_and_left_alone(served: Scripted, whole: bsformat.Container, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    with bsformat.open(served.url(), cache=cache) as container:
        read_blocks(container, 0, 150)
    ranges(served)
    before = cache.info()
    done = fetch(served.url(), tmp_path / "local.bstk", budget(whole, 200), cache=cache)
    assert is_prefix(tmp_path / "local.bstk", whole, 200)
    s = whole.superblock
    files = s.blocks_offset - s.head_length
    assert done.bytes_read == SIZE + files + end_of(whole, 200) - whole.block(150).offset
    assert done.bytes_cached == sum(whole.block(i).stored for i in range(150))
    assert cache.info() == before


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_many(tmp_path_factory.mktemp("other") / "other.bstk", seed=9)


def test_two_roots_are_not_mixed(
    served: Scripted, whole: bsformat.Container, tmp_path: Path, data: bytes, other: bytes
) -> None:
    path = tmp_path / "local.bstk"
    fetch(served.url(), path, budget(whole, 150))
    before = path.read_bytes()
    served.data = other
    with pytest.raises(IntegrityError, match="not mixed") as caught:
        fetch(served.url(), path)
    assert (caught.value.reason, caught.value.where) == ("root-mismatch", str(path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["local.bstk"]


def test_what_was_begun_is_of_another_root(served: Scripted, tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "local.bstk"
    half = Path(f"{path}.part")
    half.write_bytes(other[: len(other) // 2])
    with pytest.raises(IntegrityError, match="not mixed") as caught:
        fetch(served.url(), path)
    assert caught.value.where == str(half)
    assert half.read_bytes() == other[: len(other) // 2]
    path.write_bytes(served.data)
    with pytest.raises(IntegrityError, match="not mixed"):
        fetch(served.url(), path)


def test_another_root_than_demanded(served: Scripted, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        fetch(served.url(), tmp_path / "local.bstk", root="0" * 64)
    assert caught.value.reason == "root-mismatch"
    assert os.listdir(tmp_path) == []


def test_an_output_that_is_no_bstk_is_left_alone(served: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(FormatError) as caught:
        fetch(served.url(), path)
    assert caught.value.where == str(path)
    assert path.read_text() == "dear diary"
    assert served.requests == []


def test_a_budget_below_the_minimum(served: Scripted, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        fetch(served.url(), tmp_path / "local.bstk", 10)
    assert os.listdir(tmp_path) == []


def test_a_missing_object_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        fetch(tmp_path / "none.bstk", tmp_path / "local.bstk")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(served: Scripted, tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught:
        fetch(served.url(), tmp_path / "none" / "local.bstk")
    assert caught.value.reason == "write"


def test_a_folder_as_the_output(served: Scripted, tmp_path: Path, small: Path) -> None:
    """Also one that holds a file which would do: nothing is made of it, and nothing is read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    small.rename(folder / "small.bstk")
    for name in (str(folder), f"{folder}/"):
        with pytest.raises(WriteError, match="is a folder") as caught:
            fetch(served.url(), name)
        assert caught.value.where == name
    assert served.requests == []
    assert os.listdir(folder) == ["small.bstk"]


def test_a_link_in_place_of_what_is_filled(served: Scripted, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("dear diary")
    (tmp_path / "local.bstk.part").symlink_to(precious)
    with pytest.raises(WriteError, match="is a link") as caught:
        fetch(served.url(), tmp_path / "local.bstk")
    assert caught.value.where.endswith(".part")
    assert precious.read_text() == "dear diary"


def test_two_at_once(served: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    with WorkFile(f"{path}.part"), pytest.raises(WriteError, match="another fetch"):
        fetch(served.url(), path)
    assert os.listdir(tmp_path) == []


# --- what ends early ------------------------------------------------------------------------------------------------


def test_a_server_that_fails_midway(served: Scripted, whole: bsformat.Container, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    limit = whole.block(200).offset

    def fails(request: Request) -> Reply:
        return served.good(request) if request.stop <= limit else Reply(403)

    served.reply = fails
    with pytest.raises(SourceError):
        fetch(served.url(), path)
    assert os.listdir(tmp_path) == ["local.bstk.part"]
    ranges(served)
    served.reply = served.good
    done = fetch(served.url(), path)
    assert path.read_bytes() == served.data
    assert done.bytes_local > 0
    assert done.bytes_read + done.bytes_local < len(served.data) + SIZE


def test_a_full_disk(
    served: Scripted, whole: bsformat.Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "local.bstk"
    fetch(served.url(), path, budget(whole, 150))
    pwrite, limit = os.pwrite, whole.block(200).offset

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(WriteError, match="what came so far is kept") as caught:
            fetch(served.url(), path)
    assert caught.value.reason == "disk-full"
    assert is_prefix(path, whole, 150)
    assert fetch(served.url(), path).whole


@pytest.mark.parametrize("where", ["head", "attachment", "block", "padding", "end"])
def test_damage_in_what_was_begun_is_repaired(
    served: Scripted, whole: bsformat.Container, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "local.bstk"
    fetch(served.url(), path, budget(whole, 200))
    stored = bytearray(path.read_bytes())
    block = whole.block(150)
    if where == "end":
        del stored[-100:]
    else:
        attached, after = whole.superblock.head_length + 9, block.offset + block.stored
        stored[{"head": 500, "attachment": attached, "block": block.offset, "padding": after}[where]] ^= 1
    Path(f"{path}.part").write_bytes(stored)
    path.unlink()
    ranges(served)
    fetch(served.url(), path, budget(whole, 200))
    assert is_prefix(path, whole, 200)
    asked = ranges(served)
    if where == "block":
        assert asked == [(0, SIZE), (block.offset, block.offset + block.stored)]
    elif where == "padding":
        assert asked == [(0, SIZE)]
    elif where == "head":
        assert sum(b - a for a, b in asked) >= head_bytes(whole)


#: Fetches a local file, and kills itself with SIGKILL right before, or in the middle of, one of its calls.
PROGRAM = """
import os, signal, sys
import bsformat
import bsformat.filling
source, output, budget, at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
bsformat.filling.REQUEST_BYTES = 1 << 14
calls = 0
def watched(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            if name == "pwrite":
                real(args[0], args[1][:len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
for name in ("pwrite", "ftruncate", "fsync", "replace"):
    watched(name)
bsformat.fetch(source, output, budget)
print(calls)
"""


@pytest.mark.parametrize("grown", [False, True], ids=["new", "grown"])
def test_killed_at_every_write(whole: bsformat.Container, data: bytes, tmp_path: Path, grown: bool) -> None:
    source, path = tmp_path / "source.bstk", tmp_path / "out" / "local.bstk"
    path.parent.mkdir()
    source.write_bytes(data)
    least = whole.index.required
    first, last = least + 10, least + 30

    def run(at: int) -> subprocess.CompletedProcess[str]:
        for old in path.parent.iterdir():
            old.unlink()
        if grown:
            fetch(source, path, budget(whole, first))
        args = [sys.executable, "-P", "-c", PROGRAM, str(source), str(path), str(budget(whole, last)), str(at)]
        return subprocess.run(args, capture_output=True, text=True, check=False)

    calls = int(run(0).stdout)
    assert calls > 10
    # Every call of the beginning and the end, and some of the copying between them.
    moments = sorted({*range(1, 6), *range(6, calls - 6, max(1, calls // 8)), *range(calls - 6, calls + 1)})
    for at in moments:
        assert run(at).returncode == -signal.SIGKILL
        if path.exists():
            with bsformat.open(path) as container:
                held = container.available_blocks
            assert held in ((first, last) if grown else (last,))
            assert is_prefix(path, whole, held)
        else:
            assert not grown
        done = fetch(source, path, budget(whole, last))
        assert is_prefix(path, whole, last)
        assert os.listdir(path.parent) == ["local.bstk"]
        if grown:
            assert done.bytes_local >= sum(whole.block(i).stored for i in range(first)) or done.bytes_local == 0
