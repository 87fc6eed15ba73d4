"""What goes wrong with an object over HTTP, and which of it may pass."""

import re

import yarl

from .answers import Answer, LinkError
from .errors import AccessDeniedError, NotFoundError, RangeError, SourceError
from .network import Transient, without_secrets

_DENIED = frozenset({401, 403, 407})
_GONE = frozenset({404, 410})
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})")


class Refused(Exception):
    """The server says no to this URL; another one may do."""

    def __init__(self, error: SourceError, url: yarl.URL) -> None:
        super().__init__(error.message)
        self.error, self.url = error, url


class IgnoresRangesError(RangeError):
    """A 200 to a request for a range."""


def no_access(status: int, text: str, where: str, *, later: bool) -> SourceError | None:
    """What an answer means that says that there is no such object, or not for who asks; None of any other answer.

    Args:
        text: the status in words.
        later: whether the object could be read before.
    """
    if status in _GONE:
        how = "it was there when it was opened" if later else "check the URL"
        return NotFoundError(f"no such object ({text}): {how}", where=where)
    if status in _DENIED:
        how = "check the credentials"
        if later:
            how = "access was granted before: a signature or credentials have expired; open it again with fresh ones"
        return AccessDeniedError(f"access denied ({text}): {how}", where=where)
    return None


def size_before(answer: Answer, offset: int) -> int | None:
    """The size of an object that ends at or before ``offset``, if the server says so: 416, or 200 if it is empty."""
    if answer.status == 416:
        match = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", "").strip())
        return int(match[1]) if match and int(match[1]) <= offset else None
    return 0 if answer.status == 200 and answer.headers.get("Content-Length") == "0" else None


def failure_of(error: LinkError, stall_timeout: float, where: str, offset: int) -> Transient:
    """What an error of the connection at byte ``offset`` means.

    Raises:
        SourceError: it will not pass.
    """
    text = without_secrets(error.text)
    if error.trouble == "certificate":
        raise SourceError(
            f"the server's certificate is not trusted ({text}): check the URL and this machine's certificates",
            where=where,
        )
    if error.trouble == "url":
        raise SourceError(f"no usable URL: {text}", where=where)
    if error.trouble == "silent":
        text = f"no answer, or no byte of it, within {stall_timeout:g} s"
    elif error.trouble == "ended":
        text = f"the response ended before its end, after byte {offset}"
    unreachable = error.trouble == "unreachable"
    return Transient(
        SourceError(f"cannot be read: {text}", where=where, offset=offset),
        unreachable=unreachable,
        pressed=unreachable or error.trouble == "silent",
    )
