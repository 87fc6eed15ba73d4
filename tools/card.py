"""The model card of a repository: what people read on the hub before they download anything."""

from typing import Any

from bitstack.repository import FILE, model_name
from bsformat import Container, format_size

from .summary import bits_per_parameter, curves, parameters


def card(container: Container, *, title: str, license_id: str | None, base_model: str | None, repository: str) -> str:
    """README.md with front matter, in the hub's dialect of Markdown.

    Args:
        title: the heading. license_id: a licence of the hub's list, or None: it says that nobody named one.
        base_model: ``owner/name`` on the hub of the model that was packed.
        repository: what ``from_pretrained`` is to be called with in the example.
    """
    parts = [_front_matter(container, license_id, base_model), f"# {title}\n", _what(container, base_model)]
    parts += [_load(container, repository), _sizes(container), *map(_curve, curves(container)), _origin(container)]
    return "\n".join(part for part in parts if part)


def _front_matter(container: Container, license_id: str | None, base_model: str | None) -> str:
    import yaml

    fields: dict[str, Any] = {"license": license_id or "unknown"}
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "quantized"}
    fields["library_name"] = "transformers"
    if model_name(container, "class").endswith("ForCausalLM"):
        fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["bitstack", "bstk", "quantized"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _what(container: Container, base_model: str | None) -> str:
    name = base_model or model_name(container)
    of = f" of {_plain(name)}" if name else ""
    return (
        f"A packed copy{of}: one file, `{FILE}`, of which any prefix is a model. Choose how much memory the weights "
        "may take; the loader reads exactly the bytes that fit, and more of them later, or gives some back.\n"
    )


def _load(container: Container, repository: str) -> str:
    least, most = container.minimum_bytes, container.total_bytes
    example = f"{_sensible(container) >> 20}MiB"
    return f"""## How to load it

```python
from bitstack import BitStackConfig  # pip install bitstack
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}", quantization_config=BitStackConfig(budget="{example}"))
tokenizer = AutoTokenizer.from_pretrained("{repository}")
model.bitstack.resize("100%")
```

Without `quantization_config`, but with `import bitstack.transformers`, as much is loaded as the device has room for. A
budget counts every resident byte of the weights, from {format_size(least)} to {format_size(most)}.

    bstk generate hf://{repository}/{FILE} --budget {example} --prompt "Once upon a time"
"""


def _sensible(container: Container) -> int:
    """The smallest point of the curve whose measure is within a tenth of the dense model's; else half of it all."""
    for curve in curves(container):
        for point in curve["points"]:
            if point["resident_bytes"] and point["value"] <= 1.1 * curve["dense"]:
                return int(-(-point["resident_bytes"] >> 20) << 20)
    return -(-max(container.total_bytes // 2, container.minimum_bytes) >> 20) << 20


def _sizes(container: Container) -> str:
    def row(name: str, size: int) -> str:
        return f"| {name} | {size:,} | {format_size(size)} | {bits_per_parameter(container, size):.2f} |"

    return "\n".join(
        [
            "## Sizes\n",
            "| weights | bytes | | bits per parameter |",
            "|---|---|---|---|",
            row("dense model", container.dense_bytes),
            row("all blocks", container.total_bytes),
            row("least", container.minimum_bytes),
            f"\n{parameters(container):,} parameters.\n",
        ]
    )


def _curve(curve: dict[str, Any]) -> str:
    lines = [
        f"## {_plain(curve['metric']).capitalize()} over resident bytes\n",
        f"Measured on {curve['tokens']:,} tokens of {_plain(curve['text'])}, in windows of {curve['window']}, when it "
        "was packed.\n",
        f"| resident | {_plain(curve['metric'])} |",
        "|---|---|",
    ]
    lines += [
        f"| {format_size(point['resident_bytes'])} | {point['value']:.2f} |"
        for point in curve["points"]
        if point["resident_bytes"] is not None
    ]
    return "\n".join([*lines, f"| dense model | {curve['dense']:.2f} |\n"])


def _origin(container: Container) -> str:
    extra = container.metadata.extra
    lines = ["## Where it comes from\n"]
    calibration, recipe = extra.get("calibration"), extra.get("recipe")
    if isinstance(recipe, dict) and recipe.get("name"):
        lines.append(f"- recipe: {_plain(recipe['name'])}")
    if isinstance(calibration, dict) and calibration.get("text"):
        lines.append(f"- calibrated on: {_plain(calibration['text'])}, {calibration.get('tokens')} tokens")
    lines += [
        f"- written by: {_plain(container.metadata.writer)}, format {container.version}",
        f"- root: `{container.root}` (it authenticates every byte; `config.json` demands it)",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Text of a file within a line of Markdown: nothing in it is markup."""
    line = " ".join(str(text).split())[:200]
    return "".join(f"\\{c}" if c in "\\`*[]<>|#" else c for c in line if c.isprintable())
