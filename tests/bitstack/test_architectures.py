"""Every architecture, packed, loaded and resized: what holds for all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack.layers import BitStackEmbedding, BitStackLinear, BitStackParameter
from bitstack.packed import PackedTensor
from bitstack.targets import survey
from bitstack.task import model_class, task_of

#: kind -> how many tensors are packed, and one of them that says something about the architecture.
PACKED = {
    "llama-tied": (15, "model.embed_tokens.weight"),
    "llama-untied": (16, "lm_head.weight"),
    "llama-gqa": (16, "model.layers.0.self_attn.k_proj.weight"),
    "mistral": (16, "model.layers.1.mlp.down_proj.weight"),
    "qwen2": (16, "model.layers.0.self_attn.q_proj.weight"),
    "qwen3": (16, "model.layers.0.self_attn.q_proj.weight"),
    "gemma": (15, "model.embed_tokens.weight"),
    "gemma2": (15, "model.embed_tokens.weight"),
    "gemma3": (15, "model.embed_tokens.weight"),
    "phi": (14, "model.layers.0.mlp.fc1.weight"),
    "phi3": (10, "model.layers.0.self_attn.qkv_proj.weight"),
    "gpt2": (10, "transformer.h.0.attn.c_attn.weight"),
    "gpt-neox": (10, "gpt_neox.layers.0.attention.query_key_value.weight"),
    "opt": (14, "model.decoder.embed_positions.weight"),
    "bloom": (9, "transformer.h.0.self_attention.query_key_value.weight"),
    "falcon": (9, "transformer.h.0.self_attention.query_key_value.weight"),
    "mixtral": (14, "model.layers.0.mlp.experts.gate_up_proj"),
    "qwen3-moe": (14, "model.layers.1.mlp.experts.down_proj"),
    "gpt-oss": (14, "model.layers.0.mlp.experts.gate_up_proj"),
    "llama4": (20, "model.layers.0.feed_forward.experts.gate_up_proj"),
    "bert": (15, "cls.predictions.transform.dense.weight"),
    "modernbert": (10, "model.layers.0.attn.Wqkv.weight"),
    "bert-encoder": (15, "pooler.dense.weight"),
    "t5": (33, "decoder.block.0.layer.1.EncDecAttention.q.weight"),
}
KINDS = list(PACKED)
EXPERTS = {"mixtral": 4, "qwen3-moe": 8, "gpt-oss": 4, "llama4": 4}
IDS = (torch.arange(40) * 7 % 250).view(2, 20)


def run(model: Any) -> torch.Tensor:
    """Logits, or what an encoder without a head returns."""
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {})
    output = model(**inputs)
    result: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return result


def packed_tensors(model: Any) -> dict[str, PackedTensor]:
    return {m.packed.tensor.name: m.packed for m in model.modules() if hasattr(m, "packed")}


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture
def loaded(packed: Callable[[str], Any]) -> Iterator[Callable[..., Any]]:
    models = []

    def load(kind: str, budget: Any = "100%", **options: Any) -> Any:
        models.append(bitstack.load(packed(kind).path, budget, "cpu", **options))
        return models[-1]

    yield load
    for model in models:
        model.bitstack.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_packed(make_model: Callable[..., Any], kind: str) -> None:
    model = make_model(kind)
    found = survey(model)
    names = {t.name for t in found.targets}
    count, telling = PACKED[kind]
    assert len(found.targets) == len(names) == count
    assert telling in names
    large = {n for n, p in model.named_parameters() if p.ndim > 1 and p.shape[-2:].numel() >= 1024}
    assert names == large
    for target in found.targets:
        shape = tuple(model.get_parameter(target.name).shape)
        stored = (*shape[:-2], shape[-1], shape[-2]) if target.transposed else shape
        assert target.shape == stored
        assert target.experts == (EXPERTS[kind] if len(shape) == 3 else 0)
        flipped = {"gpt2": ".h.", "gpt-oss": "experts", "llama4": "experts"}.get(kind)
        assert target.transposed == (flipped is not None and flipped in target.name)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_close_to_the_dense_ones(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str
) -> None:
    dense, model = packed(kind).model, loaded(kind)
    assert type(model) is type(dense)
    assert not model.training
    wanted = run(dense)
    full = error(run(model), wanted)
    # Eight levels; measured 0.03 to 0.24. One wrong tensor makes it 0.5 and more.
    assert full < 0.3
    least, most = model.bitstack.container.minimum_bytes, model.bitstack.container.total_bytes
    little = loaded(kind, f"{100 * (least + 0.15 * (most - least)) / most:.0f}%")
    assert error(run(little), wanted) > 1.5 * full


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_rebuilt_weights(
    loaded: Callable[..., Any], make_model: Callable[..., Any], kind: str
) -> None:
    """The layers and the model around them add nothing of their own: dense layers with the same weights agree."""
    for budget in ("100%", "60%"):
        model, dense = loaded(kind, budget), make_model(kind)
        tensors = packed_tensors(model)
        assert set(tensors) == {t.name for t in survey(dense).targets}
        for name, tensor in tensors.items():
            dense.get_parameter(name).copy_(tensor.dense())
        # Float32 rounding, made larger by two layers.
        assert error(run(model), run(dense)) < 1e-5
    if dense.can_generate():
        choice = {"do_sample": False, "max_new_tokens": 4}
        assert torch.equal(model.generate(IDS[:1], **choice), dense.generate(IDS[:1], **choice))


@pytest.mark.parametrize("kind", KINDS)
def test_every_use_runs_packed(packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str) -> None:
    model = loaded(kind)
    container = model.bitstack.container
    modules = dict(model.named_modules())
    uses = [use for t in survey(packed(kind).model).targets for use in t.uses]
    for use in uses:
        plain = BitStackEmbedding if use.role == "embedding" else BitStackLinear
        name = f"{use.module}.packed_{use.attribute}" if use.own_forward else use.module
        assert type(modules[name]) is (BitStackParameter if use.own_forward else plain)
    assert sum(hasattr(m, "packed") for m in modules.values()) == len(uses)
    for tensor in packed_tensors(model).values():
        assert {tensor.levels(group) for group in range(tensor.tensor.n_chains)} == {8}
    assert not [n for n, p in model.named_parameters() if p.ndim > 1 and p.shape[-2:].numel() >= 1024]
    assert model.bitstack.plan.n_blocks == len(container)
    assert model.bitstack.resident_bytes == container.total_bytes + model.bitstack.widening


@pytest.mark.parametrize("kind", KINDS)
def test_less_and_more_memory(loaded: Callable[..., Any], kind: str) -> None:
    """Every budget is kept and gives its own logits; the way there does not matter."""
    model = loaded(kind)
    least = model.bitstack.container.minimum_bytes + model.bitstack.widening
    most = model.bitstack.resident_bytes
    budgets = [least + (most - least) * share // 100 for share in (25, 60, 100)]
    logits, counts = [], []
    for budget in budgets:
        fresh = loaded(kind, budget)
        assert fresh.bitstack.resident_bytes <= budget
        logits.append(run(fresh))
        counts.append(fresh.bitstack.plan.n_blocks)
    assert counts == sorted(set(counts))
    for i in (0, 2, 1, 2):
        model.bitstack.resize(budgets[i])
        assert model.bitstack.resident_bytes <= budgets[i]
        assert torch.equal(run(model), logits[i])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_packed_is_exact(packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str) -> None:
    pack = packed(kind)
    model = loaded(kind)
    targets = {t.name for t in survey(pack.model).targets}
    raw = {n: p for n, p in pack.model.named_parameters() if n not in targets}
    assert set(pack.result.raw) == set(raw)
    assert pack.result.why_raw == {}
    assert len(raw) > 4
    state = model.state_dict()
    for name, value in raw.items():
        assert torch.equal(state[name], value), name
    for name, value in pack.model.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


@pytest.mark.parametrize("kind", EXPERTS)
def test_each_expert_is_a_chain_of_its_own(packed: Callable[[str], Any], kind: str) -> None:
    with bsformat.open(packed(kind).path) as container:
        stacks = [t for t in container.model_tensors.values() if t.packed and len(t.shape) == 3]
        assert len(stacks) == 4
        for tensor in stacks:
            assert tensor.n_chains == tensor.shape[0] == EXPERTS[kind]
            assert tensor.group_rows == tensor.shape[1]
        # Their blocks are placed one by one: an expert's last level is not stored beside another's.
        places = [container.block(i) for i in range(container.index.required, len(container))]
        firsts = {b.first_row for b in places if b.tensor.name == stacks[0].name}
        assert firsts == {e * stacks[0].group_rows for e in range(EXPERTS[kind])}


@pytest.mark.parametrize("kind", [*EXPERTS, "falcon", "gemma", "opt"])
def test_stand_ins_rebuild_nothing(loaded: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module with its own forward computes goes through the chains: no matrix is ever written out."""
    model = loaded(kind)
    asked: list[str] = []
    matrix = PackedTensor.matrix

    def counting(self: PackedTensor, *args: Any) -> torch.Tensor:
        asked.append(self.tensor.name)
        return matrix(self, *args)

    monkeypatch.setattr(PackedTensor, "matrix", counting)
    run(model)
    assert asked == []
    parameters = [m for m in model.modules() if isinstance(m, BitStackParameter)]
    assert len(parameters) >= 1
    parameters[0].stand_in().mean()
    assert set(asked) == {parameters[0].packed.tensor.name}


@pytest.mark.parametrize("kind", ["falcon", "gemma", "opt"])
def test_stand_ins_follow_the_model_to_another_type(loaded: Callable[..., Any], kind: str) -> None:
    model = loaded(kind)
    wanted = run(model)
    model.to(torch.bfloat16)
    got = run(model)
    assert got.dtype == torch.bfloat16
    # Eight bits of mantissa through two layers; measured 0.005 to 0.02.
    assert error(got.float(), wanted) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it_from_a_directory(
    packed: Callable[[str], Any], loaded: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    import bitstack.transformers  # noqa: F401
    from bitstack.repository import write_repository

    write_repository(packed(kind).path, tmp_path / "repository")
    auto = model_class(task_of(packed(kind).model.config))
    model = auto.from_pretrained(tmp_path / "repository", dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    again = auto.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.inference_mode():
        wanted = run(loaded(kind, dtype=torch.float32))
        assert torch.equal(run(model), wanted)
        assert torch.equal(run(again), wanted)
    model.bitstack.close()
    again.bitstack.close()
