"""A quality curve as a picture: in characters for a terminal, or as a PNG through matplotlib."""

import math
from importlib.util import find_spec
from typing import Any

from bsformat import BstkError, format_size
from bsformat.errors import WriteError

from .curve import QualityCurve

_MIB = 1 << 20


def draw(curve: QualityCurve, dense: float | None, width: int = 72, height: int = 12) -> list[str]:
    """Lines of text: ``*`` measured, ``.`` in between, ``-`` the dense model. Perplexity is on a log scale.

    Args:
        dense: perplexity of the dense model; None or no perplexity: no line for it.
        width, height: of the picture, in characters, without its axes.
    """
    line = math.log(dense) if dense is not None and 0 < dense < math.inf else None
    heights = [math.log(p.value) for p in curve.points] + ([] if line is None else [line])
    low, high = min(heights), max(heights)
    high = max(high, low + 1e-3)
    first, last = curve.points[0].resident, curve.points[-1].resident
    span = max(last - first, 1)

    def row(y: float) -> int:
        return round((high - y) / (high - low) * (height - 1))

    cells = [[" "] * width for _ in range(height)]
    if line is not None:
        cells[row(line)] = ["-"] * width
    for column in range(width):
        value = curve.at(first + round(column / (width - 1) * span))
        if value is not None:
            cells[row(math.log(value))][column] = "."
    for p in curve.points:
        cells[row(math.log(p.value))][round((p.resident - first) / span * (width - 1))] = "*"
    ticks = {0, height // 3, 2 * height // 3, height - 1}
    labels = [
        _tick(math.exp(high - (high - low) * number / (height - 1))) if number in ticks else ""
        for number in range(height)
    ]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{''.join(cell).rstrip()}" for label, cell in zip(labels, cells, strict=True)]
    left, right = format_size(first), format_size(last)
    lines.append(f"{'':>{margin}} +{'-' * width}")
    lines.append(f"{'':>{margin}}  {left}{right:>{width - len(left)}}")
    return lines


def _tick(value: float) -> str:
    return f"{value:.3g}" if value < 1e6 else f"{value:.1e}"


def need_matplotlib() -> None:
    """Refuse, before anything was measured, where a PNG cannot be drawn.

    Raises:
        BstkError: saying how to install it.
    """
    if find_spec("matplotlib") is None:
        raise BstkError("--plot needs matplotlib: pip install 'bitstack[plot]'", reason="plot")


def save_png(path: str, points: list[dict[str, Any]], title: str) -> None:
    """Draw perplexity over resident bytes.

    Args:
        points: each with ``resident_bytes`` and ``perplexity``.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([p["resident_bytes"] / _MIB for p in points], [p["perplexity"] for p in points], marker="o")
    axes.set_xlabel("resident weights, MiB")
    axes.set_ylabel("perplexity")
    axes.set_yscale("log")
    axes.set_title(title, parse_math=False)
    axes.grid(visible=True, which="both", alpha=0.3)
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise WriteError(f"the plot cannot be written ({error.strerror or error})", where=path) from None
