"""The measurements of tools/bench that need no file: texts out of data sets, and packing random weights."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bitstack.tools.bench import packing, texts


def test_texts_are_the_passages_of_the_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lambada = [{"context": "It was a", "continuation": "cat"}, {"context": "So it", "continuation": "is"}]
    hellaswag = [{"query": "She sits. Then she", "choices": ["flies.", "stands."], "gold": 1}]
    for name, lines in (("lambada_x.jsonl", lambada), ("hellaswag_x.jsonl", hellaswag)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    monkeypatch.setattr(sys, "argv", ["texts", str(tmp_path), "-o", str(tmp_path / "out")])
    texts.main()
    assert (tmp_path / "out" / "lambada.txt").read_text("utf-8") == "It was a cat\n\nSo it is\n"
    assert (tmp_path / "out" / "hellaswag.txt").read_text("utf-8") == "She sits. Then she stands.\n"
    assert "lambada_x.jsonl" in capsys.readouterr().out
    (tmp_path / "lambada_x.jsonl").unlink()
    with pytest.raises(SystemExit, match="no file lambada"):
        texts.main()


def test_packing_counts_what_it_packs() -> None:
    shape = packing.SHAPES["tiny"]
    rows = packing.run(shape, "fast", 256, 1, torch.device("cpu"))
    layer = sum(rows * columns for group in shape["inputs"] for rows, columns in group)
    assert rows["elements"] == layer + shape["vocabulary"] * shape["width"]
    # Every design and its tail come to more than six bits a weight, and to fewer than 32 even on matrices so small.
    assert 6 < 8 * rows["bytes"] / rows["elements"] < 32
    assert set(rows["stages"]) == {"second moments", "decompose", "bytes"}
    assert sum(rows["shares"].values()) == pytest.approx(1, abs=1e-3)
