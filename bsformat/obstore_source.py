"""Ranges through obstore (object_store in Rust) instead of fsspec: the same checks, another way to the bytes.

Each range is a GetObject of its own with If-Match, and its answer must be of the place and the object that were asked
for; retries, pauses, deadlines and going on inside a range are those of `bsformat.network`, obstore's own are off.

What obstore cannot do, and this source therefore neither: Retry-After is not told, so the pauses are only our own; it
follows redirects itself, so they are not judged one by one, and a signed URL behind one is not asked for anew; it reads
forward in no file whose server ignores ranges; bytes that drip are ended by the deadline, not by their rate; a read
that nobody waits for any more ends with its next piece, or at a timeout; where an object has no strong ETag only its
size and time are compared afterwards, as no condition is sent then.
"""

import datetime
import importlib.util
import re
import threading
import time
from typing import Any

import fsspec.asyn

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
from .network import TRANSIENT, Network, Pace, Patience, Signals, Transient, without_secrets
from .source import Buffer, beside, checked, within
from .stopping import check_wanted

#: What s3fs calls some options, and obstore.
_NAMES = {
    "endpoint_url": "endpoint",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
}
#: What obstore says of a status in the text of its error.
_STATUS = re.compile(r"(?:non-2xx status code|status code|status): (\d{3})")
#: Bytes that it hands out at a time.
_CHUNK = 1 << 20


def available() -> bool:
    """Whether obstore is installed."""
    return importlib.util.find_spec("obstore") is not None


