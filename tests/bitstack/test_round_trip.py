"""From a model directory to a file and back, for several architectures."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import bitstack
import bsformat
from bitstack.layers import BitStackEmbedding, BitStackLinear
from bitstack.shell import Shell
from bitstack.targets import find_targets

KINDS = ["llama-tied", "llama-untied", "llama-gqa", "gpt2", "qwen2", "gpt-neox", "opt", "gemma"]
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


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_close_to_the_dense_ones(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str
) -> None:
    dense, model = packed(kind).model, loaded(kind)
    assert type(model) is type(dense)
    assert not model.training
    wanted = dense(IDS).logits
    # Eight levels; measured 0.03 (gemma) to 0.14 (llama-tied). One wrong tensor makes it 0.5 and more.
    assert _error(model(IDS).logits, wanted) < 0.2
    half = loaded(kind, "55%")
    assert _error(half(IDS).logits, wanted) > _error(model(IDS).logits, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_rebuilt_weights(
    packed: Callable[[str], Any], loaded: Callable[..., Any], make_model: Callable[..., Any], kind: str
) -> None:
    """The layers and the model around them add nothing of their own: dense layers with the same weights agree."""
    model, dense = loaded(kind), make_model(kind)
    weights = {name: module.weight for name, module in model.named_modules() if hasattr(module, "packed")}
    assert len(weights) == sum(len(t.uses) for t in find_targets(dense))
    for name, weight in weights.items():
        dense.get_submodule(name).weight.copy_(weight)
    # Float32 rounding, made larger by two layers.
    assert _error(model(IDS).logits, dense(IDS).logits) < 1e-4
    assert torch.equal(
        model.generate(IDS[:1], do_sample=False, max_new_tokens=4),
        dense.generate(IDS[:1], do_sample=False, max_new_tokens=4),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_packed_is_exact(packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str) -> None:
    pack = packed(kind)
    model = loaded(kind)
    targets = {t.name for t in find_targets(pack.model)}
    raw = {n: p for n, p in pack.model.named_parameters() if n not in targets}
    assert set(pack.result.raw) == set(raw)
    assert len(raw) > 4
    state = model.state_dict()
    for name, value in raw.items():
        assert torch.equal(state[name], value), name
    for name, value in pack.model.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


def _tensors() -> list[torch.Tensor]:
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter) and not o.is_meta]


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2"])
def test_the_dense_weights_never_exist(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {s for t in find_targets(packed(kind).model) for s in ((t.rows, t.columns), (t.columns, t.rows))}
    counts = []
    put = Shell.put

    def counting(self: Shell, block: bsformat.Block, payload: bytes | memoryview) -> None:
        if not counts:  # nothing is filled yet
            assert all(p.is_meta for p in self.model.parameters())
        put(self, block, payload)
        if block.number % 40 == 0:
            counts.append(sum(t.is_floating_point() and tuple(t.shape) in shapes for t in _tensors()))

    gc.collect()
    before = sum(t.is_floating_point() and tuple(t.shape) in shapes for t in _tensors())
    monkeypatch.setattr(Shell, "put", counting)
    model = loaded(kind)
    assert len(counts) >= 3
    assert set(counts) == {before}
    own = [*model.named_parameters(), *model.named_buffers()]
    assert not [n for n, v in own if v.is_meta]
    assert not [n for n, v in own if tuple(v.shape) in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_was_packed_runs_packed(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str
) -> None:
    model = loaded(kind)
    container = model.bitstack.container
    expected = {use.module: use.role for t in find_targets(packed(kind).model) for use in t.uses}
    found = {n: m for n, m in model.named_modules() if isinstance(m, (BitStackEmbedding, BitStackLinear))}
    assert set(found) == set(expected)
    for name, module in found.items():
        assert isinstance(module, BitStackEmbedding) == (expected[name] == "embedding")
        assert module.packed.levels(0) == 8
    assert model.bitstack.plan.n_blocks == len(container)
    assert model.bitstack.resident_bytes == container.total_bytes + model.bitstack.widening


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


def test_a_raw_tied_weight_stays_tied(loaded: Callable[..., Any]) -> None:
    model = loaded("gemma")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


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


def test_the_file_says_what_it_is(packed: Callable[[str], Any]) -> None:
    pack = packed("llama-untied")
    with bsformat.open(pack.path, root=pack.result.root) as container:
        extra = container.metadata.extra
        (curve,) = container.metadata.curves
    assert pack.result.path == str(pack.path)
    assert pack.result.size == pack.path.stat().st_size == container.size
    assert extra["model"] == {"name": "model", "class": "LlamaForCausalLM", "parameters": 99904}
    assert extra["calibration"] == {"text": "self", "tokens": 256, "window": 32}
    assert extra["recipe"]["linear"] == {
        "ranks": [8, 8, 4, 4, 4, 2, 2, 2],
        "factors": "F8_E4M3",
        "stretch": 1.1,
        "walk": True,
    }
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
