"""Serving the page: on loopback unless told otherwise, to nobody who has no business there."""

import ipaddress
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from bsformat import BstkError

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Send], Awaitable[None]]

#: What the page asks for. Uploads, files, the API and all else that Gradio offers is not there.
_PATHS: Final = ("/config", "/theme.css", "/favicon.ico", "/robots.txt")
_FOLDERS: Final = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/", "/gradio_api/queue/")
_CALLS: Final = ("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events", "/gradio_api/app_id")
_COOKIE: Final = "bstk-demo"
#: Name and icons of the page, which browsers ask for without cookies.
_MANIFEST: Final = "/manifest.json"
#: The browser itself refuses whatever is not of this server.
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
        b"base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """Lets through what the page needs, from the address that it is served at, and from who has the token.

    Names in ``Host`` that do not belong to loopback, and requests of other origins, are refused, so that a page of the
    web cannot use a server of this machine through the browser.

    Args:
        token: what a browser must have brought once in ``?token=``; None: on loopback nobody is asked.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, reason = self._refusal(scope, headers)
        if status == 303:
            cookie = f"{_COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict".encode()
            await _answer(send, status, "", (b"location", b"/"), (b"set-cookie", cookie))
        elif status:
            await _answer(send, status, reason)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._token is None and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return 403, "this page is served on loopback only"
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "requests of other origins are refused"
        if self._token is not None and scope["path"] != _MANIFEST:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if scope["path"] == "/" and given and _same(given, self._token):
                return 303, ""
            if not _same(_cookie(headers.get("cookie", "")), self._token):
                return 401, "open the address that bstk demo printed: it ends with a token"
        path = scope["path"]
        if path not in ("/", _MANIFEST, *_PATHS, *_CALLS) and not path.startswith(_FOLDERS):
            return 404, "there is nothing here"
        return 0, ""


def _same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    plain = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [plain, *_HEADERS, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        BstkError: there is no such address here, or it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        detail = os.strerror(number) if number and number > 0 else error
        raise BstkError(
            f"cannot listen on {host} port {port}: {detail}; --port 0 takes a free one", reason="address"
        ) from None


def serve(app: App, listening: socket.socket, token: str | None) -> None:
    """Serve until the process is interrupted."""
    import uvicorn

    config = uvicorn.Config(
        Guard(app, token),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        # Streams of open pages never end by themselves.
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listening])
