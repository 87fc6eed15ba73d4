"""Files in several volumes over HTTP, S3 and fsspec: what is asked for when, and what servers can do wrong."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bsformat import BlockCache, Network
from bsformat.errors import AccessDeniedError, BstkError, FormatError, NotFoundError, SourceChangedError
from bsformat.flow import Flow
from bsformat.head import FIRST_READ
from bsformat.source import beside
from bsformat.superblock import SIZE as SUPERBLOCK
from tests.bsformat.many import end_of, read_blocks
from tests.bsformat.test_faults import Clock, network
from tests.bsformat.volumes import joined, names_of, write_volumes
from tests.servers import S3, Nginx, Reply, Request, Scripted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first volume of several; nothing writes to them."""
    return write_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.fixture
def url(nginx: Nginx, path: Path) -> str:
    """The URL of the first volume; the others lie beside it."""
    for name in names_of(path):
        nginx.put(f"models/{name}", (path.parent / name).read_bytes())
    return nginx.url("models/model.bstk")


def served(scripted: Scripted, path: Path) -> dict[str, bytes]:
    """Let a scripted server serve the volumes, whatever the query, each with an ETag; gives what it serves."""
    objects = {f"/{name}": (path.parent / name).read_bytes() for name in names_of(path)}
    lock = threading.Lock()

    def reply(request: Request) -> Reply:
        with lock:
            place = request.path.partition("?")[0]
            if place not in objects:
                return Reply(404)
            scripted.data, scripted.etag = objects[place], f'"{place}-{len(objects[place])}"'
            if request.start >= len(scripted.data):
                return Reply(416, b"", {"Content-Range": f"bytes */{len(scripted.data)}"})
            if request.headers.get("if-match", scripted.etag) != scripted.etag:
                return Reply(412)
            return scripted.good(request)

    scripted.reply = reply
    return objects


def read_all(container: bsformat.Container) -> list[bytes]:
    blocks: list[bytes] = []
    with_parts = Flow(container, [(0, len(container))], memory=1 << 20, request_bytes=1 << 14)
    for part in with_parts:
        blocks += [bytes(payload) for _, payload in part.blocks]
    return blocks


# ------------------------------------------------------------------------------------------------ what is asked for


def test_opening_asks_for_the_head_alone_and_a_prefix_for_its_volumes(nginx: Nginx, url: str, path: Path) -> None:
    names = names_of(path)
    with bsformat.open(url, cache=False) as container, bsformat.open(path) as local:
        log = nginx.log()
        assert [record.uri for record in log] == ["/models/model.bstk"] * 2
        assert sum(record.bytes for record in log) == container.superblock.head_length > FIRST_READ
        nginx.clear()
        volume = container.volumes[2]
        stop = volume.first_block + 1
        assert read_blocks(container, 0, stop) == read_blocks(local, 0, stop)
        log = nginx.log()
        assert {record.uri for record in log} == {f"/models/{name}" for name in names[:3]}
        assert all(record.status == 206 for record in log)
        assert sum(record.bytes for record in log) == end_of(container, stop) - container.superblock.blocks_offset
        assert container.source.requests == len(log) + 2
        # Each volume is pinned by its own ETag from its first answer on.
        pins = {name: [r.if_match for r in log if r.uri.endswith(name)] for name in names[1:3]}
        assert pins["model.00002.bstk"][0] == ""
        assert len(set(pins["model.00002.bstk"][1:])) == 1
        # All of them use the same connections.
        assert len({record.connection for record in log}) == 1


def test_all_of_it_with_many_ranges_at_once(nginx: Nginx, url: str, path: Path) -> None:
    with bsformat.open(url, cache=False) as container, bsformat.open(path) as local:
        assert read_all(container) == read_blocks(local, 0, len(local))
    asked: dict[str, int] = {}
    for record in nginx.log():
        asked[record.uri] = asked.get(record.uri, 0) + record.bytes
    sizes = {f"/models/{name}": (path.parent / name).stat().st_size for name in names_of(path)}
    del sizes["/models/model.bstk"], asked["/models/model.bstk"]
    assert asked == sizes


def test_verified_as_one(url: str, path: Path) -> None:
    with bsformat.open(path) as local:
        report = bsformat.verify(url, root=local.root)
        assert (report.ok, report.size, report.n_blocks) == (True, local.size, len(local))


def test_a_block_is_one_request(nginx: Nginx, url: str) -> None:
    with bsformat.open(url, cache=False) as container:
        for number in (0, container.volumes[1].first_block, len(container) - 1):
            nginx.clear()
            container.read_block(number)
            assert len(nginx.log()) == 1


