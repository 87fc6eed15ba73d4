"""The generated parts of ``docs/recipes.md``: a table of the recipes that come along, and one of all settings.

    python -m bitstack.tools.recipe_table docs/recipes.md

writes them anew, each between the two comments that name it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bitstack.fields import Switch, shown
from bitstack.recipe import differences, recipe_settings
from bitstack.recipe_file import builtin_recipes, extended_by, load_recipe
from bitstack.settings import Setting

from .ending import ended


def recipes_table() -> str:
    """Every recipe of the package, what it extends, and what it changes in that."""
    lines = ["| recipe | what it is | extends | changes |", "|---|---|---|---|"]
    for name, about in builtin_recipes().items():
        parent = extended_by(name)
        changed = differences(load_recipe(name), load_recipe(parent)) if parent else {}
        # What a recipe says of matrices that it leaves as they are means nothing.
        idle = load_recipe(name).decompose.token.mode == "raw"
        said = [
            f"`{path}: {_value(value)}`"
            for path, value in changed.items()
            if not (idle and path.startswith("decompose.token.")) or path == "decompose.token.mode"
        ]
        lines.append(f"| `{name}` | {about} | {f'`{parent}`' if parent else ''} | {', '.join(said)} |")
    return "\n".join(lines)


def settings_table() -> str:
    """Every setting with its flag, what it accepts, its default and its meaning."""
    lines = ["| setting | flag of `bstk pack` | accepts | default | what it does |", "|---|---|---|---|---|"]
    lines += [
        f"| `{s.path}` | {_flag(s)} | {s.kind.expected} | `{_value(s.value)}` | {s.meaning} |"
        for s in recipe_settings()
    ]
    return "\n".join(lines)


def _flag(setting: Setting) -> str:
    if isinstance(setting.kind, Switch):
        return f"`{setting.flag}`, `--no-{setting.flag.removeprefix('--')}`"
    return f"`{setting.flag}`"


def _value(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 8 and len(set(value)) == 1:
        return f"[{shown(value[0])}, …] ({len(value)} levels)"
    return f"[{shown(value).replace(',', ', ')}]" if isinstance(value, tuple) else shown(value)


def rewritten(text: str) -> str:
    """The page with its generated parts as they should be.

    Raises:
        ValueError: a comment that begins or ends a part is missing.
    """
    for name, part in (("recipes", recipes_table()), ("settings", settings_table())):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"no {begin} … {end} in the page")
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the page that is named."""
    parser = argparse.ArgumentParser(prog="python -m bitstack.tools.recipe_table", description=__doc__)
    parser.add_argument("page", type=Path, metavar="docs/recipes.md")
    page: Path = parser.parse_args(argv).page

    def run() -> int:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0

    return ended(run, "recipe_table")


if __name__ == "__main__":
    sys.exit(main())
