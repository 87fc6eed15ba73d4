"""Ranges over HTTP through fsspec's file system, every response checked.

fsspec's own ``cat_file`` returns wrong bytes without an error when a server ignores the Range header or answers
with another range, so the request is made here, in the file system's session (its headers, credentials, proxies and
event loop), and each response must be a 206 with the range and the object that were asked for.
"""

import asyncio
import re
import threading
from typing import Any

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
from .source import Buffer, checked

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
#: Attempts at one range, and seconds before the second; the pause doubles.
_ATTEMPTS, _PAUSE = 4, 0.25
#: Seconds to connect, and without a byte.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)


class _Transient(Exception):
    """A failure that may pass: it is tried again."""


class HttpSource:
    """An object behind ``http://`` or ``https://``, pinned at its first read by ETag or Last-Modified."""

    def __init__(self, fs: Any, url: str) -> None:
        self.name = url
        self._fs = fs
        self._lock = threading.Lock()
        self._size: int | None = None
        self._pin: dict[str, str] = {}

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        data = self._retry(0, length, first=True)
        if self._size is None:
            raise SourceError("the server does not say how large the object is", where=self.name)
        return checked(data, 0, min(length, self._size), self.name), self._size

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`."""
        return checked(self._retry(offset, length, first=False), offset, length, self.name)

    def close(self) -> None:
        """Nothing to release: fsspec shares its sessions."""

    def _retry(self, offset: int, length: int, *, first: bool) -> Buffer:
        try:
            return bytes_of(fsspec.asyn.sync(self._fs.loop, self._attempts, offset, length, first))
        except BstkError:
            raise
        except Exception as error:
            raise SourceError(f"cannot be read: {type(error).__name__}: {error}", where=self.name) from None

    async def _attempts(self, offset: int, length: int, first: bool) -> bytearray:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._request(offset, length, first)
            except (_Transient, aiohttp.ClientError, TimeoutError, OSError) as error:
                detail = str(error) or type(error).__name__
                if attempt == _ATTEMPTS:
                    raise SourceError(
                        f"cannot be read after {_ATTEMPTS} attempts: {detail}", where=self.name, offset=offset
                    ) from None
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1))

    async def _request(self, offset: int, length: int, first: bool) -> bytearray:
        session = await self._fs.set_session()
        kwargs = {k: v for k, v in self._fs.kwargs.items() if k != "headers"}
        headers = {
            **self._fs.kwargs.get("headers", {}),
            "Range": f"bytes={offset}-{offset + length - 1}",
            "Accept-Encoding": "identity",
            **({} if first else self._pin),
        }
        url = self._fs.encode_url(self.name)
        async with session.get(url, headers=headers, timeout=_TIMEOUT, **kwargs) as response:
            if first and _is_empty(response):
                self._remember(response.headers, 0)
                return bytearray()
            self._check_status(response.status, response.reason, offset, first)
            got, total = self._check_range(response.headers, offset, length)
            if first:
                self._remember(response.headers, total)
            elif total is not None and total != self._size:
                raise self._changed(f"its size was {self._size} and is {total}", offset)
            elif (etag := response.headers.get("ETag")) and etag != self._pin.get("If-Match", etag):
                raise self._changed(f"its ETag was {self._pin['If-Match']} and is {etag}", offset)
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > got:
                    raise ShortReadError(
                        f"the server sends more than the {got} bytes it announced", where=self.name, offset=offset
                    )
            if len(body) < got:
                raise _Transient(f"the response ended after {len(body)} of {got} bytes")
            return body

    def _check_status(self, status: int, reason: str | None, offset: int, first: bool) -> None:
        text = f"HTTP {status} {reason or ''}".strip()
        if status == 206:
            return
        if status == 200:
            raise RangeError(
                f"the server ignores byte ranges ({text} to a Range request): serve the file with range support, "
                "or download it and name the local path",
                where=self.name,
            )
        if status in (404, 410):
            raise NotFoundError(f"no such object ({text}): check the URL", where=self.name)
        if status in (401, 403, 407):
            raise AccessDeniedError(f"access denied ({text}): check the credentials", where=self.name)
        if status == 412:
            raise self._changed("its ETag is another one now", offset)
        if status == 416:
            raise (
                SourceError(f"the server has no such range ({text})", where=self.name)
                if first
                else self._changed(f"it has no byte {offset} any more", offset)
            )
        if status == 429 or status >= 500:
            raise _Transient(text)
        raise SourceError(f"the server answers {text}, expected 206", where=self.name, offset=offset)

    def _check_range(self, headers: Any, offset: int, length: int) -> tuple[int, int | None]:
        if headers.get("Content-Encoding", "identity") != "identity":
            raise RangeError(
                f"the server applies Content-Encoding {headers['Content-Encoding']} to a byte range; "
                "switch compression off for this file",
                where=self.name,
            )
        text = headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if not match:
            raise RangeError(f"a 206 response without a usable Content-Range ({text!r})", where=self.name)
        begin, end = int(match[1]), int(match[2]) + 1
        total = None if match[3] == "*" else int(match[3])
        if begin != offset or not begin < end <= offset + length:
            raise ShortReadError(
                f"the server answers with bytes {begin}-{end - 1}, asked for {offset}-{offset + length - 1}",
                where=self.name,
                offset=offset,
            )
        return end - begin, total

    def _remember(self, headers: Any, total: int | None) -> None:
        with self._lock:
            self._size = total
            etag, modified = headers.get("ETag"), headers.get("Last-Modified")
            if etag and not etag.startswith("W/"):
                self._pin = {"If-Match": etag}
            elif modified:
                self._pin = {"If-Unmodified-Since": modified}

    def _changed(self, how: str, offset: int) -> SourceChangedError:
        return SourceChangedError(
            f"the object was replaced while it was read ({how}); open it again", where=self.name, offset=offset
        )


def _is_empty(response: aiohttp.ClientResponse) -> bool:
    """Whether the object has no bytes, and so no range: servers answer 200 or 416 then."""
    if response.status == 416:
        return response.headers.get("Content-Range", "").strip() == "bytes */0"
    return response.status == 200 and response.headers.get("Content-Length") == "0"


def bytes_of(value: Any) -> Buffer:
    """Narrow what fsspec's untyped bridge returns."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected bytes, not {type(value).__name__}")
    return value
