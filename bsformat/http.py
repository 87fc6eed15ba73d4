"""Ranges over HTTP, every response checked.

fsspec's own ``cat_file`` returns wrong bytes without an error when a server ignores the Range header or answers
with another range, so the request is made here, with the headers, credentials and proxies of the file system, and each
response must be a 206 with the range and the object that were asked for.
"""

import re
import threading
import time
from typing import Any, NoReturn

import fsspec.asyn

from .answers import Answer, Headers, LinkError
from .buffers import new_bytes
from .errors import (
    AccessDeniedError,
    BstkError,
    RangeError,
    ShortReadError,
    SourceChangedError,
    SourceError,
)
from .forward import ForwardStream
from .http_failures import IgnoresRangesError, Refused, failure_of, no_access, size_before
from .identity import Identity
from .network import TRANSIENT, Network, Pace, Patience, Signals, Transient, retry_after, without_secrets
from .redirects import Requester
from .source import Buffer, There, beside, checked, within

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _Body:
    """The bytes of one read, and how many of them are there, which ``there`` is told."""

    def __init__(self, offset: int, out: memoryview, there: There) -> None:
        self.offset, self.length, self.done = offset, len(out), 0
        self.out, self.there = out, there

    def reach(self, done: int) -> None:
        self.done = done
        self.there(done)


