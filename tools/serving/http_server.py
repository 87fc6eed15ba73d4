"""The thread that speaks HTTP."""

import asyncio
import logging
import socket
import threading
from typing import Any

import uvicorn

from bsformat.errors import BstkError

from .limits import Limits

#: Seconds that open connections have beyond the grace time, to be told how it ended.
_AFTERWARDS = 5
#: Connections beyond those of requests that are admitted: for those that are refused, and for who asks how it is.
_SPARE_CONNECTIONS = 256


class HttpServer:
    """Runs an ASGI application on a socket, in a thread of its own.

    Args:
        listener: bound; it listens from `start` on, and belongs to this.
    """

    def __init__(self, app: Any, listener: socket.socket, limits: Limits) -> None:
        for name in ("uvicorn.error", "uvicorn.asgi"):
            logging.getLogger(name).setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            limit_concurrency=limits.admitted + _SPARE_CONNECTIONS,
            # Longer than clients keep a connection: who sends on one that is just being closed fails.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(limits.grace) + _AFTERWARDS,
        )
        self._server, self._listener = uvicorn.Server(config), listener
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bstk-http")

    def start(self) -> "HttpServer":
        """Listen; returns when requests are answered.

        Raises:
            BstkError: it could not begin.
        """
        self._thread.start()
        while not self._server.started:
            if self._over.wait(0.01):
                raise BstkError(f"the server did not start: {self._error}", reason="listen")
        return self

    def close(self) -> None:
        """Take no new connection; those that are open may come to their end."""
        self._server.should_exit = True

    def wait(self) -> None:
        """Wait until, after `close`, the last answer has gone out."""
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._listener]))
        except BaseException as error:
            self._error = error
        finally:
            self._listener.close()
            self._over.set()
