"""Recipes on the command line: listed, printed, read, and overridden flag by flag."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bitstack.fields import Choice, Described, Kind, Number, Several, Switch, Whole, shown
from bitstack.recipe import Recipe, differences, recipe_settings
from bitstack.recipe_file import builtin_recipes, load_recipe
from bitstack.settings import Setting
from bitstack.tools import pack_command, recipe_table
from bitstack.tools.cli import build_parser
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


def test_the_recipes_are_listed(bstk: Bstk) -> None:
    ended = bstk("recipes")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[0] for line in ended.out.splitlines()] == list(builtin_recipes())
    assert bstk("recipes", "--json").json == {"recipes": builtin_recipes()}


def test_a_printed_recipe_is_a_recipe(bstk: Bstk, tmp_path: Path) -> None:
    ended = bstk("recipes", "reference-greedy")
    assert (ended.code, ended.err) == (0, "")
    (tmp_path / "own.yaml").write_text(ended.out)
    assert bstk("recipes", tmp_path / "own.yaml").out == ended.out
    assert bstk("recipes", "reference-greedy", "--json").json == load_recipe("reference-greedy").to_json()


def test_pack_by_a_recipe_and_flags_over_it(bstk: Bstk, tiny_model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: reference\nseed: 4\ndecompose: {linear: {ranks: [3, 2, 1]}}\norder: {sweep_tokens: 32}\n")
    options = ("--linear-ranks", "2,1", "--calib-tokens", 64, "--calib-window", 32, "--eval-heldout-tokens", 32)
    ended = bstk("pack", tiny_model, "-o", tmp_path / "out.bstk", "--recipe", own, *options, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["recipe"], ended.json["packed_tensors"]) == ("own", 14)
    recipe = bstk("inspect", tmp_path / "out.bstk", "--json").json["extra"]["recipe"]
    assert recipe["name"] == "own"
    assert (recipe["seed"], recipe["order"]["sweep_tokens"]) == (4, 32)
    assert recipe["decompose"]["linear"] == load_recipe("reference").to_json()["decompose"]["linear"] | {
        "ranks": [2, 1]
    }
    page = bstk("inspect", tmp_path / "out.bstk").out
    assert "recipe        own\n" in page
    assert "decompose.linear.ranks 2,1\n" in page
    assert "order.method average\n" in page
    assert "save.codec" not in page


def test_inspect_names_the_recipe_of_another_version(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.bstk"
    with bsformat.open(tiny_bstk) as container:
        bsformat.rewrite(container, path, extra={"recipe": {"name": "new", "no such section": 1}})
    ended = bstk("inspect", path)
    assert ended.code == 0
    assert "recipe        new\n" in ended.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--recipe", "fsat"), "fsat: no recipe of that name (did you mean fast?)"),
        (("--recipe", "none.yaml"), "none.yaml: no recipe that can be read (No such file or directory)"),
        (("--linear-method", "paper"), "decompose.linear.walk: method paper takes signs as they are: set it to false"),
        (("--calib-gradient-tokens", "0"), "calib.gradient_tokens: order.method worth needs gradients"),
        (("--model-revision", "main"), "is a local path: it has no revision 'main'"),
    ],
)
def test_a_recipe_that_cannot_be(
    failed: Failed, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    assert says in failed("pack", tiny_model, "-o", tmp_path / "x.bstk", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_checked_before_anything_is_read(failed: Failed, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("calib: {tokns: 5}\n")
    line = failed("pack", tmp_path / "no model", "-o", tmp_path / "x.bstk", "--recipe", tmp_path / "own.yaml")
    assert line.endswith("own.yaml: calib.tokns: no such setting; did you mean calib.tokens? [recipe]")
    assert "fsat: no recipe of that name" in failed("recipes", "fsat")


def flag_value(kind: Kind, value: Any) -> tuple[list[str], Any]:
    """Another value than the default, as words of a command line and as the recipe holds it."""
    if isinstance(kind, Switch):
        return [], not value
    if isinstance(kind, Choice):
        other = next(name for name in kind.names if name != value)
        return [other], other
    if isinstance(kind, Several):
        if isinstance(kind.of, Whole | Number):
            return ["7,5"], (7, 5)
        words, other = flag_value(kind.of, value[0])
        return words, (other,)
    if isinstance(kind, Number):
        return ["0.25"], 0.25
    if isinstance(kind, Described):
        return ["s2 b4"], "s2 b4"
    return (["11"], 11) if isinstance(kind, Whole) else (["words"], "words")


@pytest.mark.parametrize("item", recipe_settings(), ids=lambda item: item.path)
def test_every_setting_has_a_flag_that_sets_it_and_nothing_else(item: Setting) -> None:
    words, value = flag_value(item.kind, item.value)
    flag = item.flag if words or value else "--no-" + item.flag.removeprefix("--")
    args = build_parser().parse_args(["pack", "model", "-o", "out.bstk", flag, *words])
    given = vars(args)
    assert [(s.path, given[s.path]) for s in recipe_settings() if s.path in given] == [(item.path, value)]


def test_flags_reach_the_recipe_and_nothing_else_changes() -> None:
    parse = build_parser().parse_args
    assert pack_command.recipe_from(parse(["pack", "m", "-o", "o"])) == Recipe()
    words = ["pack", "m", "-o", "o", "--recipe", "fast", "--seed", "5", "--linear-ranks", "6,7", "--token-ranks", "8"]
    recipe = pack_command.recipe_from(parse(words))
    assert differences(recipe, load_recipe("fast")) == {
        "seed": 5,
        "decompose.linear.ranks": (6, 7),
        "decompose.token.ranks": (8,),
    }


def test_the_help_of_pack_has_every_setting(bstk: Bstk) -> None:
    text = " ".join(bstk("pack", "--help").out.split())
    for item in recipe_settings():
        assert item.flag in text
        assert " ".join(f"{item.meaning} (default: {shown(item.value)})".split()) in text.replace("- ", "-")


# The page about them


def test_the_documentation_is_current(repo_root: Path) -> None:
    text = (repo_root / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert recipe_table.rewritten(text) == text, "run: python -m bitstack.tools.recipe_table docs/recipes.md"
    for item in recipe_settings():
        assert f"| `{item.path}` | `{item.flag}`" in text
    for name, about in builtin_recipes().items():
        assert f"| `{name}` | {about} |" in text


def test_the_tables_are_written_between_their_comments(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "docs" / "recipes.md").read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("| `")]
    page.write_text("".join(lines), encoding="utf-8")
    assert recipe_table.main([str(page)]) == 0
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="settings: begin"):
        recipe_table.rewritten(text.replace("<!-- settings: end -->", ""))


def test_the_example_of_the_documentation_is_a_recipe(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "docs" / "recipes.md").read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert differences(load_recipe(tmp_path / "own.yaml"), Recipe()) == {
        "calib.text": "wiki.txt",
        "calib.tokens": 16384,
        "decompose.linear.designs": ("s1 b3 s0.5 b2",),
        "decompose.linear.ranks": (4, 8),
    }
