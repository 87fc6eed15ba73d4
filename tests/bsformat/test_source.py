"""Sources of bytes: one suite for every back end, and servers that misbehave.

Whatever a server does, the bytes that come out are right or an error says what is wrong.
"""

import http.server
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

import bsformat
from bsformat.errors import (
    AccessDeniedError,
    BstkError,
    NotFoundError,
    RangeError,
    ShortReadError,
    SourceChangedError,
    SourceError,
)
from bsformat.uri import open_source
from tests.servers import S3, Nginx, Reply, Request, Scripted

#: 200,000 bytes in which every aligned four say where they are.
DATA = b"".join(i.to_bytes(4, "big") for i in range(50_000))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsformat.http.Network", lambda: bsformat.Network(attempts=4, pause=0.001))


def message(error: BstkError, name: str) -> str:
    """The text of an error, which must be one line that begins with the name of the object."""
    text = str(error)
    assert text.startswith(name)
    assert "\n" not in text
    return text


# --- one suite for every back end -----------------------------------------------------------------------------------


class SourceSuite:
    """What every source does. A subclass gives the fixtures `put` (store bytes, open a source) and `missing`."""

    #: How a read beyond the end may be refused.
    beyond = frozenset({"short-read"})

    @pytest.fixture
    def put(self) -> Callable[[str, bytes], Any]:
        raise NotImplementedError

    @pytest.fixture
    def missing(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def source(self, put: Callable[[str, bytes], bsformat.ByteSource]) -> bsformat.ByteSource:
        return put("data.bin", DATA)

    def test_is_a_source_with_a_name(self, source: bsformat.ByteSource) -> None:
        assert isinstance(source, bsformat.ByteSource)
        assert source.name
        source.close()

    def test_start_gives_the_first_bytes_and_the_size(self, source: bsformat.ByteSource) -> None:
        data, size = source.start(1000)
        assert (bytes(data), size) == (DATA[:1000], len(DATA))

    @pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA), len(DATA) + 1, 1 << 20])
    def test_start_of_a_whole_object(self, source: bsformat.ByteSource, length: int) -> None:
        data, size = source.start(length)
        assert (bytes(data), size) == (DATA[:length], len(DATA))

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 1), (0, len(DATA)), (1, 1), (999, 4097), (len(DATA) - 1, 1), (len(DATA) - 5000, 5000)],
    )
    def test_get_gives_exactly_those_bytes(self, source: bsformat.ByteSource, offset: int, length: int) -> None:
        source.start(16)
        assert bytes(source.get(offset, length)) == DATA[offset : offset + length]

    @pytest.mark.parametrize(
        ("offset", "length"), [(len(DATA) - 1, 2), (len(DATA), 1), (len(DATA) + 1000, 1000), (0, len(DATA) + 1)]
    )
    def test_get_beyond_the_end(self, source: bsformat.ByteSource, offset: int, length: int) -> None:
        source.start(16)
        with pytest.raises(SourceError) as caught:
            source.get(offset, length)
        assert caught.value.reason in self.beyond
        message(caught.value, source.name)

    def test_threads_get_what_each_asked_for(self, source: bsformat.ByteSource) -> None:
        source.start(16)
        ranges = [(17 * i % 190_000, 1000 + i) for i in range(0, 8000, 50)]
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda r: bytes(source.get(*r)), ranges))
        assert len(read) == 160
        assert read == [DATA[offset : offset + length] for offset, length in ranges]

    def test_an_empty_object_is_no_file(self, put: Callable[[str, bytes], bsformat.ByteSource]) -> None:
        with pytest.raises(BstkError) as caught:
            bsformat.open(put("empty.bstk", b""))
        assert caught.value.reason == "truncated"
        assert "empty" in str(caught.value)

    def test_a_container_opens_and_verifies(
        self, put: Callable[[str, bytes], bsformat.ByteSource], sealed: bytes
    ) -> None:
        with bsformat.open(put("a.bstk", sealed)) as container:
            report = bsformat.verify(container)
        assert report.ok
        assert (report.n_blocks, report.size) == (6, len(sealed))

    def test_a_missing_object(self, missing: Callable[[], bsformat.Container]) -> None:
        with pytest.raises(NotFoundError) as caught:
            missing()
        assert caught.value.reason == "not-found"
        assert "missing.bstk" in message(caught.value, caught.value.where)


