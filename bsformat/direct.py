"""GET over sockets of our own: an answer's body goes from the socket to where it is wanted, without a copy.

The session of a file system (`bsformat.session`) hands out bodies in pieces that are copied twice on their way, and all
of them in one thread; that halves what a fast link gives.
"""

import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Final

import yarl

from . import wire
from ._version import __version__
from .answers import Answer, Came, LinkError, Trouble
from .watchdog import Watch

#: Bytes taken from the socket at a time, at most: they are in the processor's caches still when they are told.
_STEP: Final = 1 << 19
#: Connections that are kept for later requests.
_IDLE: Final = 64


class _Connection:
    """One connection, with TLS or without, whose timeout is another one once it stands.

    Attributes:
        sock: None before `connect`. used: whether a request was sent on it.
    """

    def __init__(
        self, url: yarl.URL, context: ssl.SSLContext | None, connect_timeout: float, stall_timeout: float
    ) -> None:
        if not url.raw_host or url.port is None:
            raise ValueError("the URL names no host")
        self._address, self._context = (url.raw_host, url.port), context
        self._connect_timeout, self._stall_timeout = connect_timeout, stall_timeout
        host = f"[{url.raw_host}]" if ":" in url.raw_host else url.raw_host
        self.host = host if url.is_default_port() else f"{host}:{url.port}"
        self.sock: socket.socket | None = None
        self.used = False

    def connect(self) -> socket.socket:
        """Connect, and shake hands; each address and each step may take the timeout of connecting."""
        sock = socket.create_connection(self._address, self._connect_timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._shake_hands(sock, self._context)
            sock.settimeout(self._stall_timeout)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
        return sock

    def _shake_hands(self, plain: socket.socket, context: ssl.SSLContext) -> socket.socket:
        with Watch(plain, self._connect_timeout) as watch:
            try:
                return context.wrap_socket(plain, server_hostname=self._address[0])
            except BaseException:
                if watch.ended:
                    raise TimeoutError("the TLS handshake took too long") from None
                raise

    def close(self) -> None:
        """End it."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class DirectAnswer:
    """See `bsformat.answers.Answer`."""

    def __init__(self, pool: "DirectSender", origin: yarl.URL, connection: _Connection, sock: socket.socket) -> None:
        self._pool, self._origin, self._connection, self._sock = pool, origin, connection, sock
        self._incoming = wire.Incoming(sock)
        self.status, self.reason = self._incoming.status, self._incoming.reason
        self.headers = self._incoming.headers

    def receive(self, out: memoryview, came: Came, seconds: float) -> int:
        """See `Answer.receive`."""
        done, read_into = 0, self._incoming.read_into
        with Watch(self._sock, seconds) as watch:
            try:
                while done < len(out):
                    count = read_into(out[done : done + _STEP])
                    if count == 0:
                        break
                    done += count
                    came(count)
            except (OSError, wire.WireError, wire.EndedError) as error:
                raise _silence() if watch.ended else _meaning(error) from None
        if watch.ended and done < len(out):
            raise _silence()
        return done

    def has_more(self, seconds: float) -> bool:
        """See `Answer.has_more`."""
        if self._incoming.left is not None:
            return self._incoming.left > 0
        # The end of a body in chunks is some lines, which a server may send byte by byte.
        return self.receive(memoryview(bytearray(1)), lambda count: None, seconds) > 0

    def close(self) -> None:
        """See `Answer.close`."""
        if self._connection.sock is not None and self._incoming.reusable:
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
            try:
                connection = self._take(origin) or self._new(origin)
            except ValueError as error:
                raise _meaning(error) from None
            reused, connection.used = connection.used, True
            try:
                return self._ask(connection, origin, url, headers, seconds)
            except ConnectionError as error:
                connection.close()
                # A server may close what is idle while a request is on its way: that is no failure.
                if not reused:
                    raise _meaning(error) from None
            except (OSError, wire.WireError, wire.EndedError, ValueError) as error:
                connection.close()
                raise _meaning(error) from None
            except BaseException:
                connection.close()
                raise

    def _ask(
        self, connection: _Connection, origin: yarl.URL, url: yarl.URL, headers: Mapping[str, str], seconds: float
    ) -> Answer:
        sock = connection.sock
        if sock is None:
            try:
                sock = connection.connect()
            except ssl.SSLError:
                raise
            except OSError as error:
                raise LinkError("unreachable", f"cannot connect to {url.host}:{url.port}: {_text(error)}") from None
        own = {"User-Agent": f"bitstack/{__version__}", "Accept-Encoding": "identity"}
        message = wire.request(url.raw_path_qs, connection.host, {**own, **headers})
        with Watch(sock, seconds) as watch:
            try:
                sock.sendall(message)
                return DirectAnswer(self, origin, connection, sock)
            except (OSError, wire.WireError, wire.EndedError):
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
    if isinstance(error, ValueError):
        trouble = "url"
    elif isinstance(error, TimeoutError):
        trouble = "silent"
    elif isinstance(error, wire.EndedError):
        trouble = "ended"
    if isinstance(error, wire.WireError):
        return LinkError(trouble, str(error))
    return LinkError(trouble, f"{type(error).__name__}: {_text(error)}")
