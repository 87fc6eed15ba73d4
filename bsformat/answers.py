"""What an answer over HTTP is to those who check it, whichever library brought it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, Protocol

#: What happened to a link: no usable URL, a certificate that is not trusted, no connection at all, a connection that
#: ended, silence, or anything else.
Trouble = Literal["url", "certificate", "unreachable", "ended", "silent", "other"]

#: Called with the number of bytes that came, which are in place already; what it raises ends the answer.
Came = Callable[[int], object]


class LinkError(Exception):
    """The connection failed; the answer, if there is one, has to be closed.

    Attributes:
        trouble: what happened. text: what the library says of it.
    """

    def __init__(self, trouble: Trouble, text: str) -> None:
        super().__init__(text)
        self.trouble, self.text = trouble, " ".join(text.split())


class Headers(Mapping[str, str]):
    """Headers of an answer, asked for in any case, each on one line; of one that came twice the first."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:
            self._values.setdefault(name.lower(), " ".join(value.split()))

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Answer(Protocol):
    """One answer, its body unread. Not for several threads.

    Attributes:
        status, reason, headers: as the server sent them.
    """

    status: int
    reason: str
    headers: Headers

    def receive(self, out: memoryview, came: Came, seconds: float) -> int:
        """Put the next bytes of the body into ``out`` until it is full; gives how many, fewer where the body ends.

        Args:
            seconds: for all of it.

        Raises:
            LinkError: what came before was told to ``came``.
        """
        ...

    def has_more(self, seconds: float) -> bool:
        """Whether the body goes on.

        Args:
            seconds: for finding out, which may take a byte.

        Raises:
            LinkError: as `receive`.
        """
        ...

    def close(self) -> None:
        """End it, and its connection if the body was not read to its end."""
        ...
