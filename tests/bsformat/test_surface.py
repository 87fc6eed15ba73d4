"""What `import bsformat` gives, and what it does not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bsformat


def test_every_exported_name_exists() -> None:
    assert bsformat.__all__ == sorted(bsformat.__all__)
    assert [name for name in bsformat.__all__ if not hasattr(bsformat, name)] == []


def test_nothing_public_is_forgotten() -> None:
    """Every name that the package binds by its own imports is exported."""
    tree = ast.parse(Path(bsformat.__file__).read_text())
    bound = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert bound == set(bsformat.__all__)


@pytest.mark.parametrize("name", ["open", "verify", "rewrite", "parse_size", "format_size", "Writer", "Container"])
def test_is_documented(name: str) -> None:
    assert getattr(bsformat, name).__doc__


@pytest.mark.parametrize("module", ["torch", "transformers", "triton", "aiohttp", "s3fs", "bitstack"])
def test_what_it_leaves_unimported(module: str) -> None:
    program = f"import sys, bsformat; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_a_missing_file_is_one_error_and_nothing_on_stderr(tmp_path: Path) -> None:
    program = (
        "import bsformat\ntry:\n    bsformat.open('none.bstk')\nexcept bsformat.BstkError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("none.bstk: no such file")
    assert done.stdout.endswith("[not-found]\n")
