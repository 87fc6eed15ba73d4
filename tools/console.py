"""What commands share: JSON and text for stdout, progress for stderr, and quiet libraries."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from bitstack.progress import Advance, Reporter, Silent
from bsformat import format_size


class Bars:
    """A `bitstack.progress.Reporter` that draws a bar for each stage on stderr."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """See `bitstack.progress.Reporter.stage`."""
        from tqdm import tqdm

        binary = unit == "B"
        columns = _columns()
        with tqdm(
            desc=title,
            total=total,
            initial=done,
            unit=unit if binary else f" {unit}s",
            unit_scale=True,
            unit_divisor=1024 if binary else 1000,
            file=sys.stderr,
            dynamic_ncols=columns > 0,
            ncols=None if columns > 0 else 80,
            nrows=None if columns > 0 else 24,
        ) as bar:
            yield bar.update


def _columns() -> int:
    """Of the terminal behind stderr; some, as those of containers, say 0."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def reporter() -> Reporter:
    """Bars if stderr is a terminal, else nothing."""
    return Bars() if sys.stderr.isatty() else Silent()


def quiet_libraries() -> None:
    """Keep transformers from writing to stderr: all of it in a pipe, all but its bars on a terminal."""
    logging: Any = import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # that of huggingface_hub too
        gguf: Any = import_module("transformers.modeling_gguf_pytorch_utils")
        # The bar of this module heeds none of the switches.
        if hasattr(gguf, "tqdm"):
            gguf.tqdm = partial(gguf.tqdm, disable=True)


def say(line: object) -> None:
    """A line on stderr that is neither a result nor an error."""
    print(line, file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; what is not finite is null there."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(value: object) -> str:
    """Text from a file, which may hold anything, as one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def exact_size(size: int) -> str:
    """A size in full and for people: ``83,886,080 bytes (80.0 MiB)``."""
    return f"{size:,} bytes ({format_size(size)})"


def number(value: float | None, digits: int = 4) -> str:
    """A measured value in ``digits`` digits, ``-`` where there is none."""
    if value is None:
        return "-"
    if not math.isfinite(value) or abs(value) >= 1e6:
        return f"{value:.2e}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, digits - whole)}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Columns under a header: the first one to the left, the others to the right."""
    everything = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        return (indent + "  ".join(padded)).rstrip()

    return "\n".join(map(line, everything))


def shorten(text: str, width: int) -> str:
    """``text``, with its middle cut out where it is longer than ``width``."""
    if len(text) <= width:
        return text
    return f"{text[: width // 2]}…{text[len(text) - (width - width // 2 - 1) :]}"
