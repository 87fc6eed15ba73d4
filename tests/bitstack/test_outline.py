"""Weights read one by one: the same values as transformers loads, whatever the files call them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
from bitstack import outline as outlines
from bitstack.checkpoint import open_checkpoint
from bitstack.outline import Tensors, open_outline
from bitstack.pipeline import pack
from bitstack.work import WorkFolder
from bsformat.errors import ModelError


@pytest.fixture
def work(tmp_path: Path) -> Any:
    with WorkFolder(tmp_path / "work", {}) as folder:
        yield folder


def _same(folder: Path, work: WorkFolder, dtype: torch.dtype = torch.float32) -> Tensors:
    """Every tensor as `open_checkpoint` loads it, by the same names."""
    outline, dense = open_outline(folder), open_checkpoint(folder)
    assert all(p.is_meta for p in outline.model.parameters())
    assert type(outline.model) is type(dense.model)
    assert not outline.model.training
    assert outline.files == dense.files
    assert (outline.place.name, outline.dtype) == (dense.name, dense.dtype)
    values, state = Tensors(outline, work), dense.model.state_dict()
    assert set(outline.names) | set(outline.aliases) == set(state)
    for name, value in values.items():
        assert value.dtype == dtype
        assert torch.equal(value.float(), state[name].float()), name
    for alias, name in outline.aliases.items():
        assert torch.equal(state[alias], state[name])
    return values


@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied", "gpt2", "gpt-neox", "opt"])
def test_values_are_those_that_transformers_loads(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, work: WorkFolder, kind: str
) -> None:
    _same(save_model(make_model(kind), tmp_path / "model"), work)
    assert not work.has("weights.safetensors")


def test_values_stay_in_their_own_type(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, work: WorkFolder
) -> None:
    _same(save_model(make_model("qwen2").to(torch.bfloat16), tmp_path / "model"), work, torch.bfloat16)


def test_weights_in_several_files(
    make_model: Callable[..., Any], tmp_path: Path, work: WorkFolder, tokenizer: Any
) -> None:
    make_model("llama-untied").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    outline = open_outline(tmp_path / "model")
    assert len(outline.sources) == 1 + len(list((tmp_path / "model").glob("*.safetensors")))
    _same(tmp_path / "model", work)
    assert not work.has("weights.safetensors")


def _torch_file(folder: Path, state: dict[str, torch.Tensor]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def test_weights_of_torch(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, work: WorkFolder
) -> None:
    model = make_model("gpt2")
    folder = save_model(model, tmp_path / "model")
    _torch_file(folder, model.state_dict())
    _same(folder, work)
    assert not work.has("weights.safetensors")


def test_names_without_the_prefix_of_the_base_model(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, work: WorkFolder
) -> None:
    """As GPT-2's own files have them."""
    model = make_model("gpt2")
    folder = save_model(model, tmp_path / "model")
    _torch_file(folder, model.transformer.state_dict())
    _same(folder, work)
    assert not work.has("weights.safetensors")


def test_experts_that_files_hold_one_by_one(save_model: Callable[..., Path], tmp_path: Path, work: WorkFolder) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    folder = save_model(MixtralForCausalLM(config), tmp_path / "model")
    values = _same(folder, work)
    assert not work.has("weights.safetensors")
    # One tensor of the model is made of several of the file.
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert len(values._weights._groups[name].sources) == 8
    assert values.get(name).shape == (4, 80, 32)


def test_what_cannot_be_read_one_by_one_is_copied_once(
    make_model: Callable[..., Any],
    save_model: Callable[..., Path],
    small: bitstack.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GGUF file, say: transformers loads all of it, and the copy is read from then on."""
    folder = save_model(make_model("llama-tied"), tmp_path / "model")
    root = pack(folder, tmp_path / "a.bstk", recipe=small).root
    monkeypatch.setattr(Tensors, "_direct", lambda self: None)
    assert pack(folder, tmp_path / "b.bstk", recipe=small, keep_work=True, work=tmp_path / "work").root == root
    loads = []
    monkeypatch.setattr(outlines, "open_checkpoint", loads.append)
    outline = open_outline(folder)
    assert (tmp_path / "work" / "weights.safetensors").stat().st_size > sum(
        p.nelement() * 4 for p in outline.model.parameters()
    )
    assert pack(folder, tmp_path / "c.bstk", recipe=small, work=tmp_path / "work").root == root
    assert loads == []


def test_a_model_that_must_be_whole(
    make_model: Callable[..., Any],
    save_model: Callable[..., Path],
    small: bitstack.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is packed all the same, and the result says why; the statistics differ by rounding only."""
    monkeypatch.setattr("bitstack.layerwise.has_fast_bfloat16", lambda: False)
    folder = save_model(make_model("gpt2"), tmp_path / "model")
    layers = pack(folder, tmp_path / "a.bstk", recipe=small)
    assert layers.whole == ""

    def refuse(self: Any, ids: torch.Tensor) -> None:
        raise ValueError("takes\nno layers")

    monkeypatch.setattr("bitstack.runner.LayerRunner.check", refuse)
    whole = pack(folder, tmp_path / "b.bstk", recipe=small)
    assert whole.whole == "takes no layers"
    assert abs(whole.size - layers.size) < 4096
    ids = torch.arange(20)[None]
    logits = []
    for result in (layers, whole):
        model = bitstack.load(result.path, "100%", "cpu")
        model.bitstack.close()
        logits.append(model(ids).logits)
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) < 0.1


# What is refused


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _refused(folder: Path, tmp_path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        pack(folder, tmp_path / "x.bstk")
    assert caught.value.where == str(folder)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("x.bstk*"))


@pytest.mark.parametrize("length", [0, 4, 1000, 200_000])
def test_truncated_weights(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, length: int
) -> None:
    folder = save_model(make_model("llama-untied"), tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    _refused(folder, tmp_path, "cannot be loaded as a language model")


def test_weights_of_another_shape(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_model(make_model("llama-untied"), tmp_path / "model")
    _edit(folder, intermediate_size=96)
    _refused(folder, tmp_path, r"mlp\.\w+_proj\.weight has shape \[\d+, \d+\], its configuration says")


def test_missing_tensors_are_not_made_up(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(make_model("llama-untied"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _refused(folder, tmp_path, "lack the tensor 'model.layers.0.mlp.down_proj.weight'")


def test_other_weights_are_another_packing(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """One bit makes another digest."""
    folder = save_model(make_model("llama-untied"), tmp_path / "model")
    before = open_outline(folder).digest()
    assert open_outline(folder).digest() == before
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_outline(folder).digest() != before
