"""The page of ``bstk inspect``: plain text for people, at most 100 columns wide."""

import math
from typing import Any

from bitstack.fields import shown
from bitstack.recipe import Recipe, differences
from bitstack.recipe_file import builtin_recipes, load_recipe
from bsformat import Container, format_size
from bsformat.errors import RecipeError

from . import plot, summary
from .console import exact_size, number, printable, shorten, table

WIDTH = 100
_LABEL = 13


def page(container: Container) -> str:
    """What a file is, how large, what is in it, how good it is at which size, and what fits."""
    sections = [_identity, _model, _sizes, _blocks, _curve, _fits]
    return "\n\n".join(text for section in sections if (text := section(container)))


def field(label: str, value: str) -> str:
    """A line with a label in front."""
    return f"  {label:<{_LABEL}} {shorten(value, WIDTH - _LABEL - 3)}"


def _identity(container: Container) -> str:
    head = container.superblock
    lines = [
        shorten(printable(container.uri), WIDTH),
        field("root", container.root),
        field("format", f"{container.version}, written by {printable(container.metadata.writer)}"),
    ]
    if container.volumes:
        first, *_, last = container.volumes
        largest = max(volume.length for volume in container.volumes)
        lines.append(
            field(
                "volumes", f"{len(container.volumes)}: {first.name} to {last.name}, at most {format_size(largest)} each"
            )
        )
    if head.present_length < head.file_length:
        lines.append(
            field(
                "prefix",
                f"holds {container.available_blocks} of {len(container)} blocks, {format_size(head.present_length)} "
                f"of {format_size(head.file_length)}",
            )
        )
    return "\n".join(lines)


def _mapping(container: Container, key: str) -> dict[str, Any]:
    value = container.metadata.extra.get(key)
    return value if isinstance(value, dict) else {}


def _model(container: Container) -> str:
    model, calibration = _mapping(container, "model"), _mapping(container, "calibration")
    tensors = container.model_tensors.values()
    packed = [t for t in tensors if t.packed]
    lines = ["Model"]
    if "name" in model:
        lines.append(field("name", printable(model["name"])))
    if "class" in model:
        lines.append(field("class", printable(model["class"])))
    share = sum(t.rows * t.columns for t in packed) / max(summary.parameters(container), 1)
    lines.append(
        field(
            "parameters",
            f"{summary.parameters(container):,} in {len(tensors)} tensors; "
            f"{len(packed)} packed, with {share:.1%} of them",
        )
    )
    lines += _recipe(container)
    if calibration:
        text, tokens = printable(calibration.get("text", "?")), printable(calibration.get("tokens", "?"))
        lines.append(field("calibrated", f"on {_text_name(text)}, {tokens} tokens"))
    return "\n".join(lines)


def _recipe(container: Container) -> list[str]:
    """Its name, and what was changed about it: as far as this version knows its settings."""
    stored = _mapping(container, "recipe")
    name = stored.get("name")
    if not isinstance(name, str):
        return []
    lines = [field("recipe", printable(name))]
    try:
        changed = differences(Recipe.from_json(stored), load_recipe(name if name in builtin_recipes() else "default"))
    except RecipeError:  # written by another version
        return lines
    return [*lines, *(field("", printable(f"{path} {shown(value)}")) for path, value in changed.items())]


def _text_name(text: str) -> str:
    return "text that the model wrote itself" if text == "self" else text


def _sizes(container: Container) -> str:
    head, meta = container.superblock, container.metadata

    def resident(size: int) -> str:
        return f"{exact_size(size)}, {summary.bits_per_parameter(container, size):.2f} bits per parameter"

    lines = [
        "Sizes",
        field("file", exact_size(container.size)),
        field("head", f"{exact_size(head.head_length)}: all that this page needed"),
        field("dense", resident(container.dense_bytes)),
        field("all blocks", resident(container.total_bytes)),
        field("minimum", resident(container.minimum_bytes)),
    ]
    for i, item in enumerate(meta.attachments):
        lines.append(field("" if i else "attached", f"{printable(item.name)}, {format_size(item.length)}"))
    return "\n".join(lines)


def _blocks(container: Container) -> str:
    total = max(int(container.index.length.sum()), 1)
    rows = [
        (
            g["blocks"].replace(" level", ", level"),
            f"{g['count']:,}",
            format_size(g["resident_bytes"]),
            f"{g['resident_bytes'] / total:.1%}",
        )
        for g in summary.groups(container)
    ]
    rows.append(("all", f"{len(container):,}", format_size(total), "100.0%"))
    return table(("Blocks", "count", "resident", "share"), rows, indent="")


def _curve(container: Container) -> str:
    record, curve = summary.perplexity_record(container), summary.quality_curve(container)
    if record is None or not curve:
        return ""
    dense = record.dense if 0 < record.dense < math.inf else None
    text = _text_name(printable(record.text))
    legend = (
        f"* measured on {text}, {record.tokens:,} tokens in windows of {record.window}; - the dense model"
        if dense
        else f"* measured on {text}, {record.tokens:,} tokens in windows of {record.window}"
    )
    picture = (f"  {line}" for line in plot.draw(curve, dense))
    return "\n".join(["Perplexity over resident bytes", shorten(f"  {legend}", WIDTH), *picture])


def _fits(container: Container) -> str:
    rows = []
    for share in summary.shares(container):
        item = summary.fit(container, container.plan(f"{share}%"), f"{share}%")
        expected = item["perplexity"]["expected"] if item["perplexity"] else None
        rows.append(
            (
                item["budget"],
                format_size(item["plan"]["resident_bytes"]),
                f"{item['plan']['n_blocks']:,}",
                f"{item['bits_per_parameter']:.2f}",
                format_size(item["download_bytes"]),
                number(expected),
            )
        )
    return table(("What fits", "resident", "blocks", "bits/param", "to read", "perplexity"), rows, indent="")
