"""Statistics taken one layer at a time: the same as those of the whole model, and never much of it in memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitstack import layerwise
from bitstack.calibrate import calibrate
from bitstack.collect import Statistics
from bitstack.evaluation import perplexity
from bitstack.layerwise import LayerwiseStatistics
from bitstack.outline import Outline, Tensors, open_outline
from bitstack.residency import Residency
from bitstack.runner import LayerRunner, Unsuitable, find_layers
from bitstack.targets import find_targets
from bitstack.text import Windows
from bitstack.work import WorkFolder
from bsformat.errors import ModelError

COUNTED, HELDOUT, LENGTH = 4, 2, 16
IDS = torch.randint(0, 250, (COUNTED + HELDOUT, LENGTH), generator=torch.Generator().manual_seed(0))
_SIZES = {"vocab_size": 258, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA = _SIZES | {"intermediate_size": 88, "num_key_value_heads": 2, "max_position_embeddings": 64}
#: name -> (model_type, settings)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", _LLAMA | {"tie_word_embeddings": True}),
    "llama-untied": ("llama", _LLAMA | {"tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"vocab_size": 258, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    # Half of the windows' length is out of sight of every other layer.
    "gemma2": ("gemma2", _LLAMA | {"head_dim": 16, "sliding_window": LENGTH // 2, "query_pre_attn_scalar": 16}),
    "falcon": ("falcon", _SIZES | {"alibi": True, "new_decoder_architecture": False}),
    "bloom": ("bloom", {"vocab_size": 258, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    # Layers in between: the embedding is narrower than they are.
    "opt": (
        "opt",
        _SIZES
        | {"ffn_dim": 88, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
}
KINDS = list(CONFIGS)


def _dense(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = CONFIGS[kind]
    config = AutoConfig.for_model(model_type, bos_token_id=256, eos_token_id=257, pad_token_id=1, **settings)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn(value.shape) * 0.1)
            else:
                value.copy_(torch.randn(value.shape) * (0.1 if "emb" in name or "wte" in name else 1 / math.sqrt(64)))
    return model.eval().requires_grad_(False)


class Setting:
    """A model on disk, and what runs it one layer at a time."""

    def __init__(self, outline: Outline, residency: Residency, work: WorkFolder, dense: Any) -> None:
        self.outline, self.residency, self.work, self.dense = outline, residency, work, dense
        self.targets = find_targets(outline.model)
        self.runner = LayerRunner(residency, find_layers(outline.model))

    def statistics(self, chosen: list[int], batch_tokens: int = 2 * LENGTH) -> LayerwiseStatistics:
        return LayerwiseStatistics(
            self.runner,
            self.targets,
            IDS,
            counted=COUNTED,
            chosen=chosen,
            work=self.work,
            batch_tokens=batch_tokens,
        )


@pytest.fixture
def setting(save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Opens a model for work layer by layer, in float32 whatever the CPU can do."""
    monkeypatch.setattr(layerwise, "has_fast_bfloat16", lambda: False)

    @contextmanager
    def make(kind: str) -> Iterator[Setting]:
        dense = _dense(kind)
        outline = open_outline(save_model(dense, tmp_path / "model"))
        with WorkFolder(tmp_path / "work", {}) as work:
            residency = Residency(outline, Tensors(outline, work), device=torch.device("cpu"), dtype=torch.float32)
            made = Setting(outline, residency, work, dense)
            with residency.holding(made.runner.rest):
                made.runner.check(IDS[:1])
                yield made

    return make


