"""A web server that answers some of its requests wrongly, in a way of one's choice, drawn from a seed.

What it does right is what a sound server does: ranges, If-Match, one ETag.
"""

import email.utils
import gzip
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Exchange:
    """One request and the means to answer it: bytes [start, stop) are asked for, ``draw`` is its own generator.

    ``data`` and ``etag`` are those of the object when the request came: one answer is of one object.
    """

    handler: "_Handler"
    server: "FaultyServer"
    number: int
    path: str
    headers: dict[str, str]
    start: int
    stop: int
    draw: random.Random
    data: bytes
    etag: str

    def replace(self, data: bytes, etag: str) -> None:
        """From now on there is another object, and nothing goes wrong any more."""
        with self.server.lock:
            self.server.data, self.server.etag, self.server.fault = data, etag, None
        self.data, self.etag = data, etag

    def good_headers(self, start: int, stop: int) -> dict[str, str]:
        """Of a 206 with bytes [start, stop)."""
        return {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(self.data)}",
            "Content-Length": str(stop - start),
            "ETag": self.etag,
        }

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Send the head of an answer."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def body(self, data: bytes) -> None:
        """Send a body, or a part of it, and count it."""
        self.handler.wfile.write(data)
        self.server.count(len(data))

    def close(self) -> None:
        """No further request on this connection."""
        self.handler.close_connection = True

    def good(self, **changes: str | None) -> None:
        """A right answer, some of its headers replaced; None drops one."""
        if (match := self.headers.get("if-match")) and match != self.etag:
            self.begin(412, {"Content-Length": "0", "ETag": self.etag})
            return
        size = len(self.data)
        if self.start >= size:
            self.begin(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
            return
        stop = min(self.stop, size)
        headers = self.good_headers(self.start, stop) | {k.replace("_", "-"): v for k, v in changes.items()}
        self.begin(206, {name: value for name, value in headers.items() if value is not None})
        self.body(self.data[self.start : stop])

    def part(self) -> bytes:
        """What a sound server would send."""
        return self.data[self.start : self.stop]


Fault = Callable[[Exchange], None]


@dataclass
class FaultyServer:
    """What is served, how it goes wrong, and what was counted.

    Attributes:
        rate: share of the requests that ``fault`` answers, drawn by ``seed`` and the number of the request.
        spared: so many requests at the beginning go right.
        requests, faults, sent: counts of requests, of wrong answers, and of body bytes that were sent.
    """

    data: bytes
    fault: Fault | None = None
    rate: float = 0.0
    seed: int = 0
    spared: int = 0
    etag: str = '"one"'
    base: str = ""
    requests: int = 0
    faults: int = 0
    sent: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str = "model.bstk") -> str:
        """Any name."""
        return f"{self.base}/{name}"

    def count(self, sent: int) -> None:
        """Count body bytes."""
        with self.lock:
            self.sent += sent

    def answer(self, handler: "_Handler") -> None:
        """Answer a request, wrongly where its number says so."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        first, _, last = headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        stop = int(last) + 1 if last else len(self.data)
        with self.lock:
            number = self.requests
            self.requests += 1
            self.seen.append(headers)
            draw = random.Random(f"{self.seed}:{number}")
            wrong = self.fault is not None and number >= self.spared and draw.random() < self.rate
            self.faults += wrong
            fault, data, etag = self.fault, self.data, self.etag
        exchange = Exchange(handler, self, number, handler.path, headers, int(first), stop, draw, data, etag)
        if wrong and fault is not None:
            fault(exchange)
        elif "range" not in headers:
            exchange.begin(200, {"Content-Length": str(len(data)), "ETag": etag})
            exchange.body(data)
        else:
            exchange.good()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faulty: FaultyServer

    def do_GET(self) -> None:
        with suppress(ConnectionError, BrokenPipeError):
            self.faulty.answer(self)
            return
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(
    faulty: FaultyServer, wrap: Callable[[socket.socket], socket.socket] | None = None
) -> Iterator[FaultyServer]:
    """Run the server; ``wrap`` puts TLS around its socket."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"faulty": faulty}))
    if wrap is not None:
        server.socket = wrap(server.socket)
    faulty.base = f"{'http' if wrap is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        faulty.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


# --- what goes wrong: answers that are no answer to what was asked --------------------------------------------------


def ignores_range(x: Exchange) -> None:
    x.begin(200, {"Content-Length": str(len(x.data)), "ETag": x.etag})
    x.body(x.data)


def short_answer(x: Exchange) -> None:
    """An honest 206 with the beginning of the range only."""
    if len(x.part()) == 1:
        short_body(x)
        return
    stop = x.start + x.draw.randint(1, len(x.part()) - 1)
    x.begin(206, x.good_headers(x.start, stop))
    x.body(x.data[x.start : stop])


def short_body(x: Exchange) -> None:
    """A 206 that announces the range and has a body of fewer bytes, as its Content-Length says."""
    data = x.part()[:-1]
    x.begin(206, x.good_headers(x.start, x.start + len(x.part())) | {"Content-Length": str(len(data))})
    x.body(data)


def wrong_offset(x: Exchange) -> None:
    """An honest 206 of another place."""
    count = len(x.part())
    start = (x.start + 64) % (len(x.data) - count)
    x.begin(206, x.good_headers(start, start + count))
    x.body(x.data[start : start + count])


def no_content_range(x: Exchange) -> None:
    x.good(Content_Range=None)


