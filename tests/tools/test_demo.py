"""The demo, on the tiny model."""

import re
import shlex
from pathlib import Path

import pytest

import bitstack
import bsformat
from bitstack.tools import demo, pack_command
from bitstack.tools.cli import build_parser
from bitstack.tools.serve_ranges import RangeServer
from tests.models import PACK_OPTIONS
from tests.tools.conftest import Bstk

BUDGETS = ("20KiB", "40KiB", "60KiB")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_bstk: Path) -> list[str]:
    """Packing replaced by a copy of the tiny file; gives the models that were packed."""
    packed: list[str] = []

    def pack(model: str, path: Path, *, recipe: bitstack.Recipe, report: object, restart: bool) -> bitstack.Packed:
        assert recipe == bitstack.Recipe().changed(demo.QUICK)
        packed.append(model)
        path.write_bytes(tiny_bstk.read_bytes())
        with bsformat.open(path) as container:
            return bitstack.Packed(str(path), container.root, container.size, ())

    monkeypatch.setattr(bitstack, "pack", pack)
    monkeypatch.setattr(demo, "WINDOW", 64)
    monkeypatch.setattr(demo, "WINDOWS", 2)
    monkeypatch.setattr(demo, "NEW_TOKENS", 4)
    return packed


def test_the_demo_runs_to_its_end(
    quick: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.main(["--model", str(tiny_model), "--work", str(tmp_path / "work"), "--budgets", *BUDGETS])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert re.findall(r"^== (\d)/7 ", out, re.MULTILINE) == list("1234567")
    assert len(re.findall(r"^   \d+\.\d s$", out, re.MULTILINE)) == 7
    assert "less text and fewer designs" in out
    assert "OK root " in out
    assert len(re.findall(r"read +[\d,]+ bytes in \d+ requests", out)) == 3
    assert len(re.findall(r"perplexity [\d,.]+", out)) == 3
    grown, shrunk = re.findall(r"(\S+)  resident ([\d,]+) bytes; read ([\d,]+) bytes", out)
    assert (grown[0], shrunk[0]) == ("60KiB", "20KiB")
    assert int(grown[2].replace(",", "")) > 0
    assert shrunk[2] == "0"
    assert "the same text as before it grew" in out
    assert "python-documentation.txt" in out
    assert [line.split()[0] for line in out.splitlines()[-4:-1]] == list(BUDGETS)
    assert "of memory at any time" in out.splitlines()[-1]


def test_reuse_keeps_the_file_of_the_same_model_only(quick: list[str], tiny_model: Path, tmp_path: Path) -> None:
    model = str(tiny_model)
    for reuse in (True, True, False):
        demo.packed(model, tmp_path, reuse=reuse)
    assert quick == [model, model]
    note = tmp_path / "model.json"
    note.write_text(note.read_text().replace('"seed": 0', '"seed": 1'))
    demo.packed(model, tmp_path, reuse=True)
    assert len(quick) == 3


def test_counts_that_differ_stop_the_demo(tiny_bstk: Path) -> None:
    with RangeServer(tiny_bstk) as server, demo.counted(server) as compare, bsformat.open(server.url) as container:
        compare(container)
        container.source.requests += 1
        with pytest.raises(bsformat.BstkError, match="the loader counts 2 requests"):
            compare(container)


def test_the_demo_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--model", str(tmp_path / "none.gguf"), "--work", str(tmp_path / "work")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"demo: error: {tmp_path}/none.gguf: no such file")


def test_a_text_that_is_missing_is_refused_before_packing(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--model", "m", "--work", str(tmp_path), "--text", str(tmp_path / "none.txt")]) == 1
    assert "no such text" in capsys.readouterr().err
    assert quick == []


def test_the_command_that_it_shows_packs_the_same() -> None:
    words = shlex.split(demo.command("a model", Path("model.bstk")))
    assert words[:2] == ["bstk", "pack"]
    args = build_parser().parse_args(words[1:])
    assert (args.model, args.output) == ("a model", "model.bstk")
    assert pack_command.recipe_from(args) == bitstack.Recipe().changed(demo.QUICK)


@pytest.mark.model
def test_packing_a_gguf_file_in_a_pipe_is_silent(bstk_process: Bstk, smollm2_gguf: Path, tmp_path: Path) -> None:
    options = [
        *PACK_OPTIONS,
        *("--linear-designs", "b1", "--linear-ranks", "1", "--no-linear-walk"),
        *("--token-designs", "b1", "--token-ranks", "1", "--no-token-walk"),
        *("--eval-curve-points", "1"),
    ]
    ended = bstk_process("pack", smollm2_gguf, "-o", tmp_path / "out.bstk", *options)
    assert (ended.code, ended.err) == (0, "")
    assert "211 tensors" in ended.out
