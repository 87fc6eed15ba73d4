"""What stands before everything else: who may ask, and how much may be sent."""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from .errors import ApiError
from .hosts import is_loopback_name

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

#: What anybody may ask: whether the process lives, and whether it answers.
_OPEN: Final = frozenset({"/health", "/ready"})


class Guard:
    """An ASGI application around another one, which sees only what may come in.

    With a token, every request must bear it. Without one, the server listens on this machine alone, and a request must
    name it so: a web page that somebody reads here cannot ask in the name of its own host.

    Args:
        token: what clients must send as ``Authorization: Bearer``; None: nothing.
        body: bytes that the body of a request may have.
    """

    def __init__(self, app: _App, token: str | None, body: int) -> None:
        self._app, self._body = app, body
        self._digest = _digest(token.encode()) if token is not None else None

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if scope["path"] not in _OPEN:
                self._check(headers)
            if _declared(headers) > self._body:
                raise self._too_large()
        except ApiError as error:
            await _refuse(error, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        if self._digest is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if not is_loopback_name(host):
                raise ApiError(
                    403,
                    f"Without a token this server answers to localhost only, not to {host[:80]!r}.",
                    code="host_not_allowed",
                )
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length: how long the comparison takes says nothing about the token.
        if kind.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
            raise ApiError(
                401,
                "This server asks for a token: send it as 'Authorization: Bearer TOKEN' (api_key of the client).",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _counting(self, receive: _Receive) -> _Receive:
        came = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal came
            message = await receive()
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                if came > self._body:
                    raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body of a request may have {self._body} bytes.", headers={"Connection": "close"})


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _declared(headers: dict[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


async def _refuse(error: ApiError, send: _Send) -> None:
    body = json.dumps(error.to_json()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(error.headers or {})}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