class TestMemory(SourceSuite):
    @pytest.fixture
    def put(self) -> Callable[[str, bytes], bsformat.ByteSource]:
        return lambda name, data: bsformat.MemorySource(data, name)

    test_a_missing_object = None  # type: ignore[assignment]  # memory is always there

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_takes_any_bytes(self, kind: Callable[[bytes], Any]) -> None:
        assert bytes(bsformat.MemorySource(kind(DATA)).get(1, 3)) == DATA[1:4]


class TestFile(SourceSuite):
    @pytest.fixture
    def put(self, tmp_path: Path) -> Callable[[str, bytes], bsformat.ByteSource]:
        def put(name: str, data: bytes) -> bsformat.ByteSource:
            (tmp_path / name).write_bytes(data)
            return bsformat.FileSource(str(tmp_path / name))

        return put

    @pytest.fixture
    def missing(self, tmp_path: Path) -> Callable[[], bsformat.Container]:
        return lambda: bsformat.open(tmp_path / "missing.bstk")

    @pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}"])
    def test_paths_and_uris(self, tmp_path: Path, sealed: bytes, form: str) -> None:
        (tmp_path / "a b%20c.bstk").write_bytes(sealed)
        with bsformat.open(form.format(tmp_path / "a b%20c.bstk")) as container:
            assert len(container) == 6

    def test_a_relative_path_that_looks_like_a_drive(
        self, tmp_path: Path, sealed: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "c:a.bstk").write_bytes(sealed)
        monkeypatch.chdir(tmp_path)
        with bsformat.open("c:a.bstk") as container:
            assert len(container) == 6

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError) as caught:
            bsformat.open(tmp_path)
        assert "directory" in message(caught.value, str(tmp_path)).lower()

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(DATA)
        (tmp_path / "a").chmod(0)
        with pytest.raises(AccessDeniedError):
            bsformat.open(tmp_path / "a")

    def test_access_denied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied", "a")

        monkeypatch.setattr("bsformat.source.os.open", refuse)
        with pytest.raises(AccessDeniedError) as caught:
            bsformat.open(tmp_path / "a")
        assert caught.value.reason == "access-denied"
        message(caught.value, str(tmp_path / "a"))

    def test_a_replaced_file_goes_on_being_the_old_one(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(DATA)
        source = bsformat.FileSource(str(tmp_path / "a"))
        (tmp_path / "b").write_bytes(bytes(len(DATA)))
        (tmp_path / "b").replace(tmp_path / "a")
        assert source.get(4, 4) == DATA[4:8]
        source.close()

    @pytest.mark.parametrize("how", ["grown", "cut", "same size"])
    def test_a_file_that_is_written_to(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "a"
        path.write_bytes(DATA)
        source = bsformat.FileSource(str(path))
        source.start(100)
        path.write_bytes({"grown": DATA + b"x", "cut": DATA[:-1], "same size": DATA[::-1]}[how])
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceChangedError) as caught:
            source.get(100, 100)
        assert caught.value.reason == "source-changed"
        message(caught.value, str(path))
        source.close()

    def test_closing_twice(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(DATA)
        source = bsformat.FileSource(str(tmp_path / "a"))
        source.close()
        source.close()
        with pytest.raises(SourceError):
            source.get(0, 1)


class TestFsspecMemory(SourceSuite):
    @pytest.fixture
    def put(self) -> Any:
        fs = fsspec.filesystem("memory")
        fs.store.clear()

        def put(name: str, data: bytes) -> bsformat.ByteSource:
            fs.pipe_file(f"/models/{name}", data)
            return open_source(f"memory://models/{name}")

        yield put
        fs.store.clear()

    @pytest.fixture
    def missing(self) -> Callable[[], bsformat.Container]:
        return lambda: bsformat.open("memory://models/missing.bstk")

    def test_a_folder(self, put: Callable[[str, bytes], bsformat.ByteSource]) -> None:
        put("a/b", b"x")
        with pytest.raises(SourceError) as caught:
            bsformat.open("memory://models/a")
        assert caught.value.reason == "source"
        message(caught.value, "memory://models/a")


class TestHttp(SourceSuite):
    beyond = frozenset({"short-read", "source-changed"})  # some bytes of it are there; no byte is

    @pytest.fixture
    def put(self, nginx: Nginx) -> Callable[[str, bytes], bsformat.ByteSource]:
        return lambda name, data: open_source(nginx.put(name, data))

    @pytest.fixture
    def missing(self, nginx: Nginx) -> Callable[[], bsformat.Container]:
        return lambda: bsformat.open(nginx.url("missing.bstk"))

    def test_every_read_is_one_request_for_its_bytes(self, nginx: Nginx) -> None:
        source = open_source(nginx.put("data.bin", DATA), skip_instance_cache=True)
        source.start(100)
        source.get(5000, 17)
        source.get(len(DATA) - 1, 1)
        log = nginx.log()
        assert [(r.method, r.status, r.range, r.bytes) for r in log] == [
            ("GET", 206, "bytes=0-99", 100),
            ("GET", 206, "bytes=5000-5016", 17),
            ("GET", 206, f"bytes={len(DATA) - 1}-{len(DATA) - 1}", 1),
        ]
        # The object is pinned by its ETag, on one connection.
        assert log[0].if_match == ""
        assert log[1].if_match == log[2].if_match != ""
        assert len({r.connection for r in log}) == 1

    def test_threads_make_one_request_each(self, nginx: Nginx, source: bsformat.ByteSource) -> None:
        source.start(100)
        nginx.clear()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: source.get(1000 * i, 1000), range(64)))
        log = nginx.log()
        assert sorted(r.range for r in log) == sorted(f"bytes={1000 * i}-{1000 * i + 999}" for i in range(64))
        assert sum(r.bytes for r in log) == 64_000

    @pytest.mark.parametrize("same_size", [True, False])
    def test_a_replaced_object(self, nginx: Nginx, source: bsformat.ByteSource, same_size: bool) -> None:
        source.start(100)
        nginx.put("data.bin", DATA[::-1] if same_size else DATA + b"more")
        os.utime(nginx.root / "data.bin", (1, 1))
        with pytest.raises(SourceChangedError) as caught:
            source.get(100, 100)
        assert caught.value.reason == "source-changed"
        message(caught.value, source.name)

    def test_access_denied(self, nginx: Nginx) -> None:
        with pytest.raises(AccessDeniedError) as caught:
            bsformat.open(nginx.url("private/a.bstk"))
        message(caught.value, nginx.url("private/a.bstk"))
        assert len(nginx.log()) == 1  # no use in asking again

    def test_a_missing_object_is_asked_for_once(self, nginx: Nginx, missing: Callable[[], bsformat.Container]) -> None:
        with pytest.raises(NotFoundError):
            missing()
        assert [r.status for r in nginx.log()] == [404]

    def test_a_name_that_needs_escapes(self, nginx: Nginx, sealed: bytes) -> None:
        nginx.put("a b+ü%.bstk", sealed)
        with bsformat.open(nginx.url("a%20b+%C3%BC%25.bstk")) as container:
            assert len(container) == 6


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # botocore's, on Python 3.12 and up
class TestS3(SourceSuite):
    beyond = frozenset({"short-read", "source"})  # some bytes of it are there; no byte is

    @pytest.fixture
    def put(self, s3: S3) -> Callable[[str, bytes], bsformat.ByteSource]:
        return lambda name, data: open_source(s3.put(name, data), **s3.storage_options)

    @pytest.fixture
    def missing(self, s3: S3) -> Callable[[], bsformat.Container]:
        return lambda: bsformat.open(f"s3://{s3.bucket}/missing.bstk", **s3.storage_options)

    def test_no_such_bucket(self, s3: S3) -> None:
        with pytest.raises(NotFoundError) as caught:
            bsformat.open("s3://nobody-has-this/a.bstk", **s3.storage_options)
        assert "bucket" in message(caught.value, "s3://nobody-has-this/a.bstk")

    def test_the_endpoint_may_come_from_the_environment(self, s3: S3, sealed: bytes) -> None:
        with bsformat.open(s3.put("environment.bstk", sealed)) as container:
            assert len(container) == 6


