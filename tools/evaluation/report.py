"""The tables of ``bstk eval`` for people."""

from typing import Any

from bitstack.tools.console import number, printable, table
from bsformat import format_size

from .results import label


def report(result: dict[str, Any]) -> str:
    """What was measured, beside each other, and on and with what."""
    texts, machine = result["texts"], result["hardware"]
    lines = [
        f"{printable(result['file'])} on {printable(', '.join(t['name'] for t in texts))}, "
        f"{' + '.join(str(t['windows']) for t in texts)} windows of {texts[0]['window']} tokens",
        _budgets(result),
    ]
    if result["dense"] is not None:
        lines += ["", _beside(result)]
        lines += [f"  {line}" for line in _wins(result)]
    lines += [f"  not measured: {label(s)}: {printable(s['reason'])}" for s in result["skipped"]]
    lines.append(
        f"  {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    )
    return "\n".join(lines)


def _measured(result: dict[str, Any], point: dict[str, Any] | None) -> list[str]:
    """Perplexity on each text, and accuracy; ``-`` where there is no point."""
    names = [text["name"] for text in result["texts"]]
    cells = [number(point["perplexity_by_text"][name] if point else None) for name in names]
    if result["zero_shot"]:
        cells.append(f"{100 * point['zero_shot']['average']:.1f}%" if point else "-")
    return cells


def _measures(result: dict[str, Any], of: str = "") -> list[str]:
    """Heads of the columns of `_measured`, perplexity on the first text before all."""
    others = [f"on {printable(text['name'])}" for text in result["texts"][1:]]
    return [f"{of}{head}" for head in ["perplexity", *others, *(["zero-shot"] if result["zero_shot"] else [])]]


def _budgets(result: dict[str, Any]) -> str:
    others = {name: {p["budget"]: p for p in other["points"]} for name, other in result["compare"].items()}
    header = ["budget", "resident", "blocks", "bits/param", *_measures(result)]
    for name in others:
        header += _measures(result, f"{printable(name)} ")
    rows = []
    for p in result["points"]:
        row = [
            format_size(p["budget"]),
            format_size(p["resident_bytes"]),
            f"{p['n_blocks']:,}",
            f"{p['bits_per_parameter']:.2f}",
            *_measured(result, p),
        ]
        for points in others.values():
            row += _measured(result, points.get(p["budget"]))
        rows.append(row)
    return table(header, rows)


def _beside(result: dict[str, Any]) -> str:
    """The dense model and the baselines, each with the .bstk at the same bytes."""
    ours = ["ours at these bytes", *_measures(result, "ours ")[1:], "ours is better by"]
    header = ["baseline", "resident", "bits/param", *_measures(result), *ours]
    rows = [
        [
            label(p),
            format_size(p["resident_bytes"]),
            f"{p['bits_per_parameter']:.2f}",
            *_measured(result, p),
            *_measured(result, p["ours"]),
            _advantage(result, p),
        ]
        for p in [result["dense"] | {"name": "dense", "ours": None}, *result["baselines"]]
    ]
    return table(header, rows)


def _advantage(result: dict[str, Any], point: dict[str, Any]) -> str:
    """By what share a baseline's perplexity on the first text is above ours; negative where it wins."""
    if not point.get("advantage"):
        return "-"
    return f"{100 * point['advantage'][result['texts'][0]['name']]:+.1f}%"


def _wins(result: dict[str, Any]) -> list[str]:
    if not result["baselines"]:
        return []
    if not result["baseline_wins"]:
        return ["no baseline is below ours at its bytes"]
    return [
        f"{label(win)} wins at {format_size(win['resident_bytes'])} on {printable(win['text'])}: "
        f"{100 * win['lower_by']:.2f}% below ours"
        for win in result["baseline_wins"]
    ]