class HttpSource:
    """An object behind ``http://`` or ``https://``, pinned at its first read by its ETag, or its size and time.

    Attributes:
        name: the URL without user, password and query, which may hold secrets.
        requests: requests sent, those that failed or were redirected included.
        bytes_received: bytes of bodies that came, those that could not be used included.
        signals: what is noticed of the server.
    """

    def __init__(self, fs: Any, url: str, network: Network | None = None, requester: Requester | None = None) -> None:
        self.name = without_secrets(url)
        self.network = network or Network()
        self.signals = Signals(counts=True)
        self._fs = fs
        self._requester = requester or Requester(fs, url, self.name, self.network)
        self._identity: Identity | None = None
        self._pinning, self._beginning = threading.Lock(), threading.Lock()
        self._granted = False
        self._stream: ForwardStream | None = None

    @property
    def requests(self) -> int:
        """See the class."""
        return self._requester.sent

    @property
    def bytes_received(self) -> int:
        """See the class."""
        return self.signals.received

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        self.close()
        self._identity = None
        data = bytearray(length)
        try:
            came = self._run(0, memoryview(data))
        except IgnoresRangesError:
            if not self.network.allow_stream:
                raise
            self._stream = ForwardStream(self._fs, self._requester, self.name, self.network, self.signals.came)
            self.signals.most = 1  # a stream has one place
            return self._stream.start(length)
        size = self._identity.size if self._identity else 0
        return checked(data[:came] if came < length else data, 0, min(length, size), self.name), size

    def begin(self, offset: int, out: memoryview) -> int:
        """Read for the first time, at any place; that answer pins the object. Several threads may begin at once.

        Returns:
            The bytes of the object: fewer than ``offset + len(out)`` if not all of ``out`` was filled.
        """
        try:
            if self._stream is None:
                self._run(offset, out)
                return self._identity.size if self._identity else 0
        except IgnoresRangesError:
            if not self.network.allow_stream:
                raise
        with self._beginning:
            size = self._stream.start(0)[1] if self._stream else self.start(1)[1]
        if offset + len(out) <= size:
            self.get_into(offset, out)
        return size

    def sibling(self, name: str) -> "HttpSource":
        """See `bsformat.source.SiblingSource`. The query, which may hold a key to the folder, stays."""
        path, mark, query = self._requester.url.partition("#")[0].partition("?")
        other = HttpSource(self._fs, beside(path, name) + mark + query, self.network)
        other._requester.share(self._requester)
        other.signals, other._granted = self.signals, True
        return other

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`."""
        data = new_bytes(length, self.name, offset)
        self.get_into(offset, memoryview(data))
        return data

    def get_into(self, offset: int, out: memoryview) -> None:
        """See `bsformat.source.FillingSource.get_into`."""
        self.get_telling(offset, out, lambda count: None)

    def get_telling(self, offset: int, out: memoryview, there: There) -> None:
        """See `bsformat.source.TellingSource.get_telling`."""
        if self._stream is not None:
            out[:] = checked(self._stream.get(offset, len(out)), offset, len(out), self.name)
            return
        if self._identity is not None:
            within(offset, len(out), self._identity.size, self.name)
        came = self._run(offset, out, there)
        checked(out[:came], offset, len(out), self.name)

    def close(self) -> None:
        """End a stream that is open, and connections that are idle; fsspec shares its sessions."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._requester.close()

    def _run(self, offset: int, out: memoryview, there: There = lambda count: None) -> int:
        """Fill ``out``; gives how many bytes there were, fewer where the object ends."""
        if len(out) == 0:
            return 0
        try:
            return self._read(_Body(offset, out, there))
        except BstkError:
            raise
        except Exception as error:
            text = without_secrets(f"{type(error).__name__}: {error}")
            raise SourceError(f"cannot be read: {text}", where=self.name) from None

    def _read(self, body: _Body) -> int:
        """Ask for what is missing until nothing is: a body that was cut goes on where it ended."""
        patience, renewals = Patience(self.network, body.length), 0
        while body.done < body.length:
            before = body.done
            try:
                self._attempt(body, patience)
            except Refused as refused:
                renewals += 1
                if renewals > 2 or not self._renewed(refused):
                    raise refused.error from None
            except (Transient, LinkError) as error:
                if patience.left <= 0:
                    raise patience.late(body.done, body.length).at(self.name) from None
                at, silence = body.offset + body.done, self.network.stall_timeout
                failure = error if isinstance(error, Transient) else failure_of(error, silence, self.name, at)
                if failure.pressed:
                    self.signals.set_back()
                answered = self._identity is not None
                fsspec.asyn.sync(self._fs.loop, patience.wait, failure, body.done - before, answered=answered)
        return body.length

    def _attempt(self, body: _Body, patience: Patience) -> None:
        start, stop = body.offset + body.done, body.offset + body.length
        headers = {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            **(self._identity.conditions if self._identity else {}),
        }
        began = time.monotonic()
        within_seconds = min(self.network.connect_timeout + self.network.stall_timeout, patience.left)
        answer, url = self._requester.get(headers, within_seconds)
        try:
            if self._identity is None and (size := size_before(answer, start)) is not None:
                self._identity, body.length = Identity.of(answer.headers, size), body.done
                return
            self._check_status(answer, url, start)
            first = self._identity is None
            got = self._check_headers(answer.headers, start, stop)
            self._requester.remember(url)
            self.signals.answered_in(time.monotonic() - began)
            if first and self._identity:
                body.length = min(body.length, max(0, self._identity.size - body.offset))
            before = body.done
            self._receive(answer, body, got, patience.left)
            if body.done == before + got and answer.has_more(min(self.network.stall_timeout, patience.left)):
                body.reach(before)  # nothing of it is trusted
                self._unsound(ShortReadError, f"the server sends more than the {got} bytes it announced", start)
            if body.done < body.length:
                raise Transient(self._fewer(body, got, start, stop))
        finally:
            answer.close()

    def _receive(self, answer: Answer, body: _Body, got: int, seconds: float) -> None:
        pace, start = Pace(self.network), body.offset + body.done

        def came(count: int) -> None:
            self.signals.came(count)
            body.reach(body.done + count)
            if slow := pace.came(count):
                raise Transient(SourceError(slow, where=self.name, offset=start), pressed=True)

        answer.receive(body.out[body.done : body.done + got], came, seconds)

    def _fewer(self, body: _Body, got: int, start: int, stop: int) -> SourceError:
        came = body.offset + body.done - start
        if came < got:
            text = f"the response ended after {came} of {got} bytes"
            return ShortReadError(text, where=self.name, offset=start)
        text = f"the server answers with bytes {start}-{start + got - 1}, asked for {start}-{stop - 1}"
        return ShortReadError(text, where=self.name, offset=start)

    def _renewed(self, refused: Refused) -> bool:
        """Whether there is another way to the object: the URL before its redirects, or a fresh one."""
        granted = self._granted or self._identity is not None
        if self._requester.forget(refused.url) and granted:
            return True
        if self.network.renew is None or not granted or not isinstance(refused.error, AccessDeniedError):
            return False
        try:
            self._requester.replace(self.network.renew(self._requester.url))
        except Exception as error:  # it is the caller's, and may raise anything
            raise AccessDeniedError(
                f"{refused.error.message}; and no fresh URL came: {without_secrets(str(error))}", where=self.name
            ) from None
        return True

    def _check_status(self, response: Answer, url: Any, offset: int) -> None:
        status = response.status
        text = f"HTTP {status} {response.reason or ''}".strip()
        later = self._identity is not None
        if status == 206:
            return
        if status == 200:
            self._unsound(
                IgnoresRangesError,
                f"the server ignores byte ranges ({text} to a Range request): serve the file with range support, "
                "download it and name the local path, or allow it to be read as a stream (--allow-stream)",
                offset,
            )
        if (error := no_access(status, text, self.name, later=later)) is not None:
            raise Refused(error, url)
        if self._identity is not None and status == 412:
            pinned = self._identity.etag or self._identity.modified
            how = response.headers.get("ETag", "another one now")
            raise self._changed(f"it was {pinned} and is {how}", offset)
        if status == 412:
            raise self._changed("its ETag is another one now", offset)
        if status == 416:
            if not later:
                raise SourceError(f"the server has no such range ({text})", where=self.name)
            raise self._changed(f"it has no byte {offset} any more", offset)
        if status in TRANSIENT:
            error = SourceError(f"cannot be read: the server answers {text}", where=self.name, offset=offset)
            raise Transient(error, retry_after(response.headers), pressed=True)
        raise SourceError(f"the server answers {text}, expected 206", where=self.name, offset=offset)

    def _check_headers(self, headers: Headers, start: int, stop: int) -> int:
        """Bytes that the answer brings, all of them from ``start`` on, of the object that is pinned."""
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            self._unsound(
                RangeError,
                f"the server applies Content-Encoding {encoding} to a byte range; switch compression off for this file",
                start,
            )
        text = headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if not match:
            self._unsound(RangeError, f"a 206 response without a usable Content-Range ({text!r})", start)
        begin, end = int(match[1]), int(match[2]) + 1
        total = None if match[3] == "*" else int(match[3])
        if self._identity is not None and (how := self._identity.difference(headers, total)):
            raise self._changed(how, start)
        if begin != start or not begin < end <= stop or (total is not None and end > total):
            text = f"the server answers with bytes {begin}-{end - 1}, asked for {start}-{stop - 1}"
            self._unsound(ShortReadError, text, start)
        with self._pinning:
            if self._identity is None:
                if total is None:
                    raise RangeError("the server does not say how large the object is", where=self.name)
                self._identity = Identity.of(headers, total)
        # Another thread may have been first, with the answer of another object.
        if how := self._identity.difference(headers, total):
            raise self._changed(how, start)
        return end - begin

    def _unsound(self, kind: type[SourceError], text: str, offset: int) -> NoReturn:
        """Refuse an answer; a server that gave sound ones before is asked again."""
        error = kind(text, where=self.name, offset=offset)
        if self._identity is None:
            raise error
        raise Transient(error)

    def _changed(self, how: str, offset: int) -> SourceChangedError:
        return SourceChangedError(
            f"the object was replaced while it was read ({how}); open it again", where=self.name, offset=offset
        )
