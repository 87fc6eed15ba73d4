"""Opening what is to be packed: what goes along, and every refusal in one line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitstack.checkpoint import TOKENIZER_FILES, clean_config, open_checkpoint
from bsformat.errors import ModelError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save_model: Any) -> Path:
    path: Path = save_model(make_model("llama-untied"), tmp_path_factory.mktemp("checkpoint") / "pristine")
    return path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A model directory of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def _refused(source: str | Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as caught:
        open_checkpoint(source)
    assert caught.value.where == str(source)
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 500
    return caught.value


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_checkpoint_is(folder: Path, make_model: Callable[..., Any]) -> None:
    checkpoint = open_checkpoint(folder)
    dense = make_model("llama-untied")
    assert checkpoint.name == "model"
    assert not checkpoint.model.training
    assert not any(p.requires_grad for p in checkpoint.model.parameters())
    state = checkpoint.model.state_dict()
    assert all(torch.equal(state[n], v) for n, v in dense.state_dict().items())
    assert set(checkpoint.files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(checkpoint.files) - {"config.json", "generation_config.json"} <= set(TOKENIZER_FILES)
    assert json.loads(checkpoint.files["config.json"])["model_type"] == "llama"
    assert checkpoint.tokenizer("ab").input_ids == [ord("a") - 33, ord("b") - 33]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_type_is_known_though_all_is_float32(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    save_model(make_model("qwen2").to(dtype), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == dtype
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}


def test_no_such_path(tmp_path: Path) -> None:
    for source in (tmp_path / "missing", "./missing", "missing.gguf"):
        _refused(source, "no such file or directory")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    _refused(path, "is a file, but no .gguf")


def test_a_damaged_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF but then nothing of the kind")
    _refused(path, "cannot be loaded as a language model")


def test_gguf_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("bitstack.checkpoint.find_spec", lambda name: None)
    _refused(tmp_path / "model.gguf", r"needs the package gguf: pip install 'bitstack\[gguf\]'")


@pytest.mark.parametrize("source", ["nobody/nothing", "no name at all?"])
def test_a_hub_id_that_is_not_there(source: str) -> None:
    _refused(source, "cannot be loaded as a language model")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    _refused(folder, "has no config.json")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _refused(folder, "has no weights")


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    _refused(folder, "has no usable tokenizer")


@pytest.mark.parametrize("data", ["{", '{"a": 1}', '{"added_tokens": [], "model": {"type": "BPE", "vocab": 3}}'])
def test_a_damaged_tokenizer(folder: Path, data: str) -> None:
    (folder / "tokenizer.json").write_text(data)
    _refused(folder, "has no usable tokenizer")


@pytest.mark.parametrize("data", ["{", "[]", '{"model_type": "no-such-architecture"}', '{"model_type": "clip"}', "{}"])
def test_a_config_that_makes_no_model(folder: Path, data: str) -> None:
    (folder / "config.json").write_text(data)
    _refused(folder, "is a 'clip'; what can be packed" if "clip" in data else "cannot be loaded as a language model")


@pytest.mark.parametrize("length", [0, 4, 1000, 200_000])
def test_truncated_weights(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    _refused(folder, "cannot be loaded as a language model")


def test_weights_of_another_shape(folder: Path) -> None:
    _edit(folder, intermediate_size=96)
    _refused(folder, "cannot be loaded as a language model")


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    """transformers fills them with random numbers and goes on."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in ("up", "down"):
        del weights[f"model.layers.0.mlp.{name}_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    _refused(folder, r"lack the tensor 'model.layers.0.mlp.down_proj.weight' \(2 in all\)")


def test_tied_weights_are_not_missing(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = open_checkpoint(save_model(make_model("llama-tied"), tmp_path)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("model_type", ["llama", "no-such-architecture"])
def test_code_beside_a_model_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    _edit(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, model_type=model_type)
    if model_type == "llama":
        config = json.loads(open_checkpoint(folder).files["config.json"])
        assert "auto_map" not in config
    else:
        _refused(folder, "cannot be loaded as a language model")
    assert not (folder / "mark").exists()
    assert "evil" not in sys.modules


def test_a_clean_configuration() -> None:
    dirty = {
        "model_type": "llama",
        "quantization_config": {"bits": 4},
        "auto_map": {"AutoConfig": "evil.C"},
        "_name_or_path": "/home/me/secret",
        "dtype": "float32",
        "hidden_size": 64,
    }
    assert clean_config(dirty) == b'{\n  "hidden_size": 64,\n  "model_type": "llama"\n}\n'
    assert "auto_map" in dirty
