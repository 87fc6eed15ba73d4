"""Recipes: what they accept, what they refuse and how they say so, and those that come with the package."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import bitstack
from bitstack.fields import Choice, Kind, Number, Several, Switch, Text, Whole
from bitstack.recipe import Options, Recipe, differences, recipe_settings
from bitstack.recipe_file import builtin_recipes, load_recipe, to_yaml
from bsformat.errors import RecipeError

NAMES = [
    "default",
    "fast",
    "reference",
    "reference-average",
    "reference-greedy",
    "reference-no-abs",
    "reference-no-scale",
    "reference-random",
]


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | str) -> str:
    """The message of the one line that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    return caught.value.message


# Those that come with the package


def test_what_comes_with_the_package() -> None:
    assert list(builtin_recipes()) == NAMES
    assert all(len(text) > 20 for text in builtin_recipes().values())


def test_the_default_recipe_is_the_defaults_of_the_fields() -> None:
    assert load_recipe("default") == Recipe() == bitstack.Recipe()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_read_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = load_recipe(write(tmp_path, to_yaml(recipe)))
    assert dataclasses.replace(again, name=name) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_fast_only_leaves_out_the_walk() -> None:
    changed = differences(load_recipe("fast"), Recipe())
    assert changed == {"decompose.linear.walk": False, "decompose.token.walk": False}


def test_the_reference_is_the_paper() -> None:
    recipe = load_recipe("reference")
    linear, token = recipe.decompose.linear, recipe.decompose.token
    assert linear == Options(
        ranks=(16,) * 16, factors=("F16",), walk=False, scales="column", method="paper", absolute=True
    )
    assert (token.mode, recipe.order.method, recipe.calib.gradient_tokens) == ("raw", "average", 0)
    assert recipe.tune.steps == 0


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no-scale", {"decompose.linear.scales": "none", "decompose.token.scales": "none"}),
        ("no-abs", {"decompose.linear.absolute": False, "decompose.token.absolute": False}),
        ("average", {}),
        ("greedy", {"order.method": "greedy"}),
        ("random", {"order.method": "random"}),
    ],
)
def test_an_ablation_changes_one_thing(name: str, changed: dict[str, Any]) -> None:
    assert differences(load_recipe(f"reference-{name}"), load_recipe("reference")) == changed


# Files


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "about: mine\nseed: 3\ndecompose:\n  linear: {ranks: [4, 2], stretches: [1]}\n")
    recipe = load_recipe(path)
    assert recipe.name == "own"
    assert differences(recipe, Recipe()) == {
        "seed": 3,
        "decompose.linear.ranks": (4, 2),
        "decompose.linear.stretches": (1.0,),
    }
    assert isinstance(recipe.decompose.linear.stretches[0], float)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert differences(load_recipe(write(tmp_path, "# nothing\n")), Recipe()) == {}


def test_a_file_extends_another_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "extends: reference\nseed: 1\norder: {sweep_tokens: 64}\n", "base.yaml")
    path = write(tmp_path / "sub", "extends: base.yaml\nseed: 2\n", "top.yml")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path.relative_to(tmp_path))
    assert differences(recipe, load_recipe("reference")) == {"seed": 2, "order.sweep_tokens": 64}
    assert recipe.name == "top"


