"""Which object an HTTP answer is part of: pinned at the first one, demanded of every later one."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells an object from the one that replaces it.

    Attributes:
        size: bytes.
        etag: as the server wrote it, a weak one with its ``W/``; "" if there is none.
        modified: Last-Modified, as the server wrote it; "" if there is none.
    """

    size: int
    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str], size: int) -> "Identity":
        """The identity that the headers of an answer state."""
        return cls(size, headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip())

    @property
    def strong(self) -> bool:
        """Whether there is an ETag that stands for exact bytes (RFC 9110, section 8.8.1)."""
        return bool(self.etag) and not self.etag.startswith("W/")

    @property
    def conditions(self) -> dict[str, str]:
        """Headers with which a server refuses to answer from another object.

        If-Match compares strongly and so never holds for a weak ETag (RFC 9110, section 13.1.1): such a one is only
        compared when it comes back.
        """
        if self.strong:
            return {"If-Match": self.etag}
        return {"If-Unmodified-Since": self.modified} if self.modified else {}

    def difference(self, headers: Mapping[str, str], size: int | None) -> str | None:
        """How an answer shows that it is part of another object; None if nothing does.

        A partial answer must repeat the ETag of the whole (RFC 9110, section 15.3.7), so one without it is not taken.
        Where there is a strong ETag, the time says nothing more: copies of one object on several servers may differ
        in it.

        Args:
            size: what the answer says the whole object has, in bytes, or None if it does not say.
        """
        if size is not None and size != self.size:
            return f"its size was {self.size} and is {size}"
        other = Identity.of(headers, self.size)
        if self.etag and _opaque(other.etag) != _opaque(self.etag):
            return f"its ETag was {self.etag} and is {other.etag or 'not given'}"
        if self.strong and not other.strong:
            return f"its ETag was {self.etag} and is {other.etag}"
        if not self.strong and self.modified and other.modified != self.modified:
            return f"it was last modified {self.modified}, and is {other.modified or 'without a time'}"
        return None


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")
