"""What the tests of the command share."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bitstack.tools.cli import main
from tests.bsformat.encoder import Image, parse


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote to stdout, as strict JSON."""

        def refuse(text: str) -> None:
            raise ValueError(f"{text} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


Bstk = Callable[..., Ended]


@pytest.fixture
def bstk(capsys: pytest.CaptureFixture[str]) -> Bstk:
    """The command in this process."""

    def run(*args: object) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def bstk_process(tmp_path: Path) -> Bstk:
    """The command as a process of its own, in a pipe."""

    def run(*args: object, **options: Any) -> Ended:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bitstack.tools.cli", *map(str, args)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            **options,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def failed(bstk: Bstk) -> Callable[..., str]:
    """The one line of a command that fails: exit code 1, nothing on stdout."""

    def run(*args: object) -> str:
        ended = bstk(*args)
        assert (ended.code, ended.out) == (1, "")
        return the_line(ended.err)

    return run


def the_line(err: str) -> str:
    """What follows ``bstk: error:`` on the only line of stderr."""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("bstk: error: ")
    return err.removeprefix("bstk: error: ").rstrip("\n")


@pytest.fixture
def tiny_image(tiny_bstk: Path) -> Image:
    """`tiny_bstk` taken apart, to be damaged."""
    return parse(tiny_bstk.read_bytes())


@pytest.fixture
def curved(tiny_bstk: Path, tmp_path: Path) -> Path:
    """`tiny_bstk` with a curve of known values: 80, 40 and 20 at its first, a middle and its last block."""
    path = tmp_path / "curved.bstk"
    with bsformat.open(tiny_bstk) as container:
        first, last = container.index.required, len(container)
        middle = (first + last) // 2
        points = ((first, 80.0), (middle, 40.0), (last, 20.0))
        bsformat.rewrite(container, path, curves=[bsformat.Curve("perplexity", "test", 64, 32, 18.0, points)])
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text that the tiny tokenizer knows."""
    path = tmp_path_factory.mktemp("text") / "sea.txt"
    path.write_text("the old man sails over the wide sea and reads a book. " * 40, encoding="utf-8")
    return path
