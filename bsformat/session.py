"""GET through the session of an fsspec HTTP file system: for what only that knows, as proxies, cookies, headers."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp
import yarl

from .answers import Answer, Came, Headers, LinkError, Trouble
from .stopping import run_in

_Result = TypeVar("_Result")


class SessionAnswer:
    """See `bsformat.answers.Answer`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, response: aiohttp.ClientResponse) -> None:
        self._loop, self._response = loop, response
        self.status, self.reason = response.status, response.reason or ""
        self.headers = Headers(response.headers.items())
        self._whole = False

    def receive(self, out: memoryview, came: Came, seconds: float) -> int:
        """See `Answer.receive`."""
        return _run(self._loop, self._receive(out, came), seconds)

    async def _receive(self, out: memoryview, came: Came) -> int:
        done = 0
        while done < len(out):
            chunk = await self._response.content.read(len(out) - done)
            if not chunk:
                break
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
            came(len(chunk))
        return done

    def has_more(self, seconds: float) -> bool:
        """See `Answer.has_more`."""
        more = len(_run(self._loop, self._response.content.read(1), seconds)) > 0
        self._whole = not more
        return more

    def close(self) -> None:
        """See `Answer.close`."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._response.release if self._whole else self._response.close)


class SessionSender:
    """Sends requests in the session of a file system.

    Args:
        fs: the file system: its session, event loop and credentials are used.
    """

    def __init__(self, fs: Any, connect_timeout: float, stall_timeout: float) -> None:
        self._fs = fs
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=stall_timeout)

    def send(
        self, url: yarl.URL, headers: Mapping[str, str], seconds: float, *, options: Mapping[str, Any], stranger: bool
    ) -> Answer:
        """The answer to a GET, no redirect followed.

        Args:
            seconds: until the head of the answer is there.
            options: of `aiohttp.ClientSession.get`.
            stranger: leave out the headers and cookies of the session: they are for another host.

        Raises:
            LinkError: there was none.
        """
        return _run(self._fs.loop, self._send(url, headers, options, stranger), seconds)

    async def _send(
        self, url: yarl.URL, headers: Mapping[str, str], options: Mapping[str, Any], stranger: bool
    ) -> Answer:
        session: aiohttp.ClientSession = await self._fs.set_session()
        common: dict[str, Any] = {"timeout": self._timeout, "allow_redirects": False, "raise_for_status": False}
        common |= {"headers": headers, **options}
        if not stranger:
            return SessionAnswer(self._fs.loop, await session.get(url, **common))
        other = aiohttp.ClientSession(
            connector=session.connector,
            connector_owner=False,
            trust_env=session.trust_env,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            return SessionAnswer(self._fs.loop, await other.get(url, **common))
        finally:
            other.detach()

    def close(self) -> None:
        """Nothing to release: fsspec shares its sessions."""


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """What a coroutine gives, run in the loop of the file system."""

    async def bounded() -> _Result:
        async with asyncio.timeout(max(0.0, seconds)):
            return await work

    try:
        return run_in(loop, bounded())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _meaning(error) from None


def _meaning(error: Exception) -> LinkError:
    trouble: Trouble = "other"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return LinkError("certificate", str(error))
    if isinstance(error, aiohttp.InvalidURL):
        return LinkError("url", str(error))
    if isinstance(error, TimeoutError):
        trouble = "silent"
    elif isinstance(error, aiohttp.ClientPayloadError):
        trouble = "ended"
    elif isinstance(error, aiohttp.ClientConnectorError):
        trouble = "unreachable"
    return LinkError(trouble, text)