# --- servers that misbehave -----------------------------------------------------------------------------------------

Script = Callable[[Scripted], Callable[[Request], Reply]]


def always(**changes: Any) -> Script:
    """A right answer with some headers replaced."""
    return lambda server: lambda request: server.good(request, **changes)


def status(code: int, body: bytes = b"sorry", **headers: str) -> Script:
    return lambda server: lambda request: Reply(code, body, {k.replace("_", "-"): v for k, v in headers.items()})


def body(change: Callable[[bytes], bytes], **how: Any) -> Script:
    """A right answer but for its body."""

    def script(server: Scripted) -> Callable[[Request], Reply]:
        def reply(request: Request) -> Reply:
            good = server.good(request)
            return Reply(206, change(good.body), good.headers, **how)

        return reply

    return script


def chunked(server: Scripted) -> Callable[[Request], Reply]:
    """More bytes than the Content-Range says, without a Content-Length."""

    def reply(request: Request) -> Reply:
        good = server.good(request)
        data = good.body + b"more"
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        return Reply(206, framed, good.headers | {"Transfer-Encoding": "chunked"})

    return reply


def cut_then(good_after: int, sent: int = 7) -> Script:
    """The first ``good_after`` answers stop after ``sent`` bytes of the body."""

    def script(server: Scripted) -> Callable[[Request], Reply]:
        def reply(request: Request) -> Reply:
            good = server.good(request)
            if request.number < good_after:
                good.sent = sent
            return good

        return reply

    return script


