"""A small HTTP server for one file that serves byte ranges and counts what it serves.

    with RangeServer(path) as server:
        bstk_inspect(server.url)
        server.requests, server.bytes_sent

It does what RFC 9110 asks of a server with ranges: 206 with Content-Range, 416 beyond the end, strong ETags with
If-Match (412) and If-Range, HEAD, connections kept open. Bound to loopback, and meant for demonstrations and tests.
"""

import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import quote, unquote, urlsplit

_RANGE: Final = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE)
_CHUNK: Final = 1 << 18


@dataclass(slots=True)
class Served:
    """One request: its method, the status of the answer, and the bytes [start, stop) of the file that were sent."""

    method: str
    status: int
    start: int = 0
    stop: int = 0

    @property
    def length(self) -> int:
        """Bytes of the body so far."""
        return self.stop - self.start


class RangeServer:
    """Serves one file on a free port of 127.0.0.1 from a thread; use it in a ``with`` statement.

    Attributes:
        log: every request, in the order in which they came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: list[Served] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{quote(self.path.name)}"

    @property
    def requests(self) -> int:
        """Requests so far."""
        return len(self.log)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all bodies so far."""
        return sum(served.length for served in self.log)

    def note(self, served: Served) -> Served:
        """Add a request to the log, before its answer goes out."""
        with self._lock:
            self.log.append(served)
        return served

    def __enter__(self) -> "RangeServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that a Range header asks for; empty if none of them exist, None if it is to be ignored.

    A header with several ranges, or one that cannot be read, is ignored, as RFC 9110 §14.2 allows.
    """
    match = _RANGE.fullmatch(header)
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    start = int(first)
    return (start, min(int(last) + 1 if last else size, size)) if start < size else (size, size)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: RangeServer

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer HEAD."""
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep stderr for others."""

    def _answer(self) -> None:
        if unquote(urlsplit(self.path).path) != f"/{self.owner.path.name}":
            self._refuse(404)
            return
        try:
            file = self.owner.path.open("rb")
        except OSError:
            self._refuse(404)
            return
        with file:
            # Length and tag are of the open file: replacing it in between cannot mix two.
            size, etag = _identity(file.fileno())
            if not _matches(self.headers.get("If-Match", "*"), etag):
                self._refuse(412, ETag=etag)
                return
            wanted = None
            # RFC 9110 §14.2: a range means something for GET only.
            if self.command == "GET" and self.headers.get("If-Range", etag).strip() == etag:
                wanted = requested_range(self.headers.get("Range", ""), size)
            start, stop = wanted or (0, size)
            if wanted is not None and start == stop:
                self._refuse(416, Content_Range=f"bytes */{size}", ETag=etag)
                return
            served = self.owner.note(Served(self.command, 200 if wanted is None else 206, start, start))
            self.send_response(served.status)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(stop - start))
            if wanted is not None:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if self.command == "GET":
                file.seek(start)
                while served.stop < stop and (data := file.read(min(_CHUNK, stop - served.stop))):
                    # Counted before it goes out, so that whoever has the last byte finds all of them counted.
                    served.stop += len(data)
                    self.wfile.write(data)
                # A file cut short meanwhile: the announced length cannot be kept, so the connection must end.
                self.close_connection |= served.stop < stop

    def _refuse(self, status: int, **headers: str) -> None:
        self.owner.note(Served(self.command, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _identity(descriptor: int) -> tuple[int, str]:
    stat = os.fstat(descriptor)
    return stat.st_size, f'"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"'


def _matches(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (tag.strip() for tag in header.split(","))
