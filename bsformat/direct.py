"""GET through the standard library: an answer's body goes from the socket to where it is wanted, without a copy.

The session of a file system (`bsformat.session`) hands out bodies in pieces that are copied twice on their way, and all
of them in one thread; that halves what a fast link gives.
"""

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping

import yarl

from ._version import __version__
from .answers import Answer, Came, Headers, LinkError, Trouble
from .watchdog import Watch

#: Bytes taken from the socket at a time, at most.
_STEP = 1 << 20
#: Connections that are kept for later requests.
_IDLE = 64


class _Connection(http.client.HTTPConnection):
    """One connection, with TLS or without, whose timeout is another one once it stands."""

    def __init__(
        self, url: yarl.URL, context: ssl.SSLContext | None, connect_timeout: float, stall_timeout: float
    ) -> None:
        super().__init__(url.raw_host or "", url.port, timeout=connect_timeout)
        self._context, self._stall = context, stall_timeout
        self.used = False

    def connect(self) -> None:
        """Connect, and shake hands; each address and each step may take the timeout of connecting."""
        super().connect()
        if self._context is not None:
            plain: socket.socket = self.sock
            with Watch(plain, self.timeout or 0.0) as watch:
                try:
                    self.sock = self._context.wrap_socket(plain, server_hostname=self.host)
                except BaseException:
                    plain.close()
                    self.sock = None
                    if watch.ended:
                        raise TimeoutError("the TLS handshake took too long") from None
                    raise
        self.sock.settimeout(self._stall)


class DirectAnswer:
    """See `bsformat.answers.Answer`."""

    def __init__(self, pool: "DirectSender", origin: yarl.URL, connection: _Connection, sock: socket.socket) -> None:
        self._pool, self._origin, self._connection, self._sock = pool, origin, connection, sock
        self._response = connection.getresponse()
        self.status, self.reason = self._response.status, self._response.reason or ""
        self.headers = Headers(self._response.headers.items())

    def receive(self, out: memoryview, came: Came, seconds: float) -> int:
        """See `Answer.receive`."""
        done = 0
        with Watch(self._sock, seconds) as watch:
            try:
                while done < len(out):
                    count = self._some(out[done : done + _STEP])
                    if count == 0:
                        break
                    done += count
                    came(count)
            except (OSError, http.client.HTTPException) as error:
                raise _silence() if watch.ended else _meaning(error) from None
        if watch.ended and done < len(out):
            raise _silence()
        return done

    def _some(self, out: memoryview) -> int:
        response = self._response
        if response.chunked or response.fp is None:
            data = response.read1(len(out)) if response.fp is not None else b""
            out[: len(data)] = data
            return len(data)
        if response.length is None:
            return response.fp.readinto1(out)
        count = response.fp.readinto1(out[: response.length]) if response.length else 0
        if response.length and not count and len(out):
            raise http.client.IncompleteRead(b"", response.length)  # the connection ended before the body
        response.length -= count
        return count

    def has_more(self) -> bool:
        """See `Answer.has_more`."""
        if not self._response.chunked and self._response.length is not None:
            return self._response.length > 0
        try:
            return self._some(memoryview(bytearray(1))) > 0
        except (OSError, http.client.HTTPException) as error:
            raise _meaning(error) from None

    def close(self) -> None:
        """See `Answer.close`."""
        response, kept = self._response, self._connection.sock is not None
        whole = response.isclosed() or (not response.chunked and response.length == 0)
        response.close()
        if kept and whole:
            self._pool.keep(self._origin, self._connection)
        else:
            self._connection.close()


class DirectSender:
    """Connections to some hosts, reused. Safe to call from several threads.

    Args:
        context: for https; None: what the system trusts.
    """

    def __init__(self, connect_timeout: float, stall_timeout: float, context: ssl.SSLContext | None = None) -> None:
        self._timeouts = connect_timeout, stall_timeout
        self._context = context
        self._lock = threading.Lock()
        self._idle: list[tuple[yarl.URL, _Connection]] = []
        self._over = False

    def send(self, url: yarl.URL, headers: Mapping[str, str], seconds: float) -> Answer:
        """The answer to a GET, no redirect followed.

        Args:
            seconds: until the head of the answer is there.

        Raises:
            LinkError: there was none.
        """
        origin = url.origin()
        while True:
            connection = self._take(origin) or self._new(origin)
            reused, connection.used = connection.used, True
            try:
                return self._ask(connection, origin, url, headers, seconds)
            except ConnectionError as error:
                connection.close()
                # A server may close what is idle while a request is on its way: that is no failure.
                if not reused:
                    raise _meaning(error) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                raise _meaning(error) from None
            except BaseException:
                connection.close()
                raise

    def _ask(
        self, connection: _Connection, origin: yarl.URL, url: yarl.URL, headers: Mapping[str, str], seconds: float
    ) -> Answer:
        if connection.sock is None:
            try:
                connection.connect()
            except ssl.SSLError:
                raise
            except OSError as error:
                raise LinkError("unreachable", f"cannot connect to {url.host}:{url.port}: {_text(error)}") from None
        sock: socket.socket = connection.sock
        with Watch(sock, seconds) as watch:
            try:
                connection.request("GET", url.raw_path_qs, headers={"User-Agent": f"bitstack/{__version__}", **headers})
                return DirectAnswer(self, origin, connection, sock)
            except (OSError, http.client.HTTPException):
                if watch.ended:
                    raise _silence() from None
                raise

    def _new(self, origin: yarl.URL) -> _Connection:
        context = None
        if origin.scheme == "https":
            with self._lock:
                context = self._context = self._context or ssl.create_default_context()
        return _Connection(origin, context, *self._timeouts)

    def _take(self, origin: yarl.URL) -> _Connection | None:
        with self._lock:
            for i in reversed(range(len(self._idle))):
                if self._idle[i][0] == origin:
                    return self._idle.pop(i)[1]
        return None

    def keep(self, origin: yarl.URL, connection: _Connection) -> None:
        """Use a connection again, whose last answer was read to its end."""
        with self._lock:
            self._idle.append((origin, connection))
            # An answer may be closed after this was: what refers to each other in a circle goes in any order.
            surplus = self._idle.pop(0)[1] if len(self._idle) > _IDLE or self._over else None
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        """Close what is idle; it can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def __del__(self) -> None:
        self._over = True
        self.close()


def _silence() -> LinkError:
    return LinkError("silent", "")


def _text(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _meaning(error: Exception) -> LinkError:
    trouble: Trouble = "other"
    if isinstance(error, ssl.SSLCertVerificationError):
        return LinkError("certificate", error.verify_message or str(error))
    if isinstance(error, http.client.InvalidURL | ValueError):
        trouble = "url"
    elif isinstance(error, TimeoutError):
        trouble = "silent"
    elif isinstance(error, http.client.IncompleteRead):
        trouble = "ended"
    return LinkError(trouble, f"{type(error).__name__}: {_text(error)}")