def garbage_content_range(x: Exchange) -> None:
    x.good(
        Content_Range=x.draw.choice(["bytes", "bytes 5", "pages 1-2/3", f"bytes 9-1/{len(x.data)}", "bytes a-b/c", ""])
    )


def wrong_size(x: Exchange) -> None:
    x.good(Content_Range=f"bytes {x.start}-{x.stop - 1}/{len(x.data) + 1}")


def gzipped(x: Exchange) -> None:
    data = gzip.compress(x.part())
    x.begin(
        206,
        x.good_headers(x.start, x.stop) | {"Content-Encoding": "gzip", "Content-Length": str(len(data))},
    )
    x.body(data)


def longer(x: Exchange) -> None:
    data = x.part() + b"more"
    x.begin(206, x.good_headers(x.start, x.start + len(x.part())) | {"Content-Length": str(len(data))})
    x.body(data)


def wrong_bytes(x: Exchange) -> None:
    """A lie: the headers are right, the bytes are not. Only digests can tell."""
    x.begin(206, x.good_headers(x.start, x.start + len(x.part())))
    x.body(bytes(b ^ 0x55 for b in x.part()))


# --- connections ----------------------------------------------------------------------------------------------------


def cut(x: Exchange) -> None:
    """The connection ends anywhere in the body."""
    x.begin(206, x.good_headers(x.start, x.start + len(x.part())))
    x.body(x.part()[: x.draw.randrange(len(x.part()))])
    x.close()


def reset(x: Exchange) -> None:
    """The connection is reset anywhere, before the answer or within it."""
    where = x.draw.randrange(-1, len(x.part()))
    if where >= 0:
        x.begin(206, x.good_headers(x.start, x.start + len(x.part())))
        x.body(x.part()[:where])
    x.handler.wfile.flush()
    x.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    x.handler.connection.close()
    x.close()


def hang_up(x: Exchange) -> None:
    x.close()


def no_http(x: Exchange) -> None:
    x.handler.wfile.write(b"220 welcome to the wrong port\r\n")
    x.close()


def stall(x: Exchange) -> None:
    """Nothing more comes, before the answer or within its body, and the connection stays."""
    where = x.draw.choice([-1, 0, len(x.part()) // 2])
    if where >= 0:
        x.begin(206, x.good_headers(x.start, x.start + len(x.part())))
        x.body(x.part()[:where])
    x.server.closing.wait(20)
    x.close()


def drip(x: Exchange) -> None:
    """A byte now and then, so that no silence is long."""
    x.begin(206, x.good_headers(x.start, x.start + len(x.part())))
    for i in range(len(x.part())):
        x.body(x.part()[i : i + 1])
        if x.server.closing.wait(0.02):
            break
    x.close()


def drip_head(x: Exchange) -> None:
    """The head of the answer, a byte now and then."""
    for byte in b"HTTP/1.1 206 Partial Content\r\nX-Filler: " + b"a" * 2000:
        x.handler.wfile.write(bytes([byte]))
        if x.server.closing.wait(0.02):
            break
    x.close()


# --- statuses -------------------------------------------------------------------------------------------------------


def status(code: int, after: str | None = None) -> Fault:
    """An answer with a status, and with Retry-After: seconds, or ``date`` for one that is a second away."""

    def fault(x: Exchange) -> None:
        text = email.utils.formatdate(time.time() + 1, usegmt=True) if after == "date" else after
        x.begin(code, {"Content-Length": "5"} | ({"Retry-After": text} if text is not None else {}))
        x.handler.wfile.write(b"sorry")

    return fault


def redirect_loop(x: Exchange) -> None:
    x.server.fault, x.server.rate = redirect_loop, 1.0  # once in the circle, always
    x.begin(302, {"Content-Length": "0", "Location": f"/{x.number % 2}?secret=s3cr3t"})


def redirect_once(x: Exchange) -> None:
    """A redirect to another name of the same bytes."""
    x.begin(x.draw.choice([301, 302, 303, 307, 308]), {"Content-Length": "0", "Location": f"/copy-{x.number}"})


# --- objects that change --------------------------------------------------------------------------------------------


def other_etag(x: Exchange) -> None:
    """The ETag changes, and If-Match is not looked at."""
    x.good(ETag='"two"') if "if-match" not in x.headers else x.begin(
        206, x.good_headers(x.start, x.start + len(x.part())) | {"ETag": '"two"'}
    )
    if "if-match" in x.headers:
        x.body(x.part())


def no_etag(x: Exchange) -> None:
    x.good(ETag=None)


def replaced(x: Exchange) -> None:
    """From now on there are other bytes of the same size under another ETag."""
    x.replace(bytes(b ^ 0xFF for b in x.data), '"other"')
    x.good()


def replaced_quietly(x: Exchange) -> None:
    """Other bytes, and no ETag, no time and no size tells: only digests can."""
    x.replace(bytes(b ^ 0xFF for b in x.data), x.etag)
    x.good()


def truncated(x: Exchange) -> None:
    """From now on the object ends earlier, under the same ETag."""
    x.replace(x.data[: max(1, len(x.data) // 3)], x.etag)
    x.good()


def gone(x: Exchange) -> None:
    """From now on it is not there."""
    x.server.fault, x.server.rate = status(404), 1.0
    x.server.fault(x)


def denied(x: Exchange) -> None:
    """From now on access is denied."""
    x.server.fault, x.server.rate = status(403), 1.0
    x.server.fault(x)
