"""Ranges over HTTP through fsspec's file system, every response checked.

fsspec's own ``cat_file`` returns wrong bytes without an error when a server ignores the Range header or answers
with another range, so the request is made here, in the file system's session (its headers, credentials, proxies and
event loop), and each response must be a 206 with the range and the object that were asked for.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp
import fsspec.asyn

from .errors import (
    AccessDeniedError,
    BstkError,
    NotFoundError,
    RangeError,
    ShortReadError,
    SourceChangedError,
    SourceError,
)
from .forward import ForwardStream
from .identity import Identity
from .network import TRANSIENT, Network, Pace, Patience, Transient, retry_after, without_secrets
from .redirects import Requester
from .source import Buffer, checked, within

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_DENIED = frozenset({401, 403, 407})
_GONE = frozenset({404, 410})


class _Refused(Exception):
    """The server says no to this URL; another one may do."""

    def __init__(self, error: SourceError, url: Any) -> None:
        super().__init__(error.message)
        self.error, self.url = error, url


class _Body:
    """The bytes of one read, and how many of them are there."""

    def __init__(self, offset: int, length: int) -> None:
        self.offset, self.length, self.done = offset, length, 0
        self.data = bytearray(length)

    def put(self, chunk: bytes) -> None:
        self.data[self.done : self.done + len(chunk)] = chunk
        self.done += len(chunk)


class HttpSource:
    """An object behind ``http://`` or ``https://``, pinned at its first read by its ETag, or its size and time.

    Attributes:
        name: the URL without user, password and query, which may hold secrets.
        requests: requests sent, those that failed or were redirected included.
        bytes_received: bytes of bodies that came, those that could not be used included.
    """

    def __init__(self, fs: Any, url: str, network: Network | None = None) -> None:
        self.name = without_secrets(url)
        self.network = network or Network()
        self.bytes_received = 0
        self._fs = fs
        self._requester = Requester(fs, url, self.name, self.network)
        self._identity: Identity | None = None
        self._stream: ForwardStream | None = None

    @property
    def requests(self) -> int:
        """See the class."""
        return self._requester.sent

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        self.close()
        self._identity = None
        try:
            body = self._run(0, length)
        except _IgnoresRangesError:
            if not self.network.allow_stream:
                raise
            self._stream = ForwardStream(self._fs, self._requester, self.name, self.network, self._count)
            return self._stream.start(length)
        size = self._identity.size if self._identity else 0
        return checked(body, 0, min(length, size), self.name), size

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`."""
        if self._stream is not None:
            return checked(self._stream.get(offset, length), offset, length, self.name)
        if self._identity is not None:
            within(offset, length, self._identity.size, self.name)
        return checked(self._run(offset, length), offset, length, self.name)

    def close(self) -> None:
        """End a stream that is open; fsspec shares its sessions."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _count(self, received: int) -> None:
        self.bytes_received += received

    def _run(self, offset: int, length: int) -> bytearray:
        if length == 0:
            return bytearray()
        try:
            body: _Body = fsspec.asyn.sync(self._fs.loop, self._read, _Body(offset, length))
        except BstkError:
            raise
        except Exception as error:
            text = without_secrets(f"{type(error).__name__}: {error}")
            raise SourceError(f"cannot be read: {text}", where=self.name) from None
        return body.data[: body.length] if body.length < len(body.data) else body.data

    async def _read(self, body: _Body) -> _Body:
        """Ask for what is missing until nothing is: a body that was cut goes on where it ended."""
        patience, renewals = Patience(self.network, body.length), 0
        while body.done < body.length:
            before = body.done
            try:
                async with asyncio.timeout(max(0.0, patience.left)) as limit:
                    await self._attempt(body)
            except _Refused as refused:
                renewals += 1
                if renewals > 2 or not await self._renewed(refused):
                    raise refused.error from None
            except (Transient, aiohttp.ClientError, TimeoutError, OSError) as error:
                if limit.expired():
                    raise patience.late(body.done, body.length).at(self.name) from None
                failure = error if isinstance(error, Transient) else self._failure(error, body)
                answered = self._identity is not None
                await patience.wait(failure, body.done - before, answered=answered)
        return body

    async def _attempt(self, body: _Body) -> None:
        start, stop = body.offset + body.done, body.offset + body.length
        headers = {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            **(self._identity.conditions if self._identity else {}),
        }
        async with asyncio.timeout(self.network.connect_timeout + self.network.stall_timeout):
            response, url = await self._requester.get(headers)
        try:
            if self._identity is None and _is_empty(response):
                self._identity, body.length = Identity.of(response.headers, 0), 0
                return
            self._check_status(response, url, start)
            first = self._identity is None
            got = self._check_headers(response.headers, start, stop)
            self._requester.remember(url)
            if first and self._identity:
                body.length = min(body.length, self._identity.size)
            pace, before = Pace(self.network), body.done
            async for chunk in response.content.iter_any():
                self._count(len(chunk))
                if body.done + len(chunk) > before + got:
                    body.done = before  # nothing of it is trusted
                    self._unsound(ShortReadError, f"the server sends more than the {got} bytes it announced", start)
                body.put(chunk)
                if slow := pace.came(len(chunk)):
                    raise Transient(SourceError(slow, where=self.name, offset=start))
            if body.done < body.length:
                raise Transient(self._fewer(body, got, start, stop))
        finally:
            response.close() if body.done < body.length else response.release()

    def _fewer(self, body: _Body, got: int, start: int, stop: int) -> SourceError:
        came = body.offset + body.done - start
        if came < got:
            text = f"the response ended after {came} of {got} bytes"
            return ShortReadError(text, where=self.name, offset=start)
        text = f"the server answers with bytes {start}-{start + got - 1}, asked for {start}-{stop - 1}"
        return ShortReadError(text, where=self.name, offset=start)

    def _failure(self, error: Exception, body: _Body) -> Transient:
        """What an error of the connection means."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
            text = without_secrets(str(error))
            raise SourceError(
                f"the server's certificate is not trusted ({text}): check the URL and this machine's certificates",
                where=self.name,
            )
        if isinstance(error, aiohttp.InvalidURL):
            raise SourceError(f"no usable URL: {without_secrets(str(error))}", where=self.name)
        at = body.offset + body.done
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, TimeoutError):
            text = f"no answer, or no byte of it, within {self.network.stall_timeout:g} s"
        elif isinstance(error, aiohttp.ClientPayloadError):
            text = f"the response ended before its end, after byte {at}"
        unreachable = isinstance(error, aiohttp.ClientConnectorError)
        return Transient(
            SourceError(f"cannot be read: {without_secrets(text)}", where=self.name, offset=at),
            unreachable=unreachable,
        )

    async def _renewed(self, refused: _Refused) -> bool:
        """Whether there is another way to the object: the URL before its redirects, or a fresh one."""
        if self._requester.forget(refused.url) and self._identity is not None:
            return True
        if self.network.renew is None or self._identity is None or not isinstance(refused.error, AccessDeniedError):
            return False
        try:
            self._requester.replace(await asyncio.to_thread(self.network.renew, self._requester.url))
        except Exception as error:  # it is the caller's, and may raise anything
            raise AccessDeniedError(
                f"{refused.error.message}; and no fresh URL came: {without_secrets(str(error))}", where=self.name
            ) from None
        return True

    def _check_status(self, response: aiohttp.ClientResponse, url: Any, offset: int) -> None:
        status = response.status
        text = f"HTTP {status} {response.reason or ''}".strip()
        later = self._identity is not None
        if status == 206:
            return
        if status == 200:
            self._unsound(
                _IgnoresRangesError,
                f"the server ignores byte ranges ({text} to a Range request): serve the file with range support, "
                "download it and name the local path, or allow it to be read as a stream (--allow-stream)",
                offset,
            )
        if status in _GONE:
            how = "it was there when it was opened" if later else "check the URL"
            raise _Refused(NotFoundError(f"no such object ({text}): {how}", where=self.name), url)
        if status in _DENIED:
            how = (
                "access was granted before: a signature or credentials have expired; open it again with fresh ones"
                if later
                else "check the credentials"
            )
            raise _Refused(AccessDeniedError(f"access denied ({text}): {how}", where=self.name), url)
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
            raise Transient(error, retry_after(response.headers))
        raise SourceError(f"the server answers {text}, expected 206", where=self.name, offset=offset)

    def _check_headers(self, headers: Mapping[str, str], start: int, stop: int) -> int:
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
        if self._identity is None:
            if total is None:
                raise RangeError("the server does not say how large the object is", where=self.name)
            self._identity = Identity.of(headers, total)
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


class _IgnoresRangesError(RangeError):
    """A 200 to a request for a range."""


def _is_empty(response: aiohttp.ClientResponse) -> bool:
    """Whether the object has no bytes, and so no range: servers answer 200 or 416 then."""
    if response.status == 416:
        return response.headers.get("Content-Range", "").strip() == "bytes */0"
    return response.status == 200 and response.headers.get("Content-Length") == "0"
