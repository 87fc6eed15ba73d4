"""The measurements of tools/bench: texts out of data sets, packing random weights, decoding beside the dense model."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bitstack.tools.bench import decoding, packing, texts


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


def test_decoding_counts_both_models(
    tiny_bstk: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--budget", "1GiB", "--tokens", "3", "--repeats", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["decoding", str(tiny_bstk), "--dense", str(tiny_model), *options])
    before = torch.get_num_threads()
    try:
        decoding.main()
    finally:
        torch.set_num_threads(before)
    out = json.loads(capsys.readouterr().out)
    assert [row["threads"] for row in out["rows"]] == [1]
    assert all(out["rows"][0][name]["tokens_per_second"] > 0 for name in ("packed", "dense"))
    assert out["resident_bytes"]["dense"] > out["resident_bytes"]["packed"] > 0
    assert out["workspace_bytes"] >= 0  # As large as any test before in this process made it.
    assert 0 < out["largest_relative_error"] < 1e-5
    assert "threads" not in out["hardware"]


def test_decoding_refuses_to_time_wrong_products(
    tiny_bstk: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["decoding", str(tiny_bstk), "--dense", str(tiny_model), "--budget", "1GiB"])
    monkeypatch.setattr(decoding.kernels, "linear", lambda x, chain: x.new_zeros(1, chain.rows))
    with pytest.raises(SystemExit, match="off by 1 of its size"):
        decoding.main()


def test_decoding_times_every_token() -> None:
    class Model:
        def __init__(self) -> None:
            self.lengths: list[int] = []

        def __call__(self, input_ids: torch.Tensor, past_key_values: object, **_: object) -> object:
            self.lengths.append(input_ids.shape[1])
            out = type("Out", (), {})()
            out.logits, out.past_key_values = torch.zeros(1, 1, 7), past_key_values
            return out

    model = Model()
    prompt, steps = decoding.decode(model, torch.zeros(1, 5, dtype=torch.int64), 4)
    assert model.lengths == [5, 1, 1, 1, 1]
    assert prompt > 0
    assert len(steps) == 4
    assert decoding.rate([(1.0, [0.5, 0.25, 0.25])])["tokens_per_second"] == 4
