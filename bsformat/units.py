"""Sizes as people write them: ``80MiB``, ``3.5GiB``, ``80MB``, ``60%``."""

import re
from decimal import Decimal

from .errors import BudgetError

_UNITS = {"": 1, "B": 1} | {
    f"{p}{s}": base ** (i + 1) for s, base in (("iB", 1024), ("B", 1000)) for i, p in enumerate("KMGT")
}
#: With as many digits as a number can need, and not so many that it takes long, or is beyond what can be computed.
_SIZE = re.compile(r"\s*(\d{1,28}(?:\.\d{0,99})?|\.\d{1,99})\s*+([A-Za-z]*|%)\s*")


def parse_size(text: str | int, total: int | None = None) -> int:
    """Bytes of a size.

    Binary units are KiB, MiB, GiB, TiB, decimal ones KB, MB, GB, TB (in any case); a plain number is bytes; a
    lower-case ``b`` after a decimal prefix (``Mb``) means bits, as accelerate reads it. Fractions are rounded down.

    Args:
        total: what ``100%`` means, in bytes; None where a percentage makes no sense.

    Raises:
        BudgetError: reason ``budget-invalid``.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise _invalid(text)
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise _invalid(text)
    number, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if total is None:
            raise _invalid(text)
        return int(number * total / 100)
    factor = {name.upper(): size for name, size in _UNITS.items()}.get(unit.upper())
    if factor is None:
        raise _invalid(text)
    value = int(number * factor)
    return value // 8 if len(unit) == 2 and unit.endswith("b") else value


def _invalid(text: object) -> BudgetError:
    return BudgetError(
        f"{text!r} is no size: write 80MiB, 3.5GiB, 80MB, a number of bytes, or 60% of all blocks",
        reason="budget-invalid",
    )


def format_size(size: int) -> str:
    """Bytes for people: ``82.5 MiB``, ``1.2 KiB``, ``17 B``."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(value, 1) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
