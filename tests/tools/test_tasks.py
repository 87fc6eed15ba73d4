"""Commands on models that are not causal, and on parameters that stay raw."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models import PACK_OPTIONS, save_tokenizer
from tests.tools.conftest import Bstk


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The directory of a random BERT, with or without its head."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

    def save(head: bool) -> Path:
        folder = tmp_path_factory.mktemp("bert")
        save_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.save_pretrained(folder)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            (BertForMaskedLM if head else BertModel)(config).save_pretrained(folder)
        return folder

    return save


def test_a_masked_model(
    bstk: Bstk, failed: Callable[..., str], bert: Callable[[bool], Path], tmp_path: Path, text_file: Path
) -> None:
    model, output = bert(True), tmp_path / "out.bstk"
    assert "name a text file with --calib FILE" in failed("pack", model, "-o", output, *PACK_OPTIONS)
    ended = bstk("pack", model, "-o", output, *PACK_OPTIONS, "--calib", text_file, "--json")
    assert (ended.code, ended.json["large_raw_tensors"], ended.json["why_raw"]) == (0, {}, {})
    measured = bstk("eval", output, "--text", text_file, "--budgets", "60%,100%", "--window", 32, "--json")
    assert measured.code == 0, measured.err
    values = [point["perplexity"] for point in measured.json["points"]]
    assert len(values) == 2
    # Random weights say nothing about a mask: about as many choices as there are tokens.
    assert all(100 < value < 1000 for value in values)
    assert "continues no prompt" in failed("generate", output, "--budget", "100%", "--prompt", "a")


def test_scales_that_are_not_tuned_are_said_to_be(
    bstk: Bstk, bert: Callable[[bool], Path], tiny_model: Path, tmp_path: Path, text_file: Path
) -> None:
    words, model = (*PACK_OPTIONS, "--calib", text_file, "--tune-steps", 2), bert(True)
    assert bstk("pack", tiny_model, "-o", tmp_path / "a", *words, "--json").json["untuned"] is None
    why = "only models that continue a text can be"
    assert bstk("pack", model, "-o", tmp_path / "b", *words, "--json").json["untuned"] == why
    assert f"  scales   not tuned: {why}\n" in bstk("pack", model, "-o", tmp_path / "c", *words).out
    short = (*words, "--calib-window", 256, "--eval-heldout-tokens", 1024)
    text_file = tmp_path / "short.txt"
    text_file.write_text("the old man sails over the wide sea and reads a book. " * 30, encoding="utf-8")
    ended = bstk("pack", tiny_model, "-o", tmp_path / "d", *short, "--calib", text_file, "--json")
    assert ended.json["untuned"] == "the text is too short"


def test_an_encoder_without_a_head(
    bstk: Bstk, failed: Callable[..., str], bert: Callable[[bool], Path], tmp_path: Path, text_file: Path
) -> None:
    output = tmp_path / "out.bstk"
    assert bstk("pack", bert(False), "-o", output, *PACK_OPTIONS, "--calib", text_file).code == 0
    assert bstk("inspect", output, "--json").json["curves"] == []
    line = failed("eval", output, "--text", text_file, "--budgets", "100%", "--window", 32)
    assert "is a BertModel, which says nothing about a text" in line


def test_what_stays_raw_is_named_with_the_reason(
    bstk: Bstk, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitstack.targets.MIN_SIDE", 64)
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "kv"]
    ended = bstk("pack", tiny_model, "-o", tmp_path / "a", *PACK_OPTIONS, "--json")
    assert ended.json["why_raw"] == dict.fromkeys(names, "a matrix of 32 by 64 is too small")
    assert ended.json["large_raw_tensors"].keys() == ended.json["why_raw"].keys()
    lines = bstk("pack", tiny_model, "-o", tmp_path / "b", *PACK_OPTIONS).out.splitlines()
    assert [line.split()[0].rstrip(",") for line in lines if "is too small" in line] == names
    assert bstk("inspect", tmp_path / "a", "--json").json["extra"]["raw"] == ended.json["why_raw"]
