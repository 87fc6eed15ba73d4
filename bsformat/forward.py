"""An object of a server that ignores byte ranges, read once from its beginning to its end, in bounded memory."""

import threading
from collections.abc import Callable
from typing import Any

import fsspec.asyn

from .answers import Answer, LinkError
from .errors import BstkError, RangeError, SourceChangedError, SourceError
from .identity import Identity
from .network import TRANSIENT, Network, Pace, Patience, Transient, retry_after, without_secrets
from .redirects import Requester
from .source import Buffer

#: Bytes from the beginning that are kept: head and attachments are asked for again, after blocks too.
KEPT_BYTES = 32 << 20
#: Bytes behind the place reached that are kept, at least: several threads read ahead of each other.
WINDOW_BYTES = 16 << 20
#: Bytes taken from the answer at a time.
_CHUNK = 1 << 16


class ForwardStream:
    """Bytes of one running answer. Reads may go back within what is kept; beyond it they are refused.

    Where the answer breaks off it is asked for again from its beginning, as that is all that the server can do, and
    what was read before is passed over.
    """

    def __init__(
        self, fs: Any, requester: Requester, name: str, network: Network, count: Callable[[int], None]
    ) -> None:
        self.name, self._fs, self._requester = name, fs, requester
        self._network, self._count = network, count
        self._lock = threading.Lock()
        self._chunk = bytearray(_CHUNK)
        self._identity: Identity | None = None
        self._answer: Answer | None = None
        self._at = 0  # where the answer that runs now is
        self._reached = 0  # how far any answer came
        self._wanted = 0  # where the read that goes on now begins
        self._kept, self._window = bytearray(), bytearray()

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        data = self._run(0, length)
        return data, self._identity.size if self._identity else 0

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`.

        Raises:
            RangeError: those bytes have passed.
        """
        return self._run(offset, length)

    def close(self) -> None:
        """End the answer."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def __del__(self) -> None:
        self.close()

    def _run(self, offset: int, length: int) -> bytearray:
        try:
            return self._read(offset, length)
        except BstkError:
            raise
        except Exception as error:
            text = without_secrets(f"{type(error).__name__}: {error}")
            raise SourceError(f"cannot be read: {text}", where=self.name, offset=offset) from None

    def _read(self, offset: int, length: int) -> bytearray:
        with self._lock:
            stop = offset + length
            patience = Patience(self._network, max(length, stop - self._reached))
            self._wanted = offset
            while self._identity is None or self._reached < min(stop, self._end):
                try:
                    self._advance(stop, patience)
                except (Transient, LinkError) as error:
                    self.close()
                    if patience.left <= 0:
                        raise patience.late(max(0, self._reached - offset), length).at(self.name) from None
                    failure = error if isinstance(error, Transient) else self._failure(error)
                    answered = self._identity is not None
                    fsspec.asyn.sync(self._fs.loop, patience.wait, failure, 0, answered=answered)
            if stop > self._end and offset > 0:
                raise SourceError(
                    f"bytes {offset}-{stop - 1} were asked for, but the object has {self._end}",
                    where=self.name,
                    reason="short-read",
                )
            return self._cut(offset, min(stop, self._end))

    @property
    def _end(self) -> int:
        return self._identity.size if self._identity else 0

    def _advance(self, stop: int, patience: Patience) -> None:
        """Read on until ``stop`` is reached."""
        answer = self._answer or self._open(patience)
        stop = min(stop, self._end)
        pace = Pace(self._network)

        def came(count: int) -> None:
            self._count(count)
            if slow := pace.came(count):
                raise Transient(self._error(slow))

        while self._reached < stop:
            part = memoryview(self._chunk)[: min(_CHUNK, stop - self._at)]
            count = answer.receive(part, came, patience.left)
            self._take(part[:count])
            if count < len(part):
                raise Transient(self._error(f"the response ended after {self._at} of {self._end} bytes"))
        if self._at == self._end and answer.has_more(min(self._network.stall_timeout, patience.left)):
            raise self._error(f"the server sends more than the {self._end} bytes it announced")

    def _take(self, chunk: memoryview) -> None:
        new = chunk[max(0, self._reached - self._at) :]
        self._at += len(chunk)
        if not new:
            return
        self._reached = self._at
        room = KEPT_BYTES - len(self._kept)
        if room > 0:
            self._kept += new[:room]
        self._window += new
        keep = max(WINDOW_BYTES, self._reached - self._wanted)
        if len(self._window) > keep + WINDOW_BYTES:  # not at every chunk: it moves what stays
            del self._window[:-keep]

    def _cut(self, offset: int, stop: int) -> bytearray:
        begins = self._reached - len(self._window)
        if stop <= len(self._kept):
            return self._kept[offset:stop]
        if offset >= begins:
            return self._window[offset - begins : stop - begins]
        if begins <= len(self._kept):
            return self._kept[offset:begins] + self._window[: stop - begins]
        raise RangeError(
            f"bytes {offset}-{stop - 1} have passed: the server ignores byte ranges, and the file is read once from "
            "its beginning to its end; download it and name the local path",
            where=self.name,
            offset=offset,
        )

    def _open(self, patience: Patience) -> Answer:
        conditions = self._identity.conditions if self._identity else {}
        seconds = min(self._network.connect_timeout + self._network.stall_timeout, patience.left)
        answer, url = self._requester.get({"Accept-Encoding": "identity", **conditions}, seconds)
        try:
            self._check(answer)
        except BaseException:
            answer.close()
            raise
        self._requester.remember(url)
        self._answer, self._at = answer, 0
        return answer

    def _check(self, response: Answer) -> None:
        text = f"HTTP {response.status} {response.reason or ''}".strip()
        if response.status in TRANSIENT:
            raise Transient(self._error(f"the server answers {text}"), retry_after(response.headers))
        if response.status == 412 and self._identity is not None:
            raise self._changed(f"it was {self._identity.etag or self._identity.modified} and is another one")
        if response.status != 200:
            raise self._error(f"the server answers {text}, expected 200")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise RangeError(f"the server applies Content-Encoding {encoding}; switch it off", where=self.name)
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise self._error("the server does not say how large the object is")
        if self._identity is None:
            self._identity = Identity.of(response.headers, int(length))
        elif how := self._identity.difference(response.headers, int(length)):
            raise self._changed(how)

    def _failure(self, error: LinkError) -> Transient:
        if error.trouble == "silent":
            return Transient(self._error(f"no byte came within {self._network.stall_timeout:g} s"))
        text = without_secrets(error.text)
        if error.trouble == "ended":
            text = f"the response ended after {self._at} of {self._end} bytes"
        return Transient(self._error(f"cannot be read: {text}"))

    def _error(self, text: str) -> SourceError:
        return SourceError(text, where=self.name, offset=self._reached)

    def _changed(self, how: str) -> SourceChangedError:
        return SourceChangedError(
            f"the object was replaced while it was read ({how}); open it again", where=self.name, offset=self._reached
        )
