"""Who may import whom, and a few rules on every module, held by reading the sources.

An import counts wherever it stands: in a function, under TYPE_CHECKING, or as `importlib.import_module("...")`.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

# Folder -> import name.
PACKAGES = {
    "bsformat": "bsformat",
    "bitstack": "bitstack",
    "kernels": "bitstack.kernels",
    "loader": "bitstack.loader",
    "tools": "bitstack.tools",
}
LIBRARY = ("bsformat", "bitstack", "kernels", "loader")

# Folder -> other folders that it may import. A module may always import its own folder.
MAY_IMPORT = {
    "bsformat": frozenset[str](),
    "kernels": frozenset[str](),
    "bitstack": frozenset({"bsformat", "kernels"}),
    "loader": frozenset({"bsformat"}),
    "tools": frozenset(PACKAGES),
}
# The composition root, and what budgets itself on top of it: the modules of their folder that may know the loader.
EXCEPTIONS = {name: frozenset({"loader"}) for name in ("bitstack/api.py", "bitstack/automatic.py")}

# Folder -> third-party packages that it may import; a folder not listed may import whatever pyproject.toml declares.
THIRD_PARTY = {
    "bsformat": frozenset(
        {"numpy", "msgpack", "zstandard", "blake3", "fsspec", "aiohttp", "yarl", "obstore", "cryptography"}
        | {"huggingface_hub"}
    ),
    "kernels": frozenset({"torch", "numpy", "triton", "numba", "llvmlite"}),
    "loader": frozenset({"torch", "tqdm"}),
}

MAX_LINES = 320


def module_name(path: str) -> tuple[str, str]:
    """The import name of a module, and the package that its relative imports start from."""
    folder, *rest = Path(path).with_suffix("").parts
    if rest[-1] == "__init__":
        name = ".".join([PACKAGES[folder], *rest[:-1]])
        return name, name
    return ".".join([PACKAGES[folder], *rest]), ".".join([PACKAGES[folder], *rest[:-1]])


def owner(name: str) -> str | None:
    """The folder that a dotted name belongs to; None for everything outside this repository."""
    for folder, package in sorted(PACKAGES.items(), key=lambda item: -len(item[1])):
        if name == package or name.startswith(package + "."):
            return folder
    return None


def resolve(name: str, level: int, package: str) -> str:
    """An absolute dotted name from one with `level` leading dots, seen from inside `package`."""
    if level == 0:
        return name
    base = package.split(".")[: len(package.split(".")) - level + 1]
    if not base:
        return f"<beyond {package}>"
    return ".".join([*base, name] if name else base)


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every import as (line, absolute dotted name); `from a import b` is `a.b`, because b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = resolve(node.module or "", node.level, package)
            for alias in node.names:
                yield node.lineno, source if alias.name == "*" else f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            name = getattr(node.args[0], "value", None)
            if called in {"import_module", "__import__"} and isinstance(name, str):
                yield node.lineno, resolve(name.lstrip("."), len(name) - len(name.lstrip(".")), package)


def violations(path: str, source: str, declared: frozenset[str]) -> list[str]:
    """What a module does against the rules, each as one line; `path` is relative to the root of the repository."""
    folder = path.split("/")[0]
    tree = ast.parse(source, path)
    allowed = MAY_IMPORT[folder] | {folder} | EXCEPTIONS.get(path, frozenset())
    third_party = THIRD_PARTY.get(folder, declared)
    found = []
    for line, name in imports(tree, module_name(path)[1]):
        target = owner(name)
        top = name.split(".")[0]
        if target is None and top not in third_party and top not in sys.stdlib_module_names:
            found.append(f"{path}:{line}: {folder} may not import {name}")
        elif target is not None and target not in allowed:
            found.append(f"{path}:{line}: {folder} may not import {name} of {target}")
    if folder in LIBRARY:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                found.append(
                    f"{path}:{node.lineno}: assert (it vanishes under -O: raise an error that names the cause)"
                )
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path}:{node.lineno}: print (a library logs)")
    if (lines := len(source.splitlines())) > MAX_LINES:
        found.append(f"{path}: {lines} lines, more than {MAX_LINES}")
    return found


@pytest.fixture(scope="session")
def declared(repo_root: Path) -> frozenset[str]:
    """Import names of what pyproject.toml says a user may have, extras for users included."""
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    return frozenset({"pyyaml": "yaml"}.get(name, name.replace("-", "_")) for name in names)


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_module_keeps_the_rules(folder: str, repo_root: Path, declared: frozenset[str]) -> None:
    modules = sorted((repo_root / folder).rglob("*.py"))
    assert modules, f"no module in {folder}/: nothing was checked"
    found = []
    for module in modules:
        found += violations(module.relative_to(repo_root).as_posix(), module.read_text(), declared)
    assert found == []


DECLARED = frozenset({"torch", "transformers", "tqdm", "numpy"})


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bsformat/a.py", "import torch"),
        ("bsformat/a.py", "from transformers import AutoConfig"),
        ("bsformat/a.py", "def f():\n    import torch.nn as nn"),
        ("bsformat/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bitstack import linear"),
        ("bsformat/a.py", "import importlib\nimportlib.import_module('torch')"),
        ("bsformat/a.py", "__import__('bitstack')"),
        ("bsformat/a.py", "from ..bitstack import linear"),
        ("kernels/a.py", "import transformers"),
        ("kernels/a.py", "import bsformat"),
        ("kernels/a.py", "import bitstack"),
        ("kernels/a.py", "from .. import linear"),
        ("kernels/sub/a.py", "from ...linear import BitStackLinear"),
        ("bitstack/linear.py", "import bitstack.loader"),
        ("bitstack/linear.py", "from bitstack import loader"),
        ("bitstack/linear.py", "from . import tools"),
        ("bitstack/linear.py", "from .loader.plan import Plan"),
        ("bitstack/__init__.py", "from .loader import Plan"),
        ("bitstack/__init__.py", "import importlib\nimportlib.import_module('.loader', __name__)"),
        ("bitstack/sub/api.py", "from bitstack.loader import Plan"),
        ("bitstack/api.py", "from bitstack.tools import cli"),
        ("bitstack/linear.py", "import somethingelse"),
        ("loader/a.py", "from bitstack.linear import BitStackLinear"),
        ("loader/a.py", "from ..kernels import decode"),
        ("loader/__init__.py", "from .. import linear"),
        ("loader/a.py", "import transformers"),
        ("tools/a.py", "import somethingelse"),
        ("loader/a.py", "def f(x):\n    assert x"),
        ("kernels/a.py", "def f(x):\n    print(x)"),
        ("tools/a.py", "\n" * (MAX_LINES + 1)),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    assert len(violations(path, source, DECLARED)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bsformat/a.py", "import os.path, numpy as np, blake3, fsspec\nfrom . import errors\nfrom .errors import E"),
        ("bsformat/__init__.py", "from . import errors\nfrom bsformat.errors import E"),
        ("kernels/a.py", "import torch\nfrom . import naive\ndef f():\n    import triton.language as tl"),
        ("kernels/sub/a.py", "from .. import naive\nfrom ..naive import f\nfrom bitstack.kernels import naive as n"),
        ("bitstack/linear.py", "import bsformat\nfrom bitstack import kernels\nfrom .kernels.naive import f"),
        ("bitstack/linear.py", "from transformers import AutoConfig\nfrom . import order\nfrom .order import merge"),
        ("bitstack/api.py", "from .loader import Plan\nimport bitstack.loader.plan"),
        (
            "loader/a.py",
            "import bsformat.errors, torch\nfrom tqdm import tqdm\nfrom . import plan\nfrom .plan import Plan",
        ),
        (
            "tools/a.py",
            "import bitstack.loader, bsformat, transformers\nfrom ..kernels import naive\nprint(1)\nassert 1",
        ),
        ("kernels/a.py", "logger.print('a method of this name is not the built-in')"),
        ("loader/a.py", "\n" * MAX_LINES),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source, DECLARED) == []


@pytest.mark.parametrize("package", ["triton", "numba"])
def test_importing_the_kernels_leaves_compilers_alone(package: str) -> None:
    program = f"import sys, bitstack.kernels; sys.exit({package!r} in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