def _take(made: Setting, chosen: list[int], **options: int) -> tuple[Statistics, LayerwiseStatistics]:
    """All statistics of a model."""
    taken = made.statistics(chosen, **options)
    taken.take_gradients(lambda n: None)
    everything = taken.outside()
    for number in range(len(made.runner.layers)):
        everything.linear.update(taken.layer(number, lambda n: None).linear)
        taken.leave(number)
    return everything, taken


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-30)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_whole_model(setting: Callable[[str], Any], kind: str) -> None:
    with setting(kind) as made:
        assert made.targets == find_targets(made.dense)
        got, taken = _take(made, list(range(COUNTED)))
        # Positions are looked up once for all windows of a batch, so their gradients depend on how many those are.
        wanted = calibrate(made.dense, made.targets, Windows("x", IDS[:COUNTED]), batch_tokens=2 * LENGTH)
        assert set(got.linear) == set(wanted.linear)
        assert set(got.token) == set(wanted.token)
        assert len(got.linear) >= 8 or kind == "falcon"  # whose linear layers are of a class of its own
        assert got.tokens == wanted.tokens
        for name, linear in wanted.linear.items():
            _close(got.linear[name].hessian, linear.hessian)
            _close(got.linear[name].output, linear.output)
            assert (linear.output > 0).any()
        for name, token in wanted.token.items():
            for mine, other in zip(got.token[name].terms, token.terms, strict=True):
                _close(mine[0], other[0])
                _close(mine[1], other[1])
        dense = perplexity(made.dense, Windows("x", IDS[COUNTED:]))
        assert taken.perplexity(lambda n: None) == pytest.approx(dense, rel=1e-4)


