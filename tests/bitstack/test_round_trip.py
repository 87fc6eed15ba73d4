"""From a model directory to a file and back; `test_architectures.py` has what holds for every architecture."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import bitstack
import bsformat
from bitstack.change import Change
from bitstack.shell import Shell
from bitstack.targets import find_targets

IDS = (torch.arange(40) * 7 % 250).view(2, 20)


@pytest.fixture
def loaded(packed: Callable[[str], Any]) -> Iterator[Callable[..., Any]]:
    models = []

    def load(kind: str, budget: Any = "100%", **options: Any) -> Any:
        models.append(bitstack.load(packed(kind).path, budget, "cpu", **options))
        return models[-1]

    yield load
    for model in models:
        model.bitstack.close()


def _tensors() -> list[torch.Tensor]:
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter) and not o.is_meta]


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2"])
def test_the_dense_weights_never_exist(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {s for t in find_targets(packed(kind).model) for s in ((t.rows, t.columns), (t.columns, t.rows))}
    counts = []
    put, prepare = Change.put, Shell.change

    def change(self: Shell) -> Change:
        if not counts:  # nothing is filled yet
            assert all(p.is_meta for p in self.model.parameters())
        return prepare(self)

    def counting(self: Change, block: bsformat.Block, payload: bytes | memoryview) -> None:
        put(self, block, payload)
        if block.number % 40 == 0:
            counts.append(sum(t.is_floating_point() and tuple(t.shape) in shapes for t in _tensors()))

    gc.collect()
    before = sum(t.is_floating_point() and tuple(t.shape) in shapes for t in _tensors())
    monkeypatch.setattr(Shell, "change", change)
    monkeypatch.setattr(Change, "put", counting)
    model = loaded(kind)
    assert len(counts) >= 3
    assert set(counts) == {before}
    own = [*model.named_parameters(), *model.named_buffers()]
    assert not [n for n, v in own if v.is_meta]
    assert not [n for n, v in own if tuple(v.shape) in shapes]


@pytest.mark.parametrize(
    ("kind", "embedding"),
    [("llama-tied", "model.embed_tokens"), ("gpt2", "transformer.wte"), ("opt", "model.decoder.embed_tokens")],
)
def test_tied_weights_are_stored_and_held_once(loaded: Callable[..., Any], kind: str, embedding: str) -> None:
    model = loaded(kind)
    container = model.bitstack.container
    assert dict(container.metadata.aliases) == {"lm_head.weight": f"{embedding}.weight"}
    assert "lm_head.weight" not in container.model_tensors
    assert model.get_submodule(embedding).packed is model.lm_head.packed


def test_tying_again_changes_nothing(loaded: Callable[..., Any]) -> None:
    model = loaded("llama-tied")
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits.clone()
    model.tie_weights()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_untied_weights_have_no_alias(loaded: Callable[..., Any]) -> None:
    container = loaded("qwen2").bitstack.container
    assert dict(container.metadata.aliases) == {}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(container.model_tensors)


def test_a_tied_weight_serves_a_scaled_embedding_and_a_head(loaded: Callable[..., Any]) -> None:
    model = loaded("gemma")
    assert type(model.model.embed_tokens).__name__ == "GemmaTextScaledWordEmbedding"
    assert model.lm_head.packed.dense().equal(model.model.embed_tokens.weight.dense())
    assert dict(model.named_modules())["model.embed_tokens.packed_weight"].packed is model.lm_head.packed


def test_generation_settings_and_tokenizer_survive(packed: Callable[[str], Any], loaded: Callable[..., Any]) -> None:
    pack, model = packed("llama-gqa"), loaded("llama-gqa")
    assert model.generation_config.max_new_tokens == 7
    assert model.generation_config.eos_token_id == 257
    assert model.generate(IDS[:1], do_sample=False, eos_token_id=None).shape[1] == 20 + 7
    tokenizer = model.bitstack.tokenizer()
    assert (
        tokenizer("sea and sky").input_ids == bitstack.load_tokenizer(model.bitstack.container)("sea and sky").input_ids
    )
    assert tokenizer.decode(tokenizer("sea and sky").input_ids) == "sea and sky"
    assert model.config.to_dict()["hidden_size"] == pack.model.config.hidden_size


def test_the_file_says_what_it_is(packed: Callable[[str], Any], small: bitstack.Recipe) -> None:
    pack = packed("llama-untied")
    with bsformat.open(pack.path, root=pack.result.root) as container:
        extra = container.metadata.extra
        (curve,) = container.metadata.curves
    assert pack.result.path == str(pack.path)
    assert pack.result.size == pack.path.stat().st_size == container.size
    assert extra["model"] == {"name": "model", "class": "LlamaForCausalLM", "parameters": 99904}
    assert extra["calibration"] == {"text": "self", "tokens": 256, "window": 32}
    assert bitstack.Recipe.from_json(extra["recipe"]) == small
    assert (curve.metric, curve.text, curve.tokens, curve.window) == ("perplexity", "self", 64, 32)
    assert len(curve.points) == 3
    assert curve.points[-1][0] == len(container)
    assert curve.points[-1][1] < curve.points[0][1]
    assert bsformat.verify(str(pack.path)) is not None
    assert [p.name for p in pack.path.parent.iterdir() if p.name.startswith(".")] == []


def test_less_and_more_memory(loaded: Callable[..., Any]) -> None:
    """Every budget gives the blocks of its plan; the way there does not matter."""
    model = loaded("gpt2", "40%")
    container = model.bitstack.container
    counts, logits = [], []
    for budget in ("40%", "70%", "100%"):
        model.bitstack.resize(budget)
        assert model.bitstack.plan == container.plan(budget)
        assert model.bitstack.resident_bytes <= container.plan(budget).budget
        counts.append(model.bitstack.plan.n_blocks)
        logits.append(model(IDS).logits)
    assert counts == sorted(set(counts))
    for budget, wanted in (("70%", logits[1]), ("40%", logits[0]), ("100%", logits[2])):
        model.bitstack.resize(budget)
        assert torch.equal(model(IDS).logits, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_blocks_are_all_blocks_in_every_type(
    make_model: Callable[..., Any], save_model: Callable[..., Any], small: Any, tmp_path: Any, dtype: torch.dtype
) -> None:
    """Raw tensors stored as bfloat16 take twice their bytes in float32; a percentage counts blocks all the same."""
    save_model(make_model("gemma").to(torch.bfloat16), tmp_path / "model")
    bitstack.pack(tmp_path / "model", tmp_path / "model.bstk", recipe=small)
    with bsformat.open(tmp_path / "model.bstk") as container:
        tensors = container.model_tensors
        assert {t.dtype for t in tensors.values()} == {"BF16"}
        model = bitstack.load(container, "100%", "cpu", dtype)
        assert model.bitstack.plan.n_blocks == len(container)
        raw = sum(t.dense_bytes for t in tensors.values() if not t.packed)
        assert model.bitstack.widening == (raw if dtype == torch.float32 else 0)
        assert model.bitstack.resident_bytes == container.total_bytes + model.bitstack.widening
        # In bytes, every resident one counts, and so fewer blocks fit.
        model.bitstack.resize(container.total_bytes)
        assert model.bitstack.resident_bytes <= container.total_bytes
        assert (model.bitstack.plan.n_blocks < len(container)) == (dtype == torch.float32)
        assert model(IDS).logits.dtype == dtype
