"""HTTP/1.1 as `bsformat.wire` reads it: heads, bodies by length, in chunks and to the end, and what is refused."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bsformat import wire

BODY = bytes(range(256)) * 40
HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def sent(*pieces: bytes) -> Iterator[socket.socket]:
    """A socket to which somebody sends some pieces and closes."""
    near, far = socket.socketpair()

    def send() -> None:
        with far:
            for piece in pieces:
                far.sendall(piece)

    thread = threading.Thread(target=send)
    near.settimeout(10)
    with near:
        thread.start()
        yield near
    thread.join(10)


def body_of(answer: wire.Incoming, step: int = 1000) -> bytes:
    out, got = bytearray(step), b""
    while count := answer.read_into(memoryview(out)):
        got += out[:count]
    return got


@pytest.mark.parametrize("cut", [1, 2, 7, len(HEAD) - 3, len(HEAD) - 1, len(HEAD), len(HEAD) + 5])
def test_an_answer_in_pieces_cut_anywhere(cut: int) -> None:
    whole = HEAD + BODY
    with sent(whole[:cut], whole[cut:]) as sock:
        answer = wire.Incoming(sock)
        assert (answer.status, answer.reason, answer.left) == (206, "Partial Content", len(BODY))
        assert not answer.reusable
        assert body_of(answer) == BODY
        assert answer.reusable


def test_bytes_one_by_one() -> None:
    whole = CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    with sent(*(whole[i : i + 1] for i in range(len(whole)))) as sock:
        answer = wire.Incoming(sock)
        assert answer.left is None
        assert body_of(answer) == b"abc0123456789"
        assert answer.reusable


def test_a_body_to_the_end_of_the_connection() -> None:
    with sent(b"HTTP/1.0 200 OK\n\n" + BODY) as sock:
        answer = wire.Incoming(sock)
        assert body_of(answer) == BODY
        assert not answer.reusable


@pytest.mark.parametrize(
    ("line", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nA: b\r\n\r\nHTTP/1.1 204\r\n\r\n", True),
    ],
)
def test_whether_another_request_may_follow(line: bytes, reusable: bool) -> None:
    with sent(line) as sock:
        answer = wire.Incoming(sock)
        assert body_of(answer) == b""
        assert answer.reusable == reusable


def test_headers_that_go_on_and_stand_twice() -> None:
    with sent(b"HTTP/1.1 200\r\nETag: a\r\n  b\r\nX:\xe9\r\nContent-Length: 3\r\ncontent-length: 3\r\n\r\nabc") as sock:
        answer = wire.Incoming(sock)
        assert (answer.headers["etag"], answer.headers["x"], answer.reason) == ("a b", "é", "")
        assert body_of(answer) == b"abc"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"HTTP/2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: y",
        HEAD + BODY[:-1],
        CHUNKED + b"x\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nabc",
        CHUNKED + b"3\r\nabc\r\n0\r\n",
        CHUNKED + b"3;" + b"x" * 9000 + b"\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
    ],
)
def test_what_is_refused(text: bytes) -> None:
    with sent(text) as sock, pytest.raises((wire.WireError, wire.EndedError, ConnectionError)) as caught:
        body_of(wire.Incoming(sock))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_requests() -> None:
    assert wire.request("/a?b=%20", "h:1", {"Range": "bytes=0-1"}) == (
        b"GET /a?b=%20 HTTP/1.1\r\nHost: h:1\r\nRange: bytes=0-1\r\n\r\n"
    )
    for path, headers in (
        ("/a b", {}),
        ("/a\r\nX: y", {}),
        ("a", {}),
        ("/é", {}),
        ("/a", {"X": "a\r\nY: b"}),
        ("/a", {"X:": "a"}),
    ):
        with pytest.raises(ValueError, match=r"encoded|header|codec"):
            wire.request(path, "h", headers)
