"""Every error this project raises on purpose.

    BstkError
    ├── FormatError            the bytes break the specification
    │   ├── NotBstkError       they are no .bstk at all, or a transfer damaged the magic
    │   ├── TruncatedError     the object ends before the file does
    │   ├── UnsupportedError   a newer major version, or an unknown feature, codec or kind that must be understood
    │   └── IntegrityError     a digest or the demanded root does not match
    ├── SourceError            the bytes could not be read
    │   ├── NotFoundError      no such file, URL or bucket
    │   ├── AccessDeniedError  the server or the file system says no
    │   ├── RangeError         the server does not serve byte ranges
    │   ├── ShortReadError     fewer bytes came, or from another place, than were asked for
    │   └── SourceChangedError the object is not the one that was opened
    ├── BudgetError            a budget that cannot be read, or is below the minimum of the file
    ├── ModelError             a model that cannot be packed, or built from a container
    ├── ResizeError            a resize that was called off, or did not come to its end
    ├── RepackError            what a repack was asked for does not fit the file
    ├── SignatureError         a signature that cannot be made, or does not hold
    ├── RecipeError            a recipe that is not there, or says what a recipe cannot say
    └── WriteError             the output could not be written; nothing is left behind

Each error is one line: where, what, what was expected, what to do. ``reason`` is its name in the registry of
reason codes (spec §9), the same in every reader; ``where`` is the path or URI, ``offset`` the byte in it, if known.
"""

__all__ = [
    "AccessDeniedError",
    "BstkError",
    "BudgetError",
    "FormatError",
    "IntegrityError",
    "ModelError",
    "NotBstkError",
    "NotFoundError",
    "RangeError",
    "RecipeError",
    "RepackError",
    "ResizeError",
    "ShortReadError",
    "SignatureError",
    "SourceChangedError",
    "SourceError",
    "TruncatedError",
    "UnsupportedError",
    "WriteError",
]


#: Characters of the longest message: a hostile file may hold, and so make a message quote, names of any length.
_LONGEST = 700


class BstkError(Exception):
    """The base of all errors of this project.

    Attributes:
        reason: the code of the cause, lower case with hyphens (spec §9).
        where: the path or URI concerned, or "" where there is none.
        offset: the byte offset in it, or None.
    """

    default_reason = "error"

    def __init__(self, message: str, *, where: str = "", offset: int | None = None, reason: str | None = None) -> None:
        self.reason = reason or self.default_reason
        self.where = where
        self.offset = offset
        if len(message) > 4 * _LONGEST:  # before it is split, which takes far more than its characters
            message = message[: 2 * _LONGEST] + message[-2 * _LONGEST :]
        message = " ".join(message.split())
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        place = self.where
        if self.offset is not None:
            place += f"{', ' if place else ''}byte {self.offset}"
        return f"{place}: {self.message} [{self.reason}]" if place else f"{self.message} [{self.reason}]"

    def at(self, where: str) -> "BstkError":
        """Name the place, where the code that raised did not know it; returns the same error."""
        self.where = self.where or where
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self.message, self.where, self.offset, self.reason))


def _restore(cls: type[BstkError], message: str, where: str, offset: int | None, reason: str) -> BstkError:
    return cls(message, where=where, offset=offset, reason=reason)


class FormatError(BstkError):
    """The bytes break the specification."""

    default_reason = "format"


class NotBstkError(FormatError):
    """The bytes are no ``.bstk`` file."""

    default_reason = "not-bstk"


class TruncatedError(FormatError):
    """The object ends before the file does."""

    default_reason = "truncated"


class UnsupportedError(FormatError):
    """The file needs something that this reader does not know and must not ignore."""

    default_reason = "unsupported"


class IntegrityError(FormatError):
    """A digest, or the root that the caller demanded, does not match."""

    default_reason = "integrity"


class SourceError(BstkError):
    """The bytes could not be read."""

    default_reason = "source"


class NotFoundError(SourceError):
    """No such file, URL or bucket."""

    default_reason = "not-found"


class AccessDeniedError(SourceError):
    """The server or the file system refuses access."""

    default_reason = "access-denied"


class RangeError(SourceError):
    """The server does not serve byte ranges."""

    default_reason = "range-unsupported"


class ShortReadError(SourceError):
    """Fewer bytes came, or from another place, than were asked for."""

    default_reason = "short-read"


class SourceChangedError(SourceError):
    """The object is not the one that was opened."""

    default_reason = "source-changed"


class BudgetError(BstkError):
    """A budget that cannot be read, or is below the minimum of the file."""

    default_reason = "budget"


class ModelError(BstkError):
    """A model that cannot be packed, or that cannot be built from a container."""

    default_reason = "model"


class ResizeError(BstkError):
    """A resize that was called off, or could not come to its end."""

    default_reason = "resize"


class RepackError(BstkError):
    """What a repack was asked for does not fit the file."""

    default_reason = "repack-invalid"


class SignatureError(BstkError):
    """A signature that cannot be made, or does not hold."""

    default_reason = "signature-invalid"


class RecipeError(BstkError):
    """A recipe that is not there, or says what a recipe cannot say."""

    default_reason = "recipe"


class WriteError(BstkError):
    """The output could not be written; nothing half-written is left behind."""

    default_reason = "write"
