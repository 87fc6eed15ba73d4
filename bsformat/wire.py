"""HTTP/1.1 as far as a GET needs it: the bytes of a request, the head of an answer, and its body.

http.client does more, and reads each head with the parser of mail, which takes as long as a MiB does from a fast link.
Servers are not trusted: every length is bounded before anything is kept.
"""

import re
import socket
from collections.abc import Mapping
from typing import Final

from .answers import Headers

#: Bytes of a head, and of the trailers of a body in chunks, at most.
_MOST_HEAD: Final = 1 << 16
#: Bytes of the line that begins a chunk, at most.
_MOST_LINE: Final = 1 << 12
#: Bytes asked for while a head is read; those of the body among them are copied once more.
_PIECE: Final = 1 << 12
#: Answers before the one that counts (100, 103) at most.
_MOST_INTERIM: Final = 8

_STATUS = re.compile(r"HTTP/1\.([01]) +([1-9]\d\d)(?: +(.*))?")
_END = re.compile(rb"\r?\n\r?\n")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")


class WireError(Exception):
    """What came is no HTTP/1.1, or more of it than there may be."""


class EndedError(Exception):
    """The connection ended before the answer did."""


def request(path: str, host: str, headers: Mapping[str, str]) -> bytes:
    """The bytes of a GET.

    Args:
        path: with its query, encoded as URLs are. host: with the port, where it is not the usual one.

    Raises:
        ValueError: something in it would end a line, or is no ASCII in the path, or no Latin-1 in a header.
    """
    if not path.startswith("/") or _FORBIDDEN.search(path) or " " in path:
        raise ValueError("the URL has characters that must be encoded")
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}"]
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or _FORBIDDEN.search(value):
            raise ValueError(f"no usable header {name!r}")
        lines.append(f"{name}: {value}")
    lines[0].encode("ascii")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Incoming:
    """One answer from a socket: its head is read when it is made.

    Attributes:
        status, reason, headers: as the server sent them.

    Raises:
        ConnectionResetError: the connection ended before the first byte. EndedError: after it.
        WireError: it is no answer. OSError: as the socket does.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = b""  # came already, and was not used
        for _ in range(_MOST_INTERIM + 1):
            minor = self._read_head()
            if self.status >= 200 or self.status == 101:
                break
        else:
            raise WireError(f"{_MOST_INTERIM} answers with HTTP {self.status}, and no other")
        #: Bytes that are left of the body, or of its chunk; None: to the end of the connection.
        self._left: int | None = self._length()
        tokens = {token.strip() for token in self.headers.get("Connection", "").lower().split(",")}
        self._lasting = "close" not in tokens if minor == "1" else "keep-alive" in tokens

    @property
    def is_over(self) -> bool:
        """Whether the body was read to its end."""
        return self._left == 0 and not self._chunked

    @property
    def reusable(self) -> bool:
        """Whether another request may follow now."""
        return self.is_over and self._lasting and not self._ahead

    @property
    def left(self) -> int | None:
        """Bytes that are left of the body; None where that is not known."""
        return None if self._chunked else self._left

    def read_into(self, out: memoryview) -> int:
        """Put some of the body, what is there already, into ``out``; 0 at its end.

        Raises:
            EndedError: the connection ended first. WireError: no such framing. OSError: as the socket does.
        """
        if self._chunked and not self._left:
            self._next_chunk()
        if self._left == 0:
            return 0
        if self._left is not None and self._left < len(out):
            out = out[: self._left]
        if self._ahead:
            count = min(len(self._ahead), len(out))
            out[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._sock.recv_into(out)
        if self._left is None:
            if not count:
                self._left = 0
                self._lasting = False
            return count
        if not count and len(out):
            raise EndedError
        self._left -= count
        if self._chunked and not self._left:
            self._take_line()  # what ends a chunk
        return count

    def _read_head(self) -> str:
        """Read status and headers; gives the minor version."""
        data, at = self._ahead, 0
        while not (end := _END.search(data, at)):
            if len(data) > _MOST_HEAD:
                raise WireError(f"an answer whose head has more than {_MOST_HEAD} bytes")
            piece = self._sock.recv(_PIECE)
            if not piece and not data:
                raise ConnectionResetError("the server closed the connection without an answer")
            if not piece:
                raise EndedError
            at = max(0, len(data) - 3)
            data += piece
        self._ahead = data[end.end() :]
        first, *lines = data[: end.start()].decode("latin-1").split("\n")
        match = _STATUS.fullmatch(first.rstrip("\r"))
        if not match:
            raise WireError(f"no HTTP/1.1 answer: {first[:60]!r}")
        self.status, self.reason = int(match[2]), (match[3] or "").strip()
        pairs: list[tuple[str, str]] = []
        for line in lines:
            name, colon, value = line.partition(":")
            if line[:1] in (" ", "\t") and pairs:  # goes on with the one before
                pairs[-1] = pairs[-1][0], f"{pairs[-1][1]} {line.strip()}"
            elif not colon or not _NAME.fullmatch(name):
                raise WireError(f"a header that is none: {line[:60]!r}")
            else:
                pairs.append((name, value))
        self.headers = Headers(pairs)
        self._lengths = {value.strip() for name, value in pairs if name.lower() == "content-length"}
        return match[1]

    def _length(self) -> int | None:
        coding = self.headers.get("Transfer-Encoding", "").lower()
        self._chunked = coding == "chunked"
        if self.status in (101, 204, 304):
            self._chunked = False
            return 0
        if self._chunked:
            return 0
        if coding:
            raise WireError(f"a body with Transfer-Encoding {coding[:60]!r}")
        if not self._lengths:
            return None
        (text, *others) = self._lengths
        if others or not re.fullmatch(r"[0-9]{1,18}", text):
            raise WireError(f"a body with Content-Length {', '.join(sorted(self._lengths))[:60]!r}")
        return int(text)

    def _next_chunk(self) -> None:
        match = _SIZE.fullmatch(self._take_line())
        if not match:
            raise WireError("a body in chunks of which one has no length")
        self._left = int(match[1], 16)
        if not self._left:
            total = 0
            while line := self._take_line().strip():
                total += len(line)
                if total > _MOST_HEAD:
                    raise WireError(f"trailers of more than {_MOST_HEAD} bytes")
            self._chunked = False

    def _take_line(self) -> bytes:
        while (end := self._ahead.find(b"\n")) < 0:
            if len(self._ahead) > _MOST_LINE:
                raise WireError(f"a line of more than {_MOST_LINE} bytes")
            piece = self._sock.recv(_PIECE)
            if not piece:
                raise EndedError
            self._ahead += piece
        line, self._ahead = self._ahead[: end + 1], self._ahead[end + 1 :]
        return line
