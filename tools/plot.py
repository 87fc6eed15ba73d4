"""A quality curve as a picture: in characters for a terminal, or as a PNG through matplotlib."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bsformat import BstkError, format_size
from bsformat.errors import WriteError

from .curve import QualityCurve

_MIB = 1 << 20
#: The highest perplexity that is drawn, over the lowest.
_DECADES = 30


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


def save_png(path: str, result: dict[str, Any]) -> None:
    """Draw what ``bstk eval`` measured: perplexity over resident bytes for each text, and zero-shot accuracy.

    Args:
        result: the JSON of ``bstk eval``.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    texts = [text["name"] for text in result["texts"]]
    panels = len(texts) + bool(result["zero_shot"])
    figure = Figure(figsize=(8 * panels, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, text in zip(figure.subplots(1, panels, squeeze=False)[0], [*texts, None], strict=False):
        panel(axes, result, text)
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise WriteError(f"the plot cannot be written ({error.strerror or error})", where=path) from None


def panel(axes: Any, result: dict[str, Any], text: str | None) -> None:
    """One measure: perplexity on a text, or zero-shot accuracy (None)."""

    def value(point: dict[str, Any]) -> float | None:
        found = point["zero_shot"]["average"] if text is None else point["perplexity_by_text"][text]
        return found if found is not None and math.isfinite(found) else None

    shown: list[float] = []
    for curve in _curves(result):
        pairs = sorted((p["resident_bytes"] / _MIB, y) for p in curve.points if (y := value(p)) is not None)
        if pairs:
            axes.plot(*zip(*pairs, strict=True), label=curve.label, **curve.style)
            shown += [y for _, y in pairs]
    if result["dense"] is not None and (dense := value(result["dense"])) is not None:
        axes.axhline(dense, color="black", linewidth=1, linestyle=":", label="dense, 16 bits")
        shown.append(dense)
    if text is not None:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if shown:  # what has fallen apart would press all else into one line
            axes.set_ylim(0.9 * min(shown), min(1.1 * max(shown), _DECADES * min(shown)))
    axes.set_xlabel("resident weights, MiB")
    axes.set_ylabel("perplexity" if text is not None else "zero-shot accuracy, mean of the tasks")
    axes.set_title(f"{result['model']}{f' on {text}' if text is not None else ''}", parse_math=False)
    axes.grid(visible=True, which="both", alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")


@dataclass(frozen=True, slots=True)
class _Curve:
    label: str
    points: list[dict[str, Any]]
    style: dict[str, Any]


def _curves(result: dict[str, Any]) -> list[_Curve]:
    """The file, those to compare with, then each baseline for each way to treat embeddings.

    A colour is a file or a method, a kind of line a way to treat embeddings.
    """
    files = {"this file" if result["compare"] else "bstk": result["points"]}
    files |= {name: other["points"] for name, other in result["compare"].items()}
    colours = {name: f"C{number % 10}" for number, name in enumerate([*files, *_names(result)])}
    bold = {"linewidth": 2.2, "marker": "o", "zorder": 3}
    out = [_Curve(name, points, bold | {"color": colours[name]}) for name, points in files.items()]
    baselines: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for point in result["baselines"]:
        baselines.setdefault((point["name"], point["embeddings"]), []).append(point)
    for (name, kept), points in baselines.items():
        label = f"{name}, embeddings {'as the layers' if kept == 'same' else f'in {kept} bits'}"
        line = {"same": ("--", "x"), 16: (":", "^")}.get(kept, ("-.", "s"))
        style = {"linewidth": 1, "markersize": 5, "linestyle": line[0], "marker": line[1], "color": colours[name]}
        out.append(_Curve(label, points, style))
    return out


def _names(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(point["name"] for point in result["baselines"]))