def fail_then(good_after: int, code: int) -> Script:
    """The first ``good_after`` answers have a status that may pass."""
    return lambda server: lambda request: Reply(code, b"wait") if request.number < good_after else server.good(request)


BAD = [
    # name, script, error, reason, text in the message, requests that it takes to give up
    ("ignores_ranges", status(200, DATA), RangeError, "range-unsupported", "200", 1),
    ("no_content", status(204, b""), SourceError, "source", "204", 1),
    ("not_modified", status(304, b""), SourceError, "source", "304", 1),
    ("bad_request", status(400), SourceError, "source", "400", 1),
    ("unauthorized", status(401), AccessDeniedError, "access-denied", "401", 1),
    ("forbidden", status(403), AccessDeniedError, "access-denied", "403", 1),
    ("not_found", status(404), NotFoundError, "not-found", "404", 1),
    ("gone", status(410), NotFoundError, "not-found", "410", 1),
    ("precondition", status(412), SourceChangedError, "source-changed", "replaced", 1),
    ("no_such_range", status(416, Content_Range="bytes */9"), SourceError, "source", "416", 1),
    ("too_many_requests", status(429), SourceError, "source", "429", 4),
    ("server_error", status(500), SourceError, "source", "500", 4),
    ("unavailable", status(503), SourceError, "source", "503", 4),
    ("no_content_range", always(Content_Range=None), RangeError, "range-unsupported", "Content-Range", 1),
    ("content_range_garbage", always(Content_Range="pages 1-2/3"), RangeError, "range-unsupported", "pages", 1),
    ("content_range_unsatisfied", always(Content_Range="bytes */9"), RangeError, "range-unsupported", "*/9", 1),
    ("offset_wrong", always(Content_Range="bytes 64-163/200000"), ShortReadError, "short-read", "64-163", 1),
    ("range_too_long", always(Content_Range="bytes 0-100/200000"), ShortReadError, "short-read", "0-100", 1),
    ("range_reversed", always(Content_Range="bytes 0-0/200000"), SourceError, "short-read", "", 4),
    ("range_negative", always(Content_Range="bytes 9-0/200000"), ShortReadError, "short-read", "", 1),
    ("size_unknown", always(Content_Range="bytes 0-99/*"), RangeError, "range-unsupported", "how large", 1),
    ("gzip", always(Content_Encoding="gzip"), RangeError, "range-unsupported", "gzip", 1),
    ("body_longer", body(lambda data: data + b"x"), ShortReadError, "short-read", "more than", 4),
    ("body_longer_chunked", chunked, ShortReadError, "short-read", "more than", 4),
    ("body_shorter", body(lambda data: data[:-1]), ShortReadError, "short-read", "0 of 1 bytes", 4),
    ("body_empty", body(lambda data: b""), ShortReadError, "short-read", "0 of 100", 4),
    ("body_cut", cut_then(99), SourceError, "source", "4 attempts", 4),
    ("body_cut_at_once", cut_then(99, sent=0), SourceError, "source", "4 attempts", 4),
]