def test_the_cache_needs_no_volume(nginx: Nginx, url: str, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    with bsformat.open(url, cache=cache) as container:
        blocks = read_all(container)
    nginx.clear()
    with bsformat.open(url, cache=cache) as container:
        assert read_all(container) == blocks
    assert [(record.uri, record.bytes) for record in nginx.log()] == [("/models/model.bstk", SUPERBLOCK)]


def test_fetch_makes_one_object_and_grows_it(nginx: Nginx, url: str, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    part = bsformat.fetch(url, out, "40%", cache=False)
    assert not part.whole
    assert bsformat.verify(out, root=part.root).ok
    nginx.clear()
    whole = bsformat.fetch(url, out, cache=False)
    assert (whole.whole, whole.root, out.stat().st_size) == (True, part.root, whole.file_length)
    assert bsformat.verify(out, root=part.root).ok
    log = nginx.log()
    assert sum(record.bytes for record in log) <= whole.file_length - part.size + SUPERBLOCK + 64
    data = joined(path)
    assert out.read_bytes()[SUPERBLOCK:] == data[SUPERBLOCK:]
    with bsformat.open(out) as container:
        assert (container.volumes, len(container.metadata.volumes)) == ((), len(names_of(path)) - 1)


def test_fetch_over_volumes_that_are_there(url: str, path: Path, tmp_path: Path) -> None:
    for name in names_of(path):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    same = bsformat.fetch(url, tmp_path / "model.bstk", cache=False)
    assert (same.bytes_read, same.whole) == (SUPERBLOCK, True)
    # One of them is gone: what the first ones hold is copied, and the rest read.
    (tmp_path / names_of(path)[2]).unlink()
    made = bsformat.fetch(url, tmp_path / "model.bstk", cache=False)
    assert 0 < made.bytes_read < made.file_length - made.bytes_local + 1000
    assert bsformat.verify(tmp_path / "model.bstk", root=made.root).ok
    assert (tmp_path / "model.bstk").stat().st_size == made.file_length


def test_over_s3(s3: S3, path: Path) -> None:
    uris = [s3.put(f"volumes/{name}", (path.parent / name).read_bytes()) for name in names_of(path)]
    with bsformat.open(uris[0], cache=False, **s3.storage_options) as container, bsformat.open(path) as local:
        assert read_all(container) == read_blocks(local, 0, len(local))
        s3.put(f"volumes/{names_of(path)[1]}", b"short")
    with bsformat.open(uris[0], cache=False, **s3.storage_options) as container:
        volume = container.volumes[1]
        for number in (volume.first_block, volume.first_block + volume.n_blocks - 1):
            with pytest.raises(FormatError) as raised:
                container.read_block(number)
            assert (raised.value.reason, raised.value.where) == ("volume-truncated", uris[1])


@pytest.mark.parametrize("how", ["memory://v/{}", "simplecache::memory://v/{}"])
def test_over_fsspec(path: Path, how: str) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in names_of(path):
        fs.pipe_file(f"/v/{name}", (path.parent / name).read_bytes())
    assert bsformat.verify(how.format("model.bstk")).ok
    fs.rm_file("/v/model.00002.bstk")
    if how.startswith("memory"):
        report = bsformat.verify(how.format("model.bstk"))
        assert [error.reason for error in report.problems] == ["volume-missing"]


# ------------------------------------------------------------------------------------------------ URLs


def test_the_query_goes_along_and_stays_out_of_messages(scripted: Scripted, path: Path) -> None:
    objects = served(scripted, path)
    del objects["/model.00003.bstk"]
    with bsformat.open(f"{scripted.base}/model.bstk?sig=s3cr3t/x%2F&a=1", cache=False) as container:
        container.read_block(container.volumes[1].first_block)
        with pytest.raises(NotFoundError) as raised:
            container.read_block(container.volumes[2].first_block)
    assert {request.path.partition("?")[2] for request in scripted.requests} == {"sig=s3cr3t/x%2F&a=1"}
    assert raised.value.reason == "volume-missing"
    assert "s3cr3t" not in str(raised.value)
    assert str(raised.value).startswith(f"{scripted.base}/model.00003.bstk?")


def test_a_signed_url_for_each_volume(scripted: Scripted, path: Path) -> None:
    """The server takes a signature for one path only: a fresh one is asked for, and only for volumes that are read."""
    served(scripted, path)
    sound: Callable[[Request], Reply] = scripted.reply

    def reply(request: Request) -> Reply:
        place, _, query = request.path.partition("?")
        return sound(request) if query == f"for={place}" else Reply(403)

    scripted.reply = reply
    asked = []

    def renew(url: str) -> str:
        base = url.partition("?")[0]
        asked.append(base.rpartition("/")[2])
        return f"{base}?for=/{asked[-1]}"

    settings = network(Clock(), renew=renew)
    with bsformat.open(f"{scripted.base}/model.bstk?for=/model.bstk", network=settings, cache=False) as container:
        assert asked == []
        container.read_block(container.volumes[1].first_block)
        container.read_block(container.volumes[1].first_block + 1)
        assert asked == ["model.00002.bstk"]
    first = f"{scripted.base}/model.bstk?for=/model.bstk"
    with bsformat.open(first, network=network(Clock()), cache=False) as container, pytest.raises(AccessDeniedError):
        container.read_block(container.volumes[1].first_block)


def test_volumes_are_beside_the_url_that_was_given_and_not_where_it_leads(scripted: Scripted, path: Path) -> None:
    served(scripted, path)
    sound = scripted.reply

    def reply(request: Request) -> Reply:
        if request.path.startswith("/hub/"):
            return Reply(302, b"", {"Location": f"{scripted.base}{request.path.removeprefix('/hub')}?cdn=1"})
        return sound(request)

    scripted.reply = reply
    with bsformat.open(f"{scripted.base}/hub/model.bstk", cache=False) as container:
        container.read_block(container.volumes[1].first_block)
    paths = [request.path for request in scripted.requests]
    assert paths[-2:] == ["/hub/model.00002.bstk", "/model.00002.bstk?cdn=1"]


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda objects, two, three: objects.pop(two), "volume-missing"),
        (lambda objects, two, three: objects.update({two: objects[two][:-1]}), "volume-truncated"),
        (lambda objects, two, three: objects.update({two: objects[two][:100]}), "volume-truncated"),
        (lambda objects, two, three: objects.update({two: b""}), "volume-truncated"),
        (lambda objects, two, three: objects.update({two: objects[two] + b"\0"}), "volume-trailing-bytes"),
        (lambda objects, two, three: objects.update({two: objects["/model.bstk"]}), "volume-"),
        (lambda objects, two, three: objects.update({two: objects[three], three: objects[two]}), "volume-"),
        (lambda objects, two, three: objects.update({two: bytes(len(objects[two]))}), "block-digest"),
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_volume_that_is_not_what_it_should_be(
    scripted: Scripted, path: Path, change: Callable[..., object], reason: str, place: str
) -> None:
    change(served(scripted, path), "/model.00002.bstk", "/model.00003.bstk")
    with bsformat.open(scripted.url(), network=network(Clock()), cache=False) as container:
        volume = container.volumes[1]
        read_blocks(container, 0, volume.first_block)
        number = volume.first_block if place == "first" else volume.first_block + volume.n_blocks - 1
        with pytest.raises(BstkError) as raised:
            container.read_block(number)
        assert raised.value.reason.startswith(reason)
        if reason.startswith("volume"):
            assert raised.value.where.endswith("/model.00002.bstk")
        # The other volumes are read nevertheless.
        container.read_block(container.volumes[3].first_block)


def test_a_volume_that_is_replaced_while_it_is_read(scripted: Scripted, path: Path) -> None:
    objects = served(scripted, path)
    with bsformat.open(scripted.url(), network=network(Clock()), cache=False) as container:
        volume = container.volumes[1]
        container.read_block(volume.first_block)
        objects["/model.00002.bstk"] += b"\0"  # another ETag
        with pytest.raises(SourceChangedError) as raised:
            container.read_block(volume.first_block + 1)
        assert raised.value.where.endswith("/model.00002.bstk")
        del objects["/model.00002.bstk"]
        with pytest.raises(NotFoundError) as gone:
            container.read_block(volume.first_block + 1)
        assert gone.value.reason == "volume-missing"


def test_two_first_answers_of_two_objects(scripted: Scripted, path: Path) -> None:
    """Ranges of a volume may be asked for at once before any answer: one of them pins it, the others must agree."""
    objects = served(scripted, path)
    sound = scripted.reply
    barrier = threading.Barrier(2)
    count = 0

    def reply(request: Request) -> Reply:
        nonlocal count
        if "00002" not in request.path:
            return sound(request)
        answer = sound(request)
        barrier.wait(10)
        with scripted.lock:
            count += 1
            answer.headers["ETag"] = f'"{count}"'
        return answer

    scripted.reply = reply
    found: list[str] = []
    with bsformat.open(scripted.url(), network=network(Clock()), cache=False) as container:
        first = container.volumes[1].first_block

        def read(number: int) -> None:
            try:
                container.read_block(number)
                found.append("read")
            except BstkError as error:
                found.append(error.reason)

        threads = [threading.Thread(target=read, args=(first + i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == ["read", "source-changed"]
    assert objects


def test_failures_that_pass_are_tried_again(scripted: Scripted, path: Path) -> None:
    served(scripted, path)
    sound = scripted.reply
    seen: set[str] = set()

    def reply(request: Request) -> Reply:
        if request.path in seen:
            return sound(request)
        seen.add(request.path)
        return Reply(503) if "00002" in request.path else sound(request)

    scripted.reply = reply
    with bsformat.open(scripted.url(), network=network(Clock()), cache=False) as container:
        container.read_block(container.volumes[1].first_block)
        assert container.source.signals.setbacks == 1


def test_a_server_that_ignores_ranges_for_the_others(scripted: Scripted, path: Path) -> None:
    objects = served(scripted, path)
    sound = scripted.reply

    def reply(request: Request) -> Reply:
        place = request.path
        return Reply(200, objects[place], {"ETag": '"x"'}) if "00002" in place else sound(request)

    scripted.reply = reply
    with bsformat.open(scripted.url(), network=network(Clock()), cache=False) as container:
        with pytest.raises(BstkError) as raised:
            container.read_block(container.volumes[1].first_block)
        assert raised.value.reason == "range-unsupported"
    settings: Any = Network(allow_stream=True)
    with bsformat.open(path) as local, bsformat.open(scripted.url(), network=settings, cache=False) as container:
        volume = container.volumes[1]
        stop = volume.first_block + volume.n_blocks
        expected = read_blocks(local, volume.first_block, stop)
        assert read_blocks(container, volume.first_block, stop) == expected


@pytest.mark.parametrize("backend", ["fsspec", "obstore"])
def test_the_name_of_a_volume_is_never_a_host(scripted: Scripted, path: Path, backend: str) -> None:
    """A first volume at a URL without a path: its author chooses the names of the others, and must not get a token."""
    if backend == "obstore":
        pytest.importorskip("obstore")
    objects = served(scripted, path)
    objects["/"] = objects["/model.bstk"]
    options: Any = {"headers": {"Authorization": "s3cr3t"}} if backend == "fsspec" else {}
    settings = network(Clock(), backend=backend)
    with bsformat.open(scripted.base, network=settings, cache=False, **options) as container:
        volume = container.volumes[1]
        container.read_block(volume.first_block)
        assert scripted.requests[-1].path == f"/{volume.name}"
        assert scripted.requests[-1].headers.get("authorization") == options.get("headers", {}).get("Authorization")


@pytest.mark.parametrize(
    ("place", "there"),
    [
        ("http://a", "http://a/b.c"),
        ("HTTPS://u:p@a:1", "HTTPS://u:p@a:1/b.c"),
        ("http://a/", "http://a/b.c"),
        ("http://a/m/x", "http://a/m/b.c"),
        ("memory://x", "memory://b.c"),
        ("x", "b.c"),
        ("k/x", "k/b.c"),
    ],
)
def test_beside(place: str, there: str) -> None:
    assert beside(place, "b.c") == there


def test_repack_reads_volumes_over_http(url: str, path: Path, tmp_path: Path) -> None:
    made = bsformat.repack(url, tmp_path / "one.bstk")
    assert bsformat.verify(made.path, root=made.root).ok
    assert os.listdir(tmp_path) == ["one.bstk"]


@pytest.mark.parametrize("where", ["http", "s3"])
def test_through_obstore(nginx: Nginx, s3: S3, url: str, path: Path, where: str) -> None:
    pytest.importorskip("obstore")
    settings = network(Clock(), backend="obstore")
    options: dict[str, Any] = {} if where == "http" else dict(s3.storage_options)
    if where == "s3":
        for name in names_of(path):
            url = s3.put(f"through/{name}", (path.parent / name).read_bytes())
        url = url.replace(names_of(path)[-1], "model.bstk")
    options["network"] = settings
    with bsformat.open(url, cache=False, **options) as container, bsformat.open(path) as local:
        assert read_all(container) == read_blocks(local, 0, len(local))
    if where == "s3":
        s3.put("through/model.00002.bstk", b"short")
    else:
        nginx.put("models/model.00002.bstk", b"short")
        (nginx.root / "models" / "model.00003.bstk").unlink()
    with bsformat.open(url, cache=False, **options) as container:
        volume = container.volumes[1]
        for number in (volume.first_block, volume.first_block + volume.n_blocks - 1):
            with pytest.raises(FormatError) as raised:
                container.read_block(number)
            assert raised.value.reason == "volume-truncated"
        if where == "http":
            with pytest.raises(NotFoundError) as missing:
                container.read_block(container.volumes[2].first_block)
            assert missing.value.reason == "volume-missing"
