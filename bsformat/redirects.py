"""One GET with the redirects it takes: none to a less safe scheme, no credentials to another host."""

import base64
import re
import ssl
from collections.abc import Mapping
from typing import Any

import fsspec.implementations.http
import yarl

from .answers import Answer
from .direct import DirectSender
from .errors import SourceError
from .network import Network, without_secrets
from .session import SessionSender

REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Redirects of one request.
MAX_REDIRECTS = 10
#: Headers that another host must not see: the usual ones, and what services have of their own, as X-Api-Key,
#: Private-Token or X-Amz-Security-Token.
_SECRET = re.compile(r"auth|cookie|token|key|secret|passw|credential|session|signature", re.IGNORECASE)
#: Options of a request that are set here, whatever the file system was given.
_OURS = frozenset({"headers", "auth", "cookies", "params", "timeout", "allow_redirects", "max_redirects"})
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")


def _is_encoded(url: str) -> bool:
    """Whether a URL can be sent as it is: then it must be, because a signature may hold for its exact characters."""
    return _ENCODED.fullmatch(url) is not None


def _is_plain(fs: Any) -> bool:
    """Whether requests need nothing of an fsspec HTTP file system but headers and a TLS context."""
    given: Mapping[str, Any] = fs.kwargs
    usual = fs.get_client is fsspec.implementations.http.get_client and not fs.client_kwargs
    return usual and set(given) <= {"headers", "ssl"} and isinstance(given.get("ssl"), ssl.SSLContext | None)


class Requester:
    """Sends requests as an fsspec HTTP file system would: with its headers, credentials and proxies.

    Where it has headers at most, they go through the standard library, which is faster; else through its session.
    Redirects are followed here and not there, so that each is judged before anything is sent to where it points, and so
    that the last place can be asked directly the next time. Safe to call from several threads.

    Attributes:
        sent: requests sent so far, those that were answered with a redirect included.
    """

    def __init__(self, fs: Any, url: str, name: str, network: Network) -> None:
        self._fs, self._name = fs, name
        self._url = self._parsed(url)
        self._target: yarl.URL | None = None
        timeouts = network.connect_timeout, network.stall_timeout
        self._direct = DirectSender(*timeouts, fs.kwargs.get("ssl")) if _is_plain(fs) else None
        self._session = SessionSender(fs, *timeouts)
        self.sent = 0

    def share(self, other: "Requester") -> None:
        """Use the connections of another one, which asks the same servers; closing either closes what is idle."""
        self._direct = other._direct

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

    def get(self, headers: Mapping[str, str], seconds: float) -> tuple[Answer, yarl.URL]:
        """The answer, its body unread, and the URL that gave it. The caller closes the answer.

        Args:
            seconds: until the head of each answer is there.

        Raises:
            LinkError: no answer came.
            SourceError: redirects go in a circle, nowhere, or to a scheme that is not safe enough.
        """
        url = self._target or self._url
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._send(url, headers, seconds)
            if answer.status not in REDIRECTS:
                return answer, url
            location = answer.headers.get("Location", "")
            answer.close()
            url = self._next(url, location, answer.status)
        raise SourceError(
            f"more than {MAX_REDIRECTS} redirects, the last to {without_secrets(str(url))}: they go in a circle; "
            "name the object's own URL",
            where=self._name,
        )

    def close(self) -> None:
        """Close connections that are idle; it can be used again."""
        if self._direct is not None:
            self._direct.close()

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

    def _send(self, url: yarl.URL, headers: Mapping[str, str], seconds: float) -> Answer:
        given: dict[str, Any] = self._fs.kwargs
        options = {name: value for name, value in given.items() if name not in _OURS}
        own = dict(given.get("headers", {}))
        self.sent += 1
        stranger = url.origin() != self._url.origin()
        bare = url
        if stranger:
            own = {name: value for name, value in own.items() if not _SECRET.search(name)}
        else:
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
        if self._direct is not None:
            return self._direct.send(bare, {**own, **headers}, seconds)
        return self._session.send(bare, {**own, **headers}, seconds, options=options, stranger=stranger)