@pytest.mark.parametrize(
    ("script", "kind", "reason", "says", "requests"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_answer_to_the_first_read(
    scripted: Scripted, script: Script, kind: type[BstkError], reason: str, says: str, requests: int
) -> None:
    scripted.data = DATA
    scripted.reply = script(scripted)
    source = open_source(scripted.url())
    with pytest.raises(kind) as caught:
        source.start(100)
    assert caught.value.reason == reason
    assert says in message(caught.value, scripted.url())
    assert len(scripted.requests) == requests


LATER = {
    "no_such_range": (SourceChangedError, "source-changed", "no byte", 1),
    "offset_wrong": None,  # 64 to 163 is what the second read asks for
    "precondition": (SourceChangedError, "source-changed", 'was "one"', 1),
    # What a server that gave sound answers before may do better at the next attempt.
    "ignores_ranges": (RangeError, "range-unsupported", "200", 4),
    "no_content_range": (RangeError, "range-unsupported", "Content-Range", 4),
    "content_range_garbage": (RangeError, "range-unsupported", "pages", 4),
    "content_range_unsatisfied": (RangeError, "range-unsupported", "*/9", 4),
    "range_too_long": (ShortReadError, "short-read", "0-100", 4),
    "range_reversed": (ShortReadError, "short-read", "", 4),
    "range_negative": (ShortReadError, "short-read", "", 4),
    "size_unknown": (ShortReadError, "short-read", "0-99", 4),
    "gzip": (RangeError, "range-unsupported", "gzip", 4),
}


@pytest.mark.parametrize(
    ("script", "kind", "reason", "says", "requests"),
    [(b[1], *(LATER.get(b[0]) or b[2:])) for b in BAD if LATER.get(b[0], 1)],
    ids=[b[0] for b in BAD if LATER.get(b[0], 1)],
)
def test_a_bad_answer_later(
    scripted: Scripted, script: Script, kind: type[BstkError], reason: str, says: str, requests: int
) -> None:
    scripted.data = DATA
    source = open_source(scripted.url())
    source.start(16)
    scripted.requests.clear()
    scripted.reply = script(scripted)
    with pytest.raises(kind) as caught:
        source.get(64, 100)
    assert caught.value.reason == reason
    assert says in message(caught.value, scripted.url())
    assert len(scripted.requests) == requests


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        (fail_then(2, 500), 3),
        (fail_then(3, 503), 4),
        (fail_then(2, 429), 3),
        (cut_then(1), 2),
        (cut_then(3, sent=0), 4),
        (cut_then(3, sent=99), 2),  # the second asks for one byte
        (always(ETag=None), 1),
        (always(Content_Encoding="identity"), 1),
        (always(Content_Range=" bytes 0-99/200000 "), 1),
    ],
)
def test_what_passes_is_tried_again(scripted: Scripted, script: Script, requests: int) -> None:
    scripted.data = DATA
    scripted.reply = script(scripted)
    data, size = open_source(scripted.url()).start(100)
    assert (bytes(data), size) == (DATA[:100], len(DATA))
    assert len(scripted.requests) == requests


def test_a_redirect_is_followed(scripted: Scripted) -> None:
    scripted.data = DATA
    scripted.reply = lambda request: (
        scripted.good(request) if request.path == "/there" else Reply(302, b"", {"Location": "/there"})
    )
    source = open_source(scripted.url("here"))
    assert source.start(100)[1] == len(DATA)
    assert bytes(source.get(100, 100)) == DATA[100:200]
    # The second read asks where the redirect led.
    assert [r.path for r in scripted.requests] == ["/here", "/there", "/there"]
    assert [r.headers["range"] for r in scripted.requests] == ["bytes=0-99"] * 2 + ["bytes=100-199"]


def test_a_redirect_in_a_circle(scripted: Scripted) -> None:
    scripted.reply = lambda request: Reply(302, b"", {"Location": request.path})
    with pytest.raises(SourceError) as caught:
        open_source(scripted.url()).start(100)
    message(caught.value, scripted.url())


def changing(**later: Any) -> Script:
    """A right first answer, others later."""
    return lambda server: lambda request: server.good(request, **(later if request.number else {}))


