"""`bstk export`: what it prints, writes and refuses; a real model through both doors."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack.tools import convert_options
from tests.tools.conftest import Bstk

pytest_plugins = ["tests.realmodel"]

Failed = Callable[..., str]


def test_options_say_what_the_library_takes() -> None:
    from bitstack.convert import ORDERS
    from bitstack.export import DTYPES
    from bitstack.export_gguf import TYPES

    assert {"safetensors": tuple(DTYPES), "gguf": tuple(TYPES)} == convert_options.TARGETS
    assert convert_options.ORDERS == ORDERS


def test_safetensors(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with bsformat.open(tiny_bstk) as container:
        plan, root = container.plan("70%"), container.root
    ended = bstk("export", tiny_bstk, "--to", "safetensors", "-o", out, "--budget", "70%", "--dtype", "float16")
    assert (ended.code, ended.err) == (0, "")
    assert f"{out}  safetensors in float16" in ended.out
    assert f"{root}, {plan.n_blocks} of" in ended.out
    assert "model.safetensors" in ended.out
    cut = ("--shard-size", "50KB", "--force", "--json", "--root", root)
    ended = bstk("export", tiny_bstk, "--to", "safetensors", "-o", out, *cut)
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["dtype"] == "float32"
    assert "model-00001-of-00010.safetensors" in ended.json["files"]


def test_gguf(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ended = bstk("export", tiny_bstk, "--to", "gguf", "-o", out, "--dtype", "q8_0")
    assert (ended.code, ended.err) == (0, "")
    assert f"{out}  gguf in q8_0" in ended.out
    assert "files" not in ended.out
    assert "all blocks" in ended.out
    ended = bstk("export", tiny_bstk, "--to", "gguf", "-o", out, "--force", "--json")
    assert (ended.code, ended.err, ended.json["dtype"], ended.json["notes"]) == (0, "", "float32", [])
    assert out.stat().st_size > ended.json["size"]


def test_refused(bstk: Bstk, failed: Failed, tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = ("export", tiny_bstk, "-o", out, "--to")
    assert bstk("export", tiny_bstk, "-o", out).code == 2
    assert "--dtype q8_0 is for gguf" in bstk(*both, "safetensors", "--dtype", "q8_0").err
    assert "--shard-size is for safetensors" in bstk(*both, "gguf", "--shard-size", "1GB").err
    assert bstk(*both, "gguf", "--dtype", "q4_k").code == 2
    assert failed(*both, "safetensors", "--budget", "1KiB").endswith("[budget-too-small]")
    assert failed(*both, "gguf", "--root", "0" * 64).endswith("[root-mismatch]")
    assert not out.exists()
    out.write_text("mine")
    assert failed(*both, "gguf").endswith("--force replaces it [output-exists]")
    assert "is no folder" in failed(*both, "safetensors", "--force")
    assert out.read_text() == "mine"
    assert failed("export", tiny_bstk, "-o", tmp_path / "no" / "out", "--to", "gguf").endswith("[write]")
    assert failed("export", tmp_path, "-o", tmp_path / "x", "--to", "gguf")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


def at(path: Path, budget: str) -> tuple[Any, int]:
    """A model in float32 with the blocks that a budget buys as the file counts it, and how many those are."""
    with bsformat.open(path) as container:
        plan = container.plan(budget)
    model = bitstack.load(path, budget, "cpu", torch.float32)
    model.bitstack.resize(plan.resident_bytes + model.bitstack.widening)
    assert model.bitstack.plan.n_blocks == plan.n_blocks
    return model, plan.n_blocks


def differ(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((logits - wanted).abs().max() / wanted.abs().max())


@pytest.mark.model
def test_a_real_model(bstk: Bstk, smollm2_bstk: Path, tmp_path: Path) -> None:
    """SmolLM2 at a budget, in plain transformers from safetensors and GGUF, and in llama.cpp where it is installed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, n_blocks = at(smollm2_bstk, "80MiB")
    tokenizer = ours.bitstack.tokenizer()
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        wanted = ours(ids).logits
    common = ("export", smollm2_bstk, "--budget", "80MiB", "--dtype", "float16", "--json", "--to")
    for options, source in (
        (("safetensors", "-o", tmp_path / "dense", "--shard-size", "100MB"), {"": tmp_path / "dense"}),
        (("gguf", "-o", tmp_path / "m.gguf"), {"": tmp_path, "gguf_file": "m.gguf"}),
    ):
        made = bstk(*common, *options)
        assert (made.code, made.err, made.json["n_blocks"]) == (0, "", n_blocks)
        folder, file = source.pop(""), source
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **file, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits = model(ids).logits
        assert differ(logits, wanted) < 5e-3
        assert torch.equal(logits.argmax(-1), wanted.argmax(-1))
        there = AutoTokenizer.from_pretrained(folder, **file)
        assert there("In 1969 42!").input_ids == tokenizer("In 1969 42!").input_ids
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp did not read it: llama-cpp-python is not installed")
    llama = importlib.import_module("llama_cpp").Llama(str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, logits_all=True)
    assert llama.tokenize(b"In 1969 42!") == tokenizer("In 1969 42!").input_ids
    llama.eval(ids[0].tolist())
    logits = torch.from_numpy(llama.scores[: ids.shape[1]].copy())
    llama.close()
    assert differ(logits, wanted[0]) < 1e-2  # it keeps keys and values in 16 bits
    assert torch.equal(logits.argmax(-1), wanted[0].argmax(-1))
