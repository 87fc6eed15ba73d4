"""Where a server listens. Imports nothing heavy."""

import ipaddress
import socket

from bsformat.errors import BstkError


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine as seen from itself: ``localhost``, ``127.0.0.1:8000``, ``[::1]``."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return f".{name.rstrip('.')}".endswith(".localhost") or _is_loopback(name)


def listen(host: str, port: int, *, token: bool) -> socket.socket:
    """A socket that listens to nobody yet: the address is taken, connections are refused.

    Args:
        host: a name or an address of this machine. port: 0 for any that is free.
        token: whether clients will have to show one; without, only loopback will do.

    Raises:
        BstkError: the address is not one of this machine, or taken, or open to others without a token.
    """
    where = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BstkError(f"no such address: {error.strerror or error}", where=where, reason="listen") from None
    if not token and not all(_is_loopback(str(address[0])) for *_, address in found):
        raise BstkError(
            "others could reach this address, and anybody who can could use and resize the model: set BSTK_TOKEN (or "
            "--token), or listen on 127.0.0.1",
            where=where,
            reason="listen-token",
        )
    family, kind, protocol, _, address = found[0]
    out = socket.socket(family, kind, protocol)
    try:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind(address)
    except OSError as error:
        out.close()
        raise BstkError(f"cannot listen there: {error.strerror or error}", where=where, reason="listen") from None
    return out


def address_of(listener: socket.socket) -> str:
    """Where a socket listens, as a URL has it: ``127.0.0.1:8000``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
