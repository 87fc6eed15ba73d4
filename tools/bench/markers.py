"""Pages whose tables a command writes between two markers; what people wrote around them stays."""

from collections.abc import Callable
from pathlib import Path

from bsformat.errors import WriteError


def rewrite(page: Path, new: Callable[[str], str]) -> None:
    """Write a page anew from what it is.

    Raises:
        WriteError: it cannot be read or written. Whatever ``new`` raises; the page then stays as it is.
    """
    try:
        old = page.read_text("utf-8")
        page.write_text(new(old), "utf-8")
    except OSError as error:
        raise WriteError(f"cannot be rewritten ({error.strerror or error})", where=str(page)) from None


def between(old: str, begin: str, end: str, text: Callable[[], str], page: Path) -> str:
    """A page with other text between its markers, made once they are found.

    Raises:
        WriteError: it lacks a marker, or they are not in order.
    """
    before, found, rest = old.partition(begin)
    _, ending, after = rest.partition(end)
    if not found or not ending:
        raise WriteError(f"needs the lines {begin} and {end}, in this order", where=str(page))
    return f"{before}{begin}\n\n{text()}{end}{after}"


def from_repository(path: Path) -> str:
    """The path as people of this repository write it; outside of ``tools/`` just its name."""
    parts = path.resolve().parts
    start = max((number for number, part in enumerate(parts) if part == "tools"), default=len(parts) - 1)
    return "/".join(parts[start:])


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
