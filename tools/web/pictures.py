"""The pictures of the page as SVG: the quality curve with two budgets on it, and the levels of the layers.

They are text without scripts, fonts or references; everything that a file says in them is escaped.
"""

import html
import math
from collections.abc import Sequence
from typing import Final

from bitstack.tools.console import number
from bitstack.tools.curve import QualityCurve
from bsformat import format_size

from .levels import Grid

#: Of the two sides, as the page has them.
COLOURS: Final = ("#2563eb", "#d97706")
_WIDTH, _HEIGHT = 1000, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 26, 40


def escaped(text: object) -> str:
    """Text for HTML. Templates of the page, which look for $ and braces, find none in it either."""
    out = html.escape(str(text))
    return out.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def curve_picture(curve: QualityCurve, dense: float | None, marks: Sequence[tuple[str, int]], most: int) -> str:
    """Perplexity over resident bytes, measured points as dots, and where the budgets are.

    Args:
        dense: perplexity of the dense model; None: not drawn.
        marks: name and resident bytes of each side.
        most: bytes of all blocks: the right end.
    """
    if not curve:
        return "<p>The file holds no quality curve: what a budget is worth was not measured.</p>"
    line = dense if dense is not None and 0 < dense < math.inf else None
    values = [math.log(p.value) for p in curve.points] + ([] if line is None else [math.log(line)])
    low, high = min(values), max(values)
    high = max(high, low + 1e-3)
    right = max(most, curve.points[-1].resident, 1)

    def x(resident: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(resident / right, 0), 1), 1)

    def y(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log(value)) / (high - low), 1)

    bottom = _HEIGHT - _BOTTOM
    parts = [_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom), _line(_LEFT, _TOP, _LEFT, bottom)]
    ticks = [math.exp(low + (high - low) * step / 3) for step in range(4)]
    parts += [_text(_LEFT - 8, y(value) + 4, number(value, 3), "end") for value in ticks]
    for step in range(6):
        size = round(right * step / 5)
        parts.append(_text(x(size), bottom + 18, format_size(size), anchor="middle" if step < 5 else "end"))
    parts.append(_text(_LEFT, 14, "perplexity (logarithmic) over resident bytes of the weights"))
    if line is not None:
        parts.append(_line(_LEFT, y(line), _WIDTH - _RIGHT, y(line), 'stroke-dasharray="5 4"'))
        parts.append(_text(_LEFT + 8, y(line) - 5, f"dense {number(line)}"))
    way = " ".join(f"{x(p.resident)},{y(p.value)}" for p in curve.points)
    parts.append(f'<polyline points="{way}" fill="none" stroke="currentColor" stroke-width="1.5" opacity="0.7"/>')
    parts += [f'<circle cx="{x(p.resident)}" cy="{y(p.value)}" r="3.5" fill="currentColor"/>' for p in curve.points]
    said = []
    for colour, row, (name, resident) in zip(COLOURS, range(len(marks)), marks, strict=False):
        value, at = curve.at(resident), x(resident)
        expected = "not measured here" if value is None else f"about {number(value)}"
        said.append(f"{name}: {format_size(resident)}, {expected}")
        parts.append(_line(at, _TOP, at, bottom, f'stroke="{colour}" stroke-width="2"'))
        if value is not None:
            parts.append(f'<circle cx="{at}" cy="{y(value)}" r="6" fill="{colour}"/>')
        left = at > _WIDTH * 0.7
        label = f"{name}: {format_size(resident)}, {expected}"
        parts.append(
            _text(at + (-8 if left else 8), _TOP + 14 + 16 * row, label, "end" if left else "start", f'fill="{colour}"')
        )
    return _svg(_WIDTH, _HEIGHT, f"Quality curve. {'. '.join(said)}.", parts)


def levels_picture(grid: Grid, side: int, most: int) -> str:
    """A heat map: a column for each layer, a row for each projection, the darker the more levels.

    Args:
        side: 0 or 1, for the colour.
        most: levels that have the full colour.
    """
    colour, cell, row_height, margin = COLOURS[side], 20, 20, 160
    columns = len(grid.layers)
    width = margin + max(columns * cell, 260) + 8
    parts, total, filled = [], 0.0, 0.0
    if columns:
        parts.append(_text(margin - 8, 14, "layer", "end"))
    for j, layer in enumerate(grid.layers):
        if j % (1 if columns <= 16 else 5) == 0:
            parts.append(_text(margin + j * cell + cell / 2, 14, str(layer), "middle"))
    top = 20.0 if columns else 0.0
    for i, name in enumerate(grid.projections):
        parts.append(_text(margin - 8, top + i * row_height + 14, shown := _tail(name), "end", _title(name, shown)))
        for j, layer in enumerate(grid.layers):
            if not math.isnan(held := float(grid.held[i, j])):
                here = float(grid.most[i, j])
                total, filled = total + here, filled + held
                title = f"layer {layer}, {name}: {held:.3g} of {here:.3g} levels"
                parts.append(_cell(margin + j * cell, top + i * row_height, cell, held, most, colour, title))
    bottom = top + len(grid.projections) * row_height + (8 if columns else 0)
    for i, (name, held, here) in enumerate(grid.others):
        total, filled, y = total + here, filled + held, bottom + i * row_height
        title = f"{name}: {held:.3g} of {here:.3g} levels"
        parts.append(_text(margin - 8, y + 14, shown := _tail(name), "end", _title(name, shown)))
        parts.append(_cell(margin, y, 2 * cell, held, most, colour, title))
        parts.append(_text(margin + 2 * cell + 8, y + 14, f"of {here:.3g} levels, mean of its groups"))
    height = bottom + len(grid.others) * row_height + 4
    if grid.left_out:
        parts.append(_text(margin, height + 14, f"{grid.left_out:,} more tensors are not drawn"))
        height += 20
    share = filled / total if total else 0.0
    return _svg(width, height, f"Levels held by layer and projection: {share:.0%} of all levels", parts)


def _cell(x: float, y: float, width: float, held: float, most: int, colour: str, title: str) -> str:
    strength = min(1.0, held / most) if most else 0.0
    ink = "#ffffff" if strength > 0.55 else "currentColor"
    digits = f"{held:.0f}" if abs(held - round(held)) < 0.05 or held >= 10 else f"{held:.1f}"
    label = _text(x + width / 2 - 0.5, y + 14, digits, "middle", f'style="font-size:10px" fill="{ink}"')
    return (
        f'<g><title>{escaped(title)}</title><rect x="{x}" y="{y}" width="{width - 1}" height="19" rx="2" '
        f'fill="{colour}" fill-opacity="{0.06 + 0.94 * strength:.2f}"/>{label}</g>'
    )


def _tail(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _title(name: str, shown: str) -> str:
    return "" if name == shown else f'aria-label="{escaped(name)}"'


def _line(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    stroke = "" if 'stroke="' in more else 'stroke="currentColor" stroke-opacity="0.5" '
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {stroke}{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    fill = "" if "fill=" in more else 'fill="currentColor" '
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {fill}{more}>{escaped(text)}</text>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escaped(label)}" class="picture">{"".join(parts)}</svg>'
    )