@pytest.mark.parametrize(
    "script",
    [
        changing(ETag='"two"'),
        changing(Content_Range="bytes 100-199/200001"),
        lambda server: lambda request: server.good(request) if not request.number else Reply(412),
        lambda server: lambda request: server.good(request) if not request.number else Reply(416),
    ],
    ids=["etag", "size", "if-match", "range"],
)
def test_an_object_that_changes_between_two_reads(scripted: Scripted, script: Script) -> None:
    scripted.data = DATA
    scripted.reply = script(scripted)
    source = open_source(scripted.url())
    source.start(100)
    with pytest.raises(SourceChangedError) as caught:
        source.get(100, 100)
    assert caught.value.reason == "source-changed"
    message(caught.value, scripted.url())
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": '"one"'}, {"if-match": '"one"'}),
        ({"ETag": 'W/"one"'}, {}),
        ({"ETag": None}, {}),
        (
            {"ETag": None, "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
            {"if-unmodified-since": "Wed, 21 Oct 2015 07:28:00 GMT"},
        ),
    ],
)
def test_the_object_is_pinned(scripted: Scripted, headers: dict[str, Any], condition: dict[str, str]) -> None:
    scripted.data = DATA
    scripted.reply = always(**headers)(scripted)
    source = open_source(scripted.url())
    source.start(100)
    scripted.reply = lambda request: scripted.good(request, **headers)
    source.get(100, 100)
    first, second = ({k: v for k, v in r.headers.items() if k.startswith("if-")} for r in scripted.requests)
    assert (first, second) == ({}, condition)


def test_a_server_that_gives_less_than_asked_is_not_taken_for_a_cut_file(scripted: Scripted, sealed: bytes) -> None:
    """A server may answer with the beginning of a range only. The file is not to blame for that."""
    scripted.data = sealed

    def reply(request: Request) -> Reply:
        few = sealed[request.start : min(request.stop, request.start + 100)]
        text = f"bytes {request.start}-{request.start + len(few) - 1}/{len(sealed)}"
        return Reply(206, few, {"Content-Range": text})

    scripted.reply = reply
    for read in (bsformat.open, lambda url: open_source(url).start(401)):
        with pytest.raises(ShortReadError) as caught:
            read(scripted.url())
        message(caught.value, scripted.url())


@pytest.mark.parametrize(
    "reply", [Reply(200), Reply(416, b"sorry", {"Content-Range": "bytes */0"})], ids=["200", "416"]
)
def test_an_empty_object(scripted: Scripted, reply: Reply) -> None:
    scripted.reply = lambda request: reply
    assert open_source(scripted.url()).start(100) == (b"", 0)


def test_storage_options_reach_the_server(scripted: Scripted, sealed: bytes) -> None:
    scripted.data = sealed
    with bsformat.open(scripted.url(), headers={"Authorization": "Bearer x"}) as container:
        assert bsformat.verify(container).ok
    assert {r.headers["authorization"] for r in scripted.requests} == {"Bearer x"}
    assert {r.headers["accept-encoding"] for r in scripted.requests} == {"identity"}


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.bstk"
        with pytest.raises(SourceError) as caught:
            bsformat.open(url)
    assert "4 attempts" in message(caught.value, url)


def test_a_server_that_hangs_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.bstk"
        seen = []

        def hang_up() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    seen.append(connection.recv(10_000))
                if not seen[-1]:
                    break

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(SourceError) as caught:
            bsformat.open(url)
        with socket.create_connection(listener.getsockname()):
            pass  # sends nothing: that ends the thread
        thread.join(10)
    assert len(seen) > 4
    assert "4 attempts" in message(caught.value, url)


def test_python_s_own_server_ignores_ranges(tmp_path: Path, sealed: bytes) -> None:
    """`python -m http.server`, which everybody tries first."""
    (tmp_path / "a.bstk").write_bytes(sealed)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.bstk"
        try:
            with pytest.raises(RangeError) as caught:
                bsformat.open(url)
        finally:
            server.shutdown()
            thread.join()
    assert "range" in message(caught.value, url)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.bstk")
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            bsformat.open(tmp_path / "a.bstk")
        except BstkError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert [message(error, str(tmp_path)) for error in outcome if isinstance(error, SourceError)]
    with pytest.raises(SourceError, match="no plain file"):
        bsformat.open("/dev/null")


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense://a",
        "http://",
        "s4://b/a.bstk",
        "http://[::1/a.bstk",
        "file://[a",
        "s3://b]/a.bstk",
        "http://a\u2028b/a.bstk",
        "ftp://127.0.0.1:1/a.bstk",
    ],
)
def test_a_protocol_that_nobody_knows(uri: str) -> None:
    with pytest.raises(SourceError) as caught:
        bsformat.open(uri)
    message(caught.value, uri)