def test_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match=r"extends itself: a\.yaml extends b\.yaml extends a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calib: {tokns: 1}", "calib.tokns: no such setting; did you mean calib.tokens?"),
        ("callib: {tokens: 1}", "callib: no such setting; did you mean calib?"),
        ("walk: false", "walk: no such setting; did you mean decompose.linear.walk or decompose.token.walk?"),
        ("zzz: 1", "zzz: no such setting; there are seed, model, calib, decompose, tune, order, eval, save"),
        ("name: x", "name: no such setting"),
        ("1: 2", "1: no such setting"),
        ("calib: {tokens: 0}", "calib.tokens: 0 is not a whole number from 1 to 2^31 - 1"),
        ("calib: {tokens: true}", "calib.tokens: True is not a whole number"),
        ("calib: {tokens: 1.0}", "calib.tokens: 1.0 is not a whole number"),
        ("calib: {tokens: '5'}", "calib.tokens: '5' is not a whole number"),
        ("calib: {tokens: null}", "calib.tokens: None is not a whole number"),
        ("calib: {text: ''}", "calib.text: '' is not a text file, or self"),
        ("calib: [1]", "calib: [1] is not a mapping of settings"),
        ("calib:", "calib: None is not a mapping of settings"),
        ("tune: {rate: .nan}", "tune.rate: nan is not a number above 0, at most 1"),
        ("tune: {rate: .inf}", "tune.rate: inf is not a number above 0"),
        ("tune: {rate: true}", "tune.rate: True is not a number above 0"),
        ("tune: {rate: 1e-3}", "(YAML reads it as text: an exponent needs a point before it, as in 1.0e-3)"),
        ("tune: {steps: -1}", "tune.steps: -1 is not a whole number"),
        ("decompose: {linear: {stretches: [.nan]}}", "each a number above 0, at most 16"),
        ("decompose: {linear: {stretches: []}}", "decompose.linear.stretches: [] is not a list of 1 to 16 entries"),
        ("decompose: {linear: {designs: [b2, b2]}}", "is not a list of 1 to 64 different entries, each a design as"),
        ("decompose: {linear: {designs: [s0]}}", "each a design as 's0.3 b3 s0.5 b2'"),
        ("decompose: {linear: {tail: b7}}", "decompose.linear.tail: 'b7' is not a design as 'b2 b2'"),
        ("decompose: {linear: {tail: [b2]}}", "decompose.linear.tail: ['b2'] is not a design as 'b2 b2'"),
        ("decompose: {emphasis: 0}", "decompose.emphasis: 0 is not a number above 0, at most 1"),
        ("decompose: {bits: 4}", "decompose.bits: 4 is not a list"),
        ("decompose: {linear: {walk: 1}}", "decompose.linear.walk: 1 is not true or false"),
        ("decompose: {linear: {factors: F8}}", "different entries, each one of F16, F8_E4M3"),
        ("decompose: {linear: {factors: [F16, F16]}}", "different entries, each one of F16, F8_E4M3"),
        (
            "order: {method: wort}",
            "'wort' is not one of worth, average, greedy, random; did you mean worth?",
        ),
        (
            "decompose: {linear: {ranks: []}}",
            "linear.ranks: [] is not a list of 1 to 64 entries, each a whole number from 1",
        ),
        ("decompose: {linear: {ranks: 8}}", "decompose.linear.ranks: 8 is not a list"),
        ("decompose: {linear: {ranks: [8, true]}}", "decompose.linear.ranks: [8, True] is not a list"),
        ("decompose: {linear: {ranks: [4097]}}", "each a whole number from 1 to 4096"),
        ("model: {revision: 3}", "model.revision: 3 is not a branch, tag or commit, or null"),
        ("about: 3", "about: 3 is not one line of text"),
        ("extends: 3", "extends: 3 is not the name of a recipe, or a .yaml file"),
        ("seed: 1\nseed: 2", "no valid YAML: line 2: 'seed' is there twice"),
        ("calib: {tokens: 1, tokens: 1}", "no valid YAML: line 1: 'tokens' is there twice"),
        ("a: &a {seed: 1}\n<<: *a", "no valid YAML: line 2: '<<' is no setting; use extends"),
        ("seed: [", "no valid YAML: line 1: "),
        ("seed: !!python/object:os.system {}", "no valid YAML: line 1: could not determine a constructor"),
        ("seed: 1\n---\nseed: 2", "no valid YAML: line 2: but found another document"),
        ("\x00", "no valid YAML: "),
        ("[" * 5000, "no valid YAML: "),
        ("- 1", "holds no mapping of settings (section: {setting: value})"),
        ("decompose: {linear: {svd: exact}}", "decompose.linear.svd: exact needs decompose.linear.method paper"),
        ("decompose: {token: {absolute: false}}", "decompose.token.absolute: false needs decompose.token.method paper"),
        ("decompose: {linear: {method: paper}}", "decompose.linear.walk: method paper takes signs as they are"),
        ("decompose: {linear: {mode: raw}, token: {mode: raw}}", "leaves nothing to pack"),
        ("calib: {gradient_tokens: 0}", "calib.gradient_tokens: order.method worth needs gradients"),
        ("order: {method: greedy, sweep_tokens: 0}", "order.sweep_tokens: order.method greedy measures perplexity"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(write(tmp_path, text))


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(refused(write(tmp_path, f"calib: {{tokens: {'x' * 10_000}}}"))) < 200


def test_names_that_are_not_there(tmp_path: Path) -> None:
    assert refused("refrence") == "no recipe of that name (did you mean reference?); a file of your own ends in .yaml"
    assert "there are default, fast, reference" in refused("zzz")
    assert refused(tmp_path / "none.yaml") == "no recipe that can be read (No such file or directory)"
    (tmp_path / "latin.yaml").write_bytes(b"about: \xe4\n")
    assert refused(tmp_path / "latin.yaml") == "no recipe that can be read (not UTF-8)"
    assert refused(write(tmp_path, "#" * (1 << 20 | 1), "long.yaml")) == "is too long to be a recipe"
    missing = write(tmp_path, "extends: fst\n", "extending.yaml")
    with pytest.raises(RecipeError, match=r"fst: no recipe of that name \(did you mean fast\?\)"):
        load_recipe(missing)


# In Python


def test_sections_check_what_they_are_given() -> None:
    with pytest.raises(RecipeError, match="ranks: 8 is not a list"):
        Options(ranks=8)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="seed: -1 is not a whole number"):
        dataclasses.replace(Recipe(), seed=-1)
    with pytest.raises(RecipeError, match=r"decompose\.linear\.walk: method paper"):
        Recipe().changed({"decompose.linear.method": "paper"})
    with pytest.raises(RecipeError, match=r"calib\.toke: no such setting; did you mean calib\.tokens"):
        Recipe().changed({"calib.toke": 3})