def open_store(uri: str, network: Network, options: dict[str, Any]) -> "ObstoreSource":
    """A source for an ``http(s)://`` or ``s3://`` URI.

    Args:
        options: of obstore: ``client_options``, and for S3 its configuration keys (``endpoint``, ``access_key_id``, …);
            a few are known by their names in s3fs too.

    Raises:
        SourceError: obstore is not installed, or refuses the URI or the options.
    """
    name = without_secrets(uri)
    if not available():
        raise SourceError(
            "the back end obstore was asked for and is not installed: pip install 'bitstack[obstore]'", where=name
        )
    from obstore.store import HTTPStore, S3Store

    own = {
        "client_options": {
            "allow_http": True,
            "connect_timeout": datetime.timedelta(seconds=network.connect_timeout),
            "read_timeout": datetime.timedelta(seconds=network.stall_timeout),
            "timeout": datetime.timedelta(seconds=network.deadline),
            **options.pop("client_options", {}),
        },
        "retry_config": {"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=network.deadline)},
    }
    try:
        if uri.startswith(("s3://", "s3a://")):
            bucket, _, path = uri.split("://", 1)[1].partition("/")
            store: Any = S3Store(bucket, **own, **{_NAMES.get(name, name): v for name, v in options.items()})
        else:
            scheme, rest = uri.split("://", 1)
            host, _, path = rest.partition("/")
            if "?" in path:
                raise SourceError(
                    "obstore sends no query, as signed URLs have one; leave the back end away", where=name
                )
            store = HTTPStore.from_url(f"{scheme}://{host}", **own, **options)
    except BstkError:
        raise
    except Exception as error:  # a library in another language; each of its errors becomes one line
        raise SourceError(f"obstore cannot open it: {_line(error)}", where=name) from None
    return ObstoreSource(store, path, name, network)


class ObstoreSource:
    """An object of an obstore store, pinned at its first read by its ETag, or its size and time; and its S3 version.

    Attributes:
        requests: made here. signals: what is noticed of the server.
    """

    def __init__(self, store: Any, path: str, name: str, network: Network | None = None) -> None:
        self.name, self.network = name, network or Network()
        self.requests = 0
        self.signals = Signals(counts=True)
        self._store, self._path = store, path
        self._pinned: dict[str, Any] | None = None
        self._answered = False
        self._lock = threading.Lock()

    @property
    def bytes_received(self) -> int:
        """Bytes of bodies that came, those that could not be used included."""
        return self.signals.received

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        self._pinned = None
        data = bytearray(length)
        came = self._run(0, memoryview(data))
        size = self._size
        return checked(data[:came], 0, min(length, size), self.name), size

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`."""
        data = new_bytes(length, self.name, offset)
        self.get_into(offset, memoryview(data))
        return data

    def get_into(self, offset: int, out: memoryview) -> None:
        """See `bsformat.source.FillingSource.get_into`."""
        if self._pinned is not None:
            within(offset, len(out), self._size, self.name)
        checked(out[: self._run(offset, out)], offset, len(out), self.name)

    def begin(self, offset: int, out: memoryview) -> int:
        """The first read, at any place; gives the size of the object."""
        self._run(offset, out)
        return self._size

    def sibling(self, name: str) -> "ObstoreSource":
        """See `bsformat.source.SiblingSource`."""
        other = ObstoreSource(self._store, beside(self._path, name), beside(self.name, name), self.network)
        other.signals = self.signals
        return other

    def close(self) -> None:
        """Nothing to release: obstore keeps its connections."""

    @property
    def _size(self) -> int:
        return int(self._pinned["size"]) if self._pinned else 0

    def _run(self, offset: int, out: memoryview) -> int:
        """Fill ``out``; gives how many bytes there were, fewer where the object ends."""
        patience, done, stop = Patience(self.network, len(out)), 0, len(out)
        while done < stop:
            before = done

            def came(count: int) -> None:
                nonlocal done
                done += count
                self.signals.came(count)

            try:
                stop = min(stop, self._attempt(offset + done, out[done:stop], came, patience) - offset)
            except BstkError:
                raise
            except Exception as error:
                if patience.left <= 0:
                    raise patience.late(done, len(out)).at(self.name) from None
                if self._pinned is None and done == 0 and _status(error) == 416:
                    return 0
                failure = self._meaning(error, offset + done)
                if failure.pressed:
                    self.signals.set_back()
                answered = self._pinned is not None
                fsspec.asyn.sync(fsspec.asyn.get_loop(), patience.wait, failure, done - before, answered=answered)
        return stop

    def _attempt(self, start: int, out: memoryview, came: Any, patience: Patience) -> int:
        """Read on with one request; gives the size of the object."""
        import obstore

        stop, began = start + len(out), time.monotonic()
        with self._lock:
            self.requests += 1
        options: dict[str, Any] = {"range": (start, stop)}
        if self._pinned is not None:
            etag = self._pinned["e_tag"]
            options |= {"if_match": etag} if etag and not etag.startswith("W/") else {}
            options |= {"version": self._pinned["version"]} if self._pinned["version"] else {}
        answer = obstore.get(self._store, self._path, options=options)
        meta = dict(answer.meta)
        self._pin(meta, start)
        encoding = str(answer.attributes.get("Content-Encoding", "identity")).strip().lower()
        if encoding not in ("identity", ""):
            text = (
                f"the server applies Content-Encoding {encoding} to a byte range; switch compression off for this file"
            )
            error = RangeError(text, where=self.name, offset=start)
            raise Transient(error) if self._answered else error
        self._answered = True
        begin, end = answer.range
        if begin != start or end != min(stop, int(meta["size"])):
            text = f"bytes {begin}-{end - 1} came, asked for {start}-{stop - 1}"
            raise Transient(ShortReadError(text, where=self.name, offset=start))
        self.signals.answered_in(time.monotonic() - began)
        pace, at = Pace(self.network), 0
        for chunk in answer.stream(min_chunk_size=min(_CHUNK, len(out))):
            view = memoryview(chunk)
            if at + len(view) > end - begin:
                text = f"more than the {end - begin} bytes announced came"
                raise Transient(ShortReadError(text, where=self.name, offset=start))
            out[at : at + len(view)] = view
            at += len(view)
            came(len(view))
            check_wanted()
            if patience.left <= 0:
                raise TimeoutError
            if slow := pace.came(len(view)):
                raise Transient(SourceError(slow, where=self.name, offset=start), pressed=True)
        if at < end - begin:
            text = f"the response ended after {at} of {end - begin} bytes"
            raise Transient(SourceError(text, where=self.name, offset=start))
        return int(meta["size"])

    def _pin(self, meta: dict[str, Any], offset: int) -> None:
        """Take the first answer's object for the one that is read, and demand it of later ones."""
        with self._lock:  # of two first answers one is pinned, and the other compared with it
            if self._pinned is None:
                self._pinned = meta
                return
        names = ("size", "e_tag") if self._pinned["e_tag"] else ("size", "e_tag", "last_modified")
        for name in names:
            if meta[name] != self._pinned[name]:
                raise self._changed(f"its {name} was {self._pinned[name]} and is {meta[name]}", offset)

    def _meaning(self, error: Exception, offset: int) -> Transient:
        """Raise what will not pass, and give what may."""
        if isinstance(error, Transient):
            return error
        later, text, status, kind = self._pinned is not None, _line(error), _status(error), type(error).__name__
        if kind == "PreconditionError" or status == 412:
            raise self._changed("its ETag is another one now", offset)
        if isinstance(error, FileNotFoundError) or kind == "NotFoundError" or status in (404, 410):
            how = "it was there when it was opened" if later else "check the URL"
            raise NotFoundError(f"no such object ({text}): {how}", where=self.name)
        if kind in ("UnauthenticatedError", "PermissionDeniedError") or isinstance(error, PermissionError):
            how = "credentials have expired" if later else "check the credentials"
            raise AccessDeniedError(f"access denied ({text}): {how}", where=self.name)
        if status == 416 and later:
            raise self._changed(f"it has no byte {offset} any more", offset)
        failure = SourceError(f"cannot be read: {text}", where=self.name, offset=offset)
        if "certificate" in text.lower() or "UnknownIssuer" in str(error):
            raise SourceError(f"the server's certificate is not trusted ({text}): check the URL", where=self.name)
        if kind == "NotSupportedError":
            text = "the server ignores byte ranges; download the file and name the local path"
            failure = RangeError(text, where=self.name, offset=offset)
            if not later:
                raise failure
        if status is not None and status not in TRANSIENT:
            raise failure
        if "redirect" in text.lower():
            raise failure
        return Transient(failure, pressed=status in TRANSIENT or "timed out" in text)

    def _changed(self, how: str, offset: int) -> SourceChangedError:
        return SourceChangedError(
            f"the object was replaced while it was read ({how}); open it again", where=self.name, offset=offset
        )


def _status(error: BaseException) -> int | None:
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def _line(error: BaseException) -> str:
    """The first sentence of an error of obstore, which has a page of details."""
    text = str(error).split("Debug source")[0].split("<html")[0]
    return without_secrets(" ".join(text.split()))[:300] or type(error).__name__