def test_gradients_come_from_the_chosen_windows(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        got, _ = _take(made, [1, 3])
        all_, few = (
            calibrate(made.dense, made.targets, Windows("x", IDS[rows])) for rows in (list(range(COUNTED)), [1, 3])
        )
    for name, linear in got.linear.items():
        _close(linear.hessian, all_.linear[name].hessian)
        _close(linear.output, few.linear[name].output)
    (frequency, gradient), (wanted, _) = (
        got.token["model.embed_tokens.weight"].terms[0],
        (all_.token["model.embed_tokens.weight"].terms[0]),
    )
    _close(frequency, wanted)
    _close(gradient, few.token["model.embed_tokens.weight"].terms[0][1])


def test_the_batch_does_not_matter(setting: Callable[[str], Any]) -> None:
    with setting("gpt2") as made:
        got, _ = _take(made, [0, 1], batch_tokens=1)
        for name in ["gradient-0000.safetensors", "gradient-0001.safetensors", "outside.safetensors"]:
            made.work.drop(name)
        other, _ = _take(made, [0, 1], batch_tokens=COUNTED * LENGTH)
    for name, linear in got.linear.items():
        _close(linear.hessian, other.linear[name].hessian)
        _close(linear.output, other.linear[name].output)


def test_layers_that_read_one_tensor_share_its_moment(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        taken = made.statistics([0])
        taken.take_gradients(lambda n: None)
        linear = taken.layer(0, lambda n: None).linear
    kept = {name.split(".")[-2]: id(s.hessian) for name, s in linear.items()}
    assert kept["q_proj"] == kept["k_proj"] == kept["v_proj"]
    assert kept["gate_proj"] == kept["up_proj"]
    assert len(set(kept.values())) == 4


def test_bfloat16_changes_moments_a_little(setting: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with setting("llama-untied") as made:
        exact, _ = _take(made, [0])
        monkeypatch.setattr(layerwise, "has_fast_bfloat16", lambda: True)
        for number in range(4):
            made.work.drop(f"state-{number:04d}.bin")
        rough, taken = _take(made, [0])
        dense = perplexity(made.dense, Windows("x", IDS[COUNTED:]))
        # Held-out windows are measured, not sampled: they stay in float32.
        assert taken.perplexity(lambda n: None) == pytest.approx(dense, rel=1e-5)
    off = []
    for name, linear in exact.linear.items():
        off.append(float((rough.linear[name].hessian - linear.hessian).norm() / linear.hessian.norm()))
        assert torch.equal(rough.linear[name].output, linear.output)
    assert 0.001 < max(off) < 0.05


# Memory


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2"])
def test_one_layer_is_in_memory(setting: Callable[[str], Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = LayerRunner.run_layer
    most = []

    def counting(self: LayerRunner, number: int, state: torch.Tensor) -> torch.Tensor:
        real = [p for p in self.model.parameters() if not p.is_meta]
        most.append(sum(p.nbytes for p in real))
        inside = {id(p) for p in self.layers[number].parameters()}
        outside = [p for p in real if id(p) not in inside]
        # Beside the layer: norms, biases and positions at most.
        assert sum(p.nbytes for p in outside) <= sum(
            p.nbytes for n, p in self.model.named_parameters() if n in self.rest
        )
        return run(self, number, state)

    with setting(kind) as made:
        monkeypatch.setattr(LayerRunner, "run_layer", counting)
        _take(made, [0, 1])
        assert len(most) >= 3 * len(made.runner.layers)
        layer = max(sum(p.nbytes for p in one.parameters()) for one in made.runner.layers)
        sizes = {name: value.nbytes for name, value in made.dense.named_parameters()}
        rest = sum(sizes[n] for n in made.runner.rest if n in sizes)
        assert max(most) <= layer + rest
        tables = sum(p.nbytes for n, p in made.dense.named_parameters() if "emb" in n or "wte" in n or "lm_head" in n)
        # The trial holds the tables along with each layer.
        assert 0 < made.residency.peak_bytes <= layer + rest + tables
        assert made.residency.peak_bytes < sum(sizes.values())
    assert all(p.is_meta for p in made.outline.model.parameters())


def test_the_model_is_left_as_it_was(setting: Callable[[str], Any]) -> None:
    with setting("llama-tied") as made:
        _take(made, [0])
    assert not any("forward" in vars(m) for m in made.outline.model.modules())
    assert sum(len(m._forward_hooks) for m in made.outline.model.modules()) == 0
    assert made.outline.model.lm_head.weight is made.outline.model.model.embed_tokens.weight


def test_buffers_are_those_of_a_loaded_model(setting: Callable[[str], Any]) -> None:
    with setting("llama-tied") as made:
        buffers = dict(made.outline.model.named_buffers())
        assert set(buffers) == {name for name, _ in made.dense.named_buffers()}
        for name, value in made.dense.named_buffers():
            assert torch.equal(buffers[name], value), name


# Models that cannot be run so


class _Remembering(nn.Module):
    """A layer that adds what another one made last, without being given it."""

    def __init__(self, inner: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[torch.Tensor] = []
        other.register_forward_hook(lambda module, args, out: self.seen.append(out))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = self.inner(hidden_states, **kwargs) + self.seen[-1]
        return out


def test_layers_that_look_past_each_other(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        layers = made.outline.model.model.layers
        layers[1] = _Remembering(layers[1], layers[0].mlp)
        runner = LayerRunner(made.residency, "model.layers")
        with pytest.raises(Unsuitable, match="its logits come out"):
            runner.check(IDS[:1])


def test_layers_that_share_weights(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        layers = made.outline.model.model.layers
        layers[1] = layers[0]
        with pytest.raises(Unsuitable, match="several times"):
            LayerRunner(made.residency, "model.layers")


def test_layers_in_another_order(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        made.outline.model.config.num_hidden_layers = 2
        with pytest.raises(Unsuitable, match="do not run once each"):
            made.runner.check(IDS[:1])


def test_no_layers() -> None:
    with pytest.raises(Unsuitable, match="no list of layers"):
        find_layers(nn.Sequential(nn.Linear(2, 2)))


def test_the_list_of_layers_is_no_list_of_experts() -> None:
    layers = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(9))}) for _ in "ab")
    assert find_layers(nn.ModuleDict({"few": nn.ModuleList([nn.Linear(1, 1)]), "layers": layers})) == "layers"


def test_a_model_that_computes_no_numbers(setting: Callable[[str], Any]) -> None:
    with setting("llama-untied") as made:
        get = made.residency._tensors.get
        huge = {"lm_head.weight": 1e38}
        made.residency._tensors.get = lambda name: get(name) * huge.get(name, 1.0) * huge.get(name, 1.0)
        with pytest.raises(ModelError, match="NaN or infinite") as caught:
            made.runner.check(IDS[:1])
        assert caught.value.reason == "model-values"
