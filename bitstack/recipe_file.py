"""Recipes as YAML: those that come with the package, and anybody's own."""

import difflib
import os
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from bsformat.errors import RecipeError

from .fields import Text
from .recipe import Recipe
from .settings import checked, merged

#: A recipe is a page of text; anything longer is another file, named by mistake.
_LONGEST = 1 << 20
_SUFFIXES = (".yaml", ".yml")


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """A recipe by the name of one that comes with the package, or from a ``.yaml`` file.

    Raises:
        RecipeError: there is none, it is not valid YAML, or holds what a recipe cannot hold.
    """
    return _load(os.fspath(source), ())


@cache
def builtin_recipes() -> dict[str, str]:
    """What comes with the package: name -> what it is about."""
    names = sorted(item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml"))
    return {name: _about(_parse(_builtin_text(name), name), name) for name in names}


def extended_by(name: str) -> str | None:
    """The recipe that one of the package extends; None for the default one."""
    parent = _parse(_builtin_text(name), name).get("extends")
    return parent if isinstance(parent, str) else None


def to_yaml(recipe: Recipe) -> str:
    """All settings of a recipe, as a file that `load_recipe` reads."""
    values = recipe.to_json()
    del values["name"]
    return str(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True))


def _load(source: str, seen: tuple[str, ...]) -> Recipe:
    builtin = not source.endswith(_SUFFIXES)
    where = source if builtin else os.path.abspath(source)
    if where in seen:
        chain = " extends ".join(os.path.basename(s) for s in (*seen, where))
        raise RecipeError(f"extends itself: {chain}", where=source)
    values = _parse(_builtin_text(source) if builtin else _file_text(source), source)
    _about(values, source)
    base = Recipe()
    try:
        if "extends" in values:
            parent = checked(Text("the name of a recipe, or a .yaml file", "NAME"), values["extends"], "extends")
            # A file is looked for beside the one that names it.
            near = os.path.join(os.path.dirname(where), parent) if parent.endswith(_SUFFIXES) else parent
            base = _load(near, (*seen, where))
        settings = {key: value for key, value in values.items() if key not in ("about", "extends")}
        name = os.path.splitext(os.path.basename(source))[0]
        return replace(merged(base, settings), name=name)
    except RecipeError as error:
        raise error.at(source) from None


def _folder() -> Any:
    return files(__package__) / "recipes"


def _builtin_text(name: str) -> str:
    names = [item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml")]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
        raise RecipeError(f"no recipe of that name ({hint}); a file of your own ends in .yaml", where=name)
    return str((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _file_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        detail = getattr(error, "strerror", None) or "not UTF-8"
        raise RecipeError(f"no recipe that can be read ({detail})", where=path) from None
    if len(text) > _LONGEST:
        raise RecipeError("is too long to be a recipe", where=path)
    return text


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_twice(node)
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise RecipeError(f"no valid YAML: {place}{problem}", where=where) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError("holds no mapping of settings (section: {setting: value})", where=where)
    return values


def _refuse_twice(root: yaml.Node | None) -> None:
    """YAML's own loader takes the last of two equal keys, and merges that grow without bound."""
    rest, seen = [root], set()
    while rest:
        node = rest.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            rest += node.value
            continue
        keys = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in keys or key.tag == "tag:yaml.org,2002:merge":
                problem = "is there twice" if name in keys else "is no setting; use extends"
                raise yaml.MarkedYAMLError(problem=f"{name!r} {problem}", problem_mark=key.start_mark)
            keys.add(name)
            rest.append(value)


def _about(values: dict[str, Any], where: str) -> str:
    try:
        return str(checked(Text("one line of text", "TEXT"), values.get("about", "-"), "about"))
    except RecipeError as error:
        raise error.at(where) from None
