"""One GET with the redirects it takes: none to a less safe scheme, no credentials to another host."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
import yarl

from .errors import SourceError
from .network import Network, without_secrets

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Redirects of one request.
MAX_REDIRECTS = 10
#: What another host must not see.
_SECRET = frozenset({"authorization", "cookie", "proxy-authorization"})
#: Options of a request that are set here, whatever the file system was given.
_OURS = frozenset({"headers", "auth", "cookies", "params", "timeout", "allow_redirects", "max_redirects"})
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")


def _is_encoded(url: str) -> bool:
    """Whether a URL can be sent as it is: then it must be, because a signature may hold for its exact characters."""
    return _ENCODED.fullmatch(url) is not None


class Requester:
    """Sends requests in the session of an fsspec HTTP file system: with its headers, credentials, proxies and loop.

    Redirects are followed here and not by aiohttp, so that each is judged before anything is sent to where it points,
    and so that the last place can be asked directly the next time.

    Attributes:
        sent: requests sent so far, those that were answered with a redirect included.
    """

    def __init__(self, fs: Any, url: str, name: str, network: Network) -> None:
        self._fs, self._name = fs, name
        self._url = self._parsed(url)
        self._target: yarl.URL | None = None
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=network.connect_timeout, sock_read=network.stall_timeout
        )
        self.sent = 0

    @property
    def url(self) -> str:
        """The URL that was asked for at the beginning, or put in its place."""
        return str(self._url)

    def replace(self, url: str) -> None:
        """Go on with another URL of the same object."""
        self._url, self._target = self._parsed(url), None

    def _parsed(self, url: str) -> yarl.URL:
        parsed: yarl.URL = yarl.URL(url, encoded=True) if _is_encoded(url) else self._fs.encode_url(url)
        return parsed

    def remember(self, url: yarl.URL) -> None:
        """Ask there from now on: redirects led to it, and it answered."""
        if url != self._url:
            self._target = url

    def forget(self, url: yarl.URL) -> bool:
        """Ask the original URL again; whether ``url``, which was asked last, was another one."""
        if self._target == url:
            self._target = None
        return url != self._url

    async def get(self, headers: Mapping[str, str]) -> tuple[aiohttp.ClientResponse, yarl.URL]:
        """The answer, its body unread, and the URL that gave it. The caller closes the answer.

        Raises:
            SourceError: redirects go in a circle, nowhere, or to a scheme that is not safe enough.
        """
        url = self._target or self._url
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(url, headers)
            if response.status not in _REDIRECTS:
                return response, url
            location = response.headers.get("Location", "").strip()
            response.release()
            url = self._next(url, location, response.status)
        raise SourceError(
            f"more than {MAX_REDIRECTS} redirects, the last to {without_secrets(str(url))}: they go in a circle; "
            "name the object's own URL",
            where=self._name,
        )

    def _next(self, url: yarl.URL, location: str, status: int) -> yarl.URL:
        try:
            there = url.join(yarl.URL(location, encoded=_is_encoded(location))).with_fragment(None)
        except ValueError:
            there = yarl.URL()
        shown = without_secrets(str(there)) if there.host else repr(without_secrets(location))
        if not location or not there.host or there.scheme not in ("http", "https"):
            raise SourceError(f"HTTP {status} redirects to {shown}, which is no http(s) URL", where=self._name)
        if url.scheme == "https" and there.scheme == "http":
            raise SourceError(
                f"HTTP {status} redirects from https to {shown}, where anybody on the way may read and change it; "
                "name a URL that stays on https",
                where=self._name,
            )
        return there

    async def _send(self, url: yarl.URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        given: dict[str, Any] = self._fs.kwargs
        options = {name: value for name, value in given.items() if name not in _OURS}
        common: dict[str, Any] = {"timeout": self._timeout, "allow_redirects": False, "raise_for_status": False}
        own = dict(given.get("headers", {}))
        session: aiohttp.ClientSession = await self._fs.set_session()
        self.sent += 1
        if url.origin() == self._url.origin():
            if url == self._url and "params" in given:
                options["params"] = given["params"]
            if "cookies" in given:
                options["cookies"] = given["cookies"]
            if "auth" in given:
                options["auth"] = given["auth"]
            elif self._url.user is not None:
                pair = f"{self._url.user}:{self._url.password or ''}".encode()
                own.setdefault("Authorization", f"Basic {base64.b64encode(pair).decode()}")
            bare = url.with_user(None) if url.user is not None else url
            return await session.get(bare, headers={**own, **headers}, **common, **options)
        own = {name: value for name, value in own.items() if name.lower() not in _SECRET}
        stranger = aiohttp.ClientSession(
            connector=session.connector,
            connector_owner=False,
            trust_env=session.trust_env,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            return await stranger.get(url, headers={**own, **headers}, **common, **options)
        finally:
            stranger.detach()
