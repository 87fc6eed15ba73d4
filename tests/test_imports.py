"""What an import pulls in, and what it must not, each seen from a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(program: str, cwd: Path) -> str:
    """Run a program with `cwd` first on sys.path, as `python -c` does, and give its output."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONSAFEPATH", "PYTHONPATH"}}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_works_from_the_root_of_the_repository(repo_root: Path) -> None:
    """Our folder `kernels` is then importable under the name of a package that transformers looks for."""
    run(
        "import importlib.util, os, sys\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "assert spec.origin == os.path.abspath('kernels/__init__.py'), 'no trap: this proves nothing'\n"
        "import transformers\n"
        "from transformers import AutoModelForCausalLM, LlamaForCausalLM\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available(), 'transformers takes our folder for the package kernels'\n"
        "assert 'loader' not in sys.modules and 'tools' not in sys.modules\n"
        # transformers has by now run our kernels/__init__.py as `kernels`: under its own name it must still import.
        "import bitstack.kernels\n",
        cwd=repo_root,
    )


def test_transformers_works_after_bitstack(repo_root: Path) -> None:
    run("import bitstack.kernels, bitstack.loader\nfrom transformers import LlamaForCausalLM\n", cwd=repo_root)


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import bsformat", ("torch", "transformers", "triton", "bitstack")),
        ("import bitstack", ("torch", "transformers", "triton", "numba", "gradio")),
        ("import bitstack.tools.cli", ("torch", "transformers", "triton", "gradio", "fastapi", "uvicorn", "pydantic")),
        (
            "from bitstack.tools.cli import main\n"
            "try:\n"
            "    code = main(['--help'])\n"
            "except SystemExit as stop:\n"
            "    code = stop.code\n"
            "assert not code, code",
            ("torch", "transformers", "triton", "numba", "gradio", "uvicorn"),
        ),
        (
            "from bitstack.tools.cli import main\n"
            "try:\n"
            "    main(['serve', '--help'])\n"
            "except SystemExit as stop:\n"
            "    assert not stop.code",
            ("torch", "transformers", "fastapi", "uvicorn", "pydantic", "prometheus_client"),
        ),
    ],
    ids=["bsformat", "bitstack", "cli", "help", "serve-help"],
)
def test_leaves_heavy_packages_unimported(program: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    printed = run(f"{program}\nimport sys\nprint(*(name for name in {absent} if name in sys.modules))", cwd=tmp_path)
    assert printed.splitlines()[-1] == ""


def test_help_names_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bitstack.tools.cli", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "bstk" in done.stdout


def test_a_bench_says_what_an_import_loads() -> None:
    from bitstack.tools.bench import imports

    light, heavy = (imports.measured(statement, 1) for statement in ("import bitstack", "import bsformat, torch"))
    assert light["heavy"] == []
    assert heavy["heavy"] == ["torch"]
    assert 0 < light["modules"] < heavy["modules"]
    assert len(light["seconds"]) == 1
