"""Ranges of S3 objects through s3fs, every answer checked and the object pinned.

``cat_file`` of s3fs pins nothing: an object that is replaced between two reads gives a mixture. So each range is a
GetObject of its own here, made by the file system's client (its credentials, endpoint and event loop), with the ETag
and, in a bucket that has versions, the version of the first answer.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp

from .buffers import new_bytes
from .errors import (
    AccessDeniedError,
    BstkError,
    NotFoundError,
    RangeError,
    ShortReadError,
    SourceChangedError,
    SourceError,
)
from .network import TRANSIENT, Network, Pace, Patience, Signals, Transient, retry_after, without_secrets
from .source import Buffer, beside, checked, translated, within
from .stopping import run_in

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
#: Codes of S3 that may pass, whatever status they come with.
_PASSING = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"})
#: Classes of botocore and fsspec, which are not imported here, for what happens to a connection.
_CONNECTION = frozenset({"HTTPClientError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError"})
#: Bytes taken from an answer at a time.
_CHUNK = 1 << 18


class _Body:
    """The bytes of one read, and how many of them are there."""

    def __init__(self, offset: int, out: memoryview) -> None:
        self.offset, self.out, self.done = offset, out, 0


class S3Source:
    """An object of an S3 file system.

    Attributes:
        requests: GetObject calls made here; s3fs and botocore may repeat each of them.
        signals: what is noticed of the server.
    """

    def __init__(self, fs: Any, path: str, name: str, network: Network | None = None) -> None:
        self.name, self.network = name, network or Network()
        self.requests = 0
        self.signals = Signals(counts=True)
        self._fs = fs
        self._bucket, self._key, self._version = fs.split_path(path)
        self._etag: str | None = None
        self._size = 0

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        if not self._key:
            raise SourceError("is no file with a known size; name one .bstk file", where=self.name)
        self._etag, self._size = None, 0
        data = bytearray(length)
        came = self._run(0, memoryview(data))
        return checked(data[:came], 0, min(length, self._size), self.name), self._size

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`."""
        data = new_bytes(length, self.name, offset)
        self.get_into(offset, memoryview(data))
        return data

    def get_into(self, offset: int, out: memoryview) -> None:
        """See `bsformat.source.FillingSource.get_into`."""
        if self._etag is not None:
            within(offset, len(out), self._size, self.name)
        checked(out[: self._run(offset, out)], offset, len(out), self.name)

    @property
    def bytes_received(self) -> int:
        """Bytes of bodies that came."""
        return self.signals.received

    def begin(self, offset: int, out: memoryview) -> int:
        """The first read, at any place; gives the size of the object."""
        self._run(offset, out)
        return self._size

    def sibling(self, name: str) -> "S3Source":
        """See `bsformat.source.SiblingSource`; a version of this object is none of another."""
        bucket, key = self._bucket, beside(self._key, name)
        other = S3Source(self._fs, f"{bucket}/{key}", beside(self.name.partition("?")[0], name), self.network)
        other.signals = self.signals
        return other

    def close(self) -> None:
        """Nothing to release: fsspec shares its file systems."""

    def _run(self, offset: int, out: memoryview) -> int:
        """Fill ``out``; gives how many bytes there were, fewer where the object ends."""
        if len(out) == 0:
            return 0
        patience = Patience(self.network, len(out))
        with translated(self.name):
            return run_in(self._fs.loop, self._read(_Body(offset, out), patience))

    async def _read(self, body: _Body, patience: Patience) -> int:
        offset, length, renewed = body.offset, len(body.out), False
        while body.done < length:
            before = body.done
            try:
                async with asyncio.timeout(max(0.0, patience.left)) as limit:
                    if await self._attempt(body):
                        break
            except BstkError:
                raise
            except Exception as error:
                if limit.expired():
                    raise patience.late(body.done, length).at(self.name) from None
                if self._etag is not None and isinstance(error, PermissionError):
                    if renewed:
                        raise self._expired(error) from None
                    renewed = True
                    await self._renew()
                    continue
                if self._etag is None and body.done == 0 and _status(error) == 416:
                    self._size = _size_told(error, offset)
                    break
                failure = self._meaning(error, offset + body.done)
                if failure.pressed:
                    self.signals.set_back()
                await patience.wait(failure, body.done - before, answered=self._etag is not None)
        return body.done

    async def _renew(self) -> None:
        """Credentials anew, from where s3fs takes them; and no version, which takes a permission of its own to ask."""
        self._version = None
        await self._fs.set_session(refresh=True)

    async def _attempt(self, body: _Body) -> bool:
        """Add what one answer brings; whether the object ends there."""
        start, stop, began = body.offset + body.done, body.offset + len(body.out), time.monotonic()
        pins = {"VersionId": self._version, "IfMatch": self._etag}
        self.requests += 1
        async with asyncio.timeout(self.network.connect_timeout + self.network.stall_timeout):
            answer = await self._fs._call_s3(
                "get_object",
                Bucket=self._bucket,
                Key=self._key,
                Range=f"bytes={start}-{stop - 1}",
                **{name: value for name, value in pins.items() if value},
            )
        stream = answer["Body"]
        try:
            got, ends = self._check(answer, start, stop)
            self.signals.answered_in(time.monotonic() - began)
            pace, came = Pace(self.network), 0
            while True:
                async with asyncio.timeout(self.network.stall_timeout):
                    chunk = await stream.read(_CHUNK)
                if not chunk:
                    break
                came += len(chunk)
                self.signals.came(len(chunk))
                if came > got:
                    body.done = start - body.offset  # nothing of it is trusted
                    self._unsound(ShortReadError, f"more than the {got} bytes announced came", start)
                body.out[body.done : body.done + len(chunk)] = chunk
                body.done += len(chunk)
                if slow := pace.came(len(chunk)):
                    raise Transient(SourceError(slow, where=self.name, offset=start), pressed=True)
        finally:
            stream.close()
        if came < got:
            text = f"the response ended after {came} of {got} bytes"
            raise Transient(SourceError(text, where=self.name, offset=start))
        if start + got < stop and not ends:
            text = f"bytes {start}-{start + got - 1} came, asked for {start}-{stop - 1}"
            raise Transient(ShortReadError(text, where=self.name, offset=start))
        return ends

    def _check(self, answer: Mapping[str, Any], start: int, stop: int) -> tuple[int, bool]:
        """Bytes that an answer brings, and whether the object ends with them."""
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
        if status != 206 or match is None:
            self._unsound(
                RangeError,
                f"the server ignores byte ranges (HTTP {status}, Content-Range {answer.get('ContentRange')!r}); "
                "download the file and name the local path",
                start,
            )
        begin, end, total = int(match[1]), int(match[2]) + 1, int(match[3])
        etag = answer.get("ETag") or ""
        if self._etag is None:
            self._etag, self._size = etag, total
            version = answer.get("VersionId")
            self._version = self._version or (version if version != "null" else None)
        elif etag != self._etag:
            raise self._changed(f"its ETag was {self._etag} and is {etag or 'not given'}", start)
        elif total != self._size:
            raise self._changed(f"its size was {self._size} and is {total}", start)
        if begin != start or not begin < end <= stop:
            self._unsound(ShortReadError, f"bytes {begin}-{end - 1} came, asked for {start}-{stop - 1}", start)
        return end - begin, end == total

    def _meaning(self, error: Exception, offset: int) -> Transient:
        """Raise what will not pass, and give what may."""
        if isinstance(error, Transient):
            return error
        response = _response(error)
        text = " ".join(without_secrets(f"{type(error).__name__}: {error}").split())
        failure = SourceError(f"cannot be read: {text}", where=self.name, offset=offset)
        if response:
            meta = response.get("ResponseMetadata", {})
            status, code = _status(error), str(response.get("Error", {}).get("Code", ""))
            if status == 412:
                raise self._changed(f"its ETag was {self._etag} and is another one", offset)
            if status == 416:
                raise self._changed(f"it has no byte {offset} any more", offset) if self._etag is not None else error
            if status == 404 and self._etag is not None:
                raise NotFoundError(f"it was there when it was opened, and is gone ({text})", where=self.name)
            if status in TRANSIENT or code in _PASSING:
                return Transient(failure, retry_after(meta.get("HTTPHeaders", {})), pressed=True)
            raise error
        names = {kind.__name__ for kind in type(error).__mro__}
        if "SSLError" in names:
            raise SourceError(f"the server's certificate is not trusted ({text}): check the endpoint", where=self.name)
        if isinstance(error, TimeoutError | ConnectionError | aiohttp.ClientError) or names & _CONNECTION:
            unreachable = "EndpointConnectionError" in names
            pressed = unreachable or isinstance(error, TimeoutError) or "ReadTimeoutError" in names
            return Transient(failure, unreachable=unreachable, pressed=pressed)
        raise error

    def _unsound(self, kind: type[SourceError], text: str, offset: int) -> NoReturn:
        """Refuse an answer; a server that gave sound ones before is asked again."""
        error = kind(text, where=self.name, offset=offset)
        if self._etag is None:
            raise error
        raise Transient(error)

    def _expired(self, error: Exception) -> AccessDeniedError:
        return AccessDeniedError(
            f"access denied ({without_secrets(str(error))}), though it was granted before: credentials have expired, "
            "and those that s3fs finds now are refused too; give fresh ones and open it again",
            where=self.name,
        )

    def _changed(self, how: str, offset: int) -> SourceChangedError:
        return SourceChangedError(
            f"the object was replaced while it was read ({how}); open it again", where=self.name, offset=offset
        )


def _response(error: BaseException) -> Mapping[str, Any]:
    """The server's answer behind an error of botocore, or behind what s3fs made of it; empty if there is none."""
    for candidate in (error, error.__cause__):
        if isinstance(response := getattr(candidate, "response", None), Mapping):
            return response
    return {}


def _size_told(error: BaseException, offset: int) -> int:
    """The size of an object that has no byte at ``offset``: at most that, if the server does not say."""
    told = str(_response(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-range", ""))
    match = re.fullmatch(r"bytes \*/(\d{1,19})", told)
    return min(offset, int(match[1])) if match else offset


def _status(error: BaseException) -> int | None:
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None
