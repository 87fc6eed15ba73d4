"""The wheel: built from a copy of the working tree, looked into, installed elsewhere and run there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

import pytest

PACKAGES = {
    "bsformat": "bsformat",
    "bitstack": "bitstack",
    "kernels": "bitstack/kernels",
    "loader": "bitstack/loader",
    "tools": "bitstack/tools",
}


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Run this interpreter's pip; it may fetch nothing."""
    command, *rest = arguments
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", command, *options, *rest], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of every file that git tracks or would: building there leaves the working tree as it was."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repo_root,
        capture_output=True,
        check=True,
        text=True,
    )
    copy = tmp_path_factory.mktemp("sources")
    for name in filter(None, listed.stdout.split("\0")):
        # A file deleted but not yet committed is still listed.
        if (repo_root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repo_root / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the copy."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, sources, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-compile", "--target", target, wheel, cwd=target)
    return target


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run Python so that of this repository only the installed wheel can be imported.

    -S skips the .pth files, and with them an editable install's import hook; the dependencies come in by PYTHONPATH.
    """
    folders = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-P", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_takes_only_two_names(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bsformat", "bitstack"}


def test_the_wheel_holds_every_module(wheel: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package}/{module.relative_to(sources / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for module in (sources / folder).rglob("*.py")
    }
    assert {f"{package}/__init__.py" for package in PACKAGES.values()} <= expected
    assert expected - names == set(), "a new sub-package needs a line in [tool.setuptools] of pyproject.toml, twice"
    assert {name for name in names if name.endswith(".py")} - expected == set()


def test_the_wheel_holds_every_recipe(wheel: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"bitstack/recipes/{path.name}" for path in (sources / "bitstack" / "recipes").iterdir()}
    assert "bitstack/recipes/default.yaml" in recipes
    assert recipes - names == set()


def test_the_wheel_is_typed_licensed_and_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(PurePosixPath(name).parts[0] for name in names if ".dist-info/" in name)
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert {"bsformat/py.typed", "bitstack/py.typed"} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    assert "bstk = bitstack.tools.cli:main" in entry_points


def test_the_wheel_holds_every_task(wheel: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tasks = {f"bitstack/tools/tasks/{task.name}" for task in (sources / "tools/tasks").iterdir()}
    assert len(tasks) == 6
    assert tasks <= names


def test_the_installed_wheel_imports(installed: Path, tmp_path: Path) -> None:
    program = (
        "import bsformat, bitstack, bitstack.kernels, bitstack.loader\n"
        "print(bsformat.__file__, bitstack.__file__, bitstack.kernels.__file__, bitstack.loader.__file__, sep='\\n')\n"
    )
    files = [Path(line) for line in run_installed(installed, tmp_path, "-c", program).splitlines()]
    assert files == [installed / package / "__init__.py" for package in list(PACKAGES.values())[:4]]


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    assert "bstk" in run_installed(installed, tmp_path, "-m", "bitstack.tools.cli", "--help")
