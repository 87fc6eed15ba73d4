"""The server of the demo, spoken to in plain HTTP."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

import bsformat
from bitstack.tools.serve_ranges import RangeServer, requested_range

DATA = bytes(range(256)) * 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    path = tmp_path / "a b.bstk"
    path.write_bytes(DATA)
    with RangeServer(path) as server:
        yield server


def ask(
    server: RangeServer, method: str = "GET", path: str = "/a%20b.bstk", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*server.url.split("/")[2].split(":"), timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-9", (5, 10)),
        ("bytes=5-", (5, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("Bytes=1-2", (1, 3)),
        ("bytes=100-", (100, 100)),
        ("bytes=100-200", (100, 100)),
        ("bytes=-0", (100, 100)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("bytes=a-b", None),
        ("rows=1-2", None),
        ("", None),
    ],
)
def test_a_range_header(header: str, wanted: tuple[int, int] | None) -> None:
    assert requested_range(header, 100) == wanted


def test_a_range_is_served_and_counted(server: RangeServer) -> None:
    status, headers, body = ask(server, Range="bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, DATA[10:20], f"bytes 10-19/{len(DATA)}")
    assert (server.requests, server.bytes_sent) == (1, 10)


def test_without_a_range_everything_is_served(server: RangeServer) -> None:
    status, headers, body = ask(server)
    assert (status, body, headers["Accept-Ranges"]) == (200, DATA, "bytes")
    assert server.bytes_sent == len(DATA)


def test_head_has_the_length_and_no_body(server: RangeServer) -> None:
    status, headers, body = ask(server, "HEAD", Range="bytes=1-2")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(DATA)))
    assert (server.requests, server.bytes_sent) == (1, 0)


def test_a_range_beyond_the_end_is_refused(server: RangeServer) -> None:
    status, headers, body = ask(server, Range=f"bytes={len(DATA)}-")
    assert (status, body, headers["Content-Range"]) == (416, b"", f"bytes */{len(DATA)}")


def test_if_match(server: RangeServer) -> None:
    etag = ask(server)[1]["ETag"]
    assert ask(server, Range="bytes=0-3", If_Match=f'"other", {etag}')[0] == 206
    assert ask(server, Range="bytes=0-3", If_Match="*")[0] == 206
    assert ask(server, Range="bytes=0-3", If_Match='"other"')[0] == 412
    assert ask(server, Range="bytes=0-3", If_Match=f"W/{etag}")[0] == 412


def test_if_range_gives_everything_of_another_file(server: RangeServer) -> None:
    etag = ask(server)[1]["ETag"]
    assert ask(server, Range="bytes=0-3", If_Range=etag)[0] == 206
    assert ask(server, Range="bytes=0-3", If_Range='"other"')[2] == DATA


def test_the_tag_changes_with_the_file(server: RangeServer) -> None:
    etag = ask(server)[1]["ETag"]
    server.path.write_bytes(DATA[:-1])
    assert ask(server)[1]["ETag"] != etag


@pytest.mark.parametrize("path", ["/", "/other", "/../a%20b.bstk", "/a%20b.bstk/"])
def test_nothing_else_is_served(server: RangeServer, path: str) -> None:
    assert ask(server, path=path)[0] == 404


def test_a_file_that_vanished_is_not_found(server: RangeServer) -> None:
    server.path.unlink()
    assert ask(server)[0] == 404


def test_connections_stay_open(server: RangeServer) -> None:
    connection = http.client.HTTPConnection(*server.url.split("/")[2].split(":"), timeout=30)
    socket = None
    for _ in range(3):
        connection.request("GET", "/a%20b.bstk", headers={"Range": "bytes=0-9"})
        assert connection.getresponse().read() == DATA[:10]
        assert socket in (None, connection.sock)
        socket = connection.sock
    connection.close()


def test_its_count_is_that_of_the_reader(tiny_bstk: Path) -> None:
    with RangeServer(tiny_bstk) as server, bsformat.open(server.url) as container:
        assert bsformat.verify(container).ok
        assert (server.requests, server.bytes_sent) == (container.source.requests, container.source.bytes_read)
