"""The public names of the package."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import bitstack


def test_every_public_name_is_there() -> None:
    assert len(set(bitstack.__all__)) == len(bitstack.__all__)
    assert set(bitstack._HOMES) | {"__version__"} == set(bitstack.__all__)
    for name in bitstack.__all__:
        assert getattr(bitstack, name) is not None
    assert set(bitstack.__all__) <= set(dir(bitstack))


def test_no_module_hides_a_public_name() -> None:
    """Importing a submodule sets an attribute of the package: it must not be the name of a function."""
    modules = {m.name for m in pkgutil.iter_modules(bitstack.__path__)}
    assert {"api", "packing", "shell"} <= modules
    assert not modules & set(bitstack.__all__)
    code = (
        "import bitstack, importlib, pkgutil\n"
        "for m in pkgutil.iter_modules(bitstack.__path__): importlib.import_module('bitstack.' + m.name)\n"
        "assert all(callable(getattr(bitstack, n)) for n in bitstack.__all__ if n != '__version__')\n"
        "assert (bitstack.load.__module__, bitstack.pack.__module__) == ('bitstack.api', 'bitstack.pipeline')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["load", "pack", "perplexity", "load_tokenizer"])
def test_functions_are_functions(name: str) -> None:
    importlib.import_module(f"bitstack.{bitstack._HOMES[name]}")
    assert callable(getattr(bitstack, name))


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'unpack'"):
        _ = bitstack.unpack