def test_a_change_leaves_the_rest() -> None:
    recipe = load_recipe("reference").changed({"decompose.linear.ranks": [3, 2], "seed": 9})
    assert differences(recipe, load_recipe("reference")) == {"decompose.linear.ranks": (3, 2), "seed": 9}
    assert recipe.decompose.linear.ranks == (3, 2)


def test_every_setting_has_a_path_a_flag_and_a_meaning() -> None:
    found = recipe_settings()
    assert len({s.path for s in found}) == len({s.flag for s in found}) == len(found) > 25
    flags = {s.path: s.flag for s in found}
    assert flags["calib.text"] == "--calib"
    assert flags["decompose.token.ranks"] == "--token-ranks"
    assert flags["eval.heldout_tokens"] == "--eval-heldout-tokens"
    assert all(s.meaning and not s.meaning.endswith(".") for s in found)
    assert {s.path.split(".")[0] for s in found} == set(Recipe().to_json()) - {"name"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Whole(1, 5), "5", 5),
        (Number(0, 2), "1.5", 1.5),
        (Number(0, 2), "1e-3", 0.001),
        (Choice(("a", "b")), "b", "b"),
        (Switch(), "true", True),
        (Text("x", "X"), "y", "y"),
        (Several(Whole(1, 9), 3), "3, 2,1", (3, 2, 1)),
    ],
)
def test_a_value_of_the_command_line(kind: Kind, text: str, value: Any) -> None:
    assert kind.parse(text) == value
    assert kind.check(yaml.safe_load(yaml.safe_dump(list(value) if isinstance(value, tuple) else value))) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Whole(1, 5), "6"),
        (Whole(1, 5), "1.0"),
        (Number(0, 2), "0"),
        (Number(0, 2), "nan"),
        (Number(0, 2), "2.1"),
        (Choice(("a", "b")), "A"),
        (Switch(), "yes"),
        (Text("x", "X"), " "),
        (Several(Whole(1, 9), 3), "1,1,1,1"),
        (Several(Whole(1, 9), 3), ""),
    ],
)
def test_what_the_command_line_refuses(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says what is expected
        kind.parse(text)


def test_recipes_need_no_torch() -> None:
    program = "import sys, bitstack; bitstack.load_recipe('fast'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0
