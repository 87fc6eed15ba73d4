"""Published BitStack checkpoints as a `.bstk`: the same values to the last bit, the same order, and what is refused."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstack
import bsformat
from bitstack.convert import convert_bitstack
from bitstack.published import row_signs
from bitstack.published_order import layer_name
from bsformat import rebuild
from bsformat.errors import BstkError, ModelError
from tests.models import save_llama
from tests.published import LEVELS, RANK, Checkpoint, values


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = Checkpoint(tmp_path_factory.mktemp("published") / "tiny")
    made.write()
    return made


@pytest.fixture(scope="module")
def converted(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "tiny.bstk"
    convert_bitstack(checkpoint.folder, path)
    return path


def rebuilt(container: bsformat.Container, name: str, levels: int) -> Any:
    """A matrix of the file with so many levels, float64, by the specification."""
    tensor = container.model_tensors[name]
    chain = container.index.chain.tolist()
    numbers = [b for b, c in enumerate(chain) if c == tensor.first_chain][:levels]
    blocks = [(container.block(b).form, container.read_block(b)) for b in numbers]
    row, col = (
        rebuild.payload.as_float(
            np.frombuffer(container.read_block(chain.index(container.tensors[k].first_chain)), "u1"), "F16"
        )
        for k in (tensor.row_scale, tensor.col_scale)
    )
    return rebuild.chain_values(tensor, tensor.rows, blocks, row, col)


def test_exact_at_every_level(checkpoint: Checkpoint, converted: Path) -> None:
    assert bsformat.verify(converted).problems == []
    with bsformat.open(converted) as container:
        assert {t.rows % 8 for t in container.model_tensors.values() if t.packed} != {0}
        assert {t.columns % 8 for t in container.model_tensors.values() if t.packed} == {4, 5}
        for path, levels in checkpoint.levels.items():
            for count in range(LEVELS + 1):
                got = rebuilt(container, f"{path}.weight", count)
                assert np.array_equal(got, values(levels, count)), (path, count)
        for name, value in checkpoint.raw.items():
            tensor = container.model_tensors[name]
            number = container.index.chain.tolist().index(tensor.first_chain)
            assert container.read_block(number) == value.tobytes()
            assert (tensor.dtype, tensor.shape) == ("F16", value.shape)
        assert max(form.rank for form in container.metadata.forms) == RANK > 16


def test_order_and_provenance(checkpoint: Checkpoint, converted: Path) -> None:
    with bsformat.open(converted) as container:
        index, extra = container.index, container.metadata.extra
        names = [container.block(b).tensor.name for b in range(index.required, len(container))]
        assert names == [f"{path}.weight" for path in [*checkpoint.levels, *checkpoint.order]]
        assert index.level[index.required :].tolist() == sorted(index.level[index.required :].tolist())
        assert (index.worth[index.required :] > 0).all()
    assert extra["model"]["class"] == "LlamaForCausalLM"
    assert extra["converted"]["order"] == "published"
    assert extra["converted"]["files"] == [
        "model.safetensors.index.json",
        *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)),
    ]
    assert len(extra["converted"]["blake3"]) == 64


@pytest.mark.parametrize("order", ["worth", "average"])
def test_other_orders_are_those_of_repack(checkpoint: Checkpoint, converted: Path, tmp_path: Path, order: str) -> None:
    made = convert_bitstack(checkpoint.folder, tmp_path / "a.bstk", order=order)
    bsformat.repack(converted, tmp_path / "b.bstk", order=order)
    with bsformat.open(tmp_path / "a.bstk") as one, bsformat.open(tmp_path / "b.bstk") as other:
        assert made.order == order == one.metadata.extra["converted"]["order"]
        assert one.index.chain.tolist() == other.index.chain.tolist()
        assert one.index.digest.tobytes() == other.index.digest.tobytes()
        np.testing.assert_allclose(one.index.worth, other.index.worth, rtol=1e-6)


def test_worth_is_the_error_that_a_level_removes(checkpoint: Checkpoint, converted: Path) -> None:
    """The squared norm of a level is by how much it lowers the squared error, seen on the matrices."""
    path = "model.layers.1.mlp.down_proj"
    levels = checkpoint.levels[path]
    whole = values(levels, LEVELS)
    norms = [float(((values(levels, i + 1) - values(levels, i)) ** 2).sum()) for i in range(LEVELS)]
    left = [float(((whole - values(levels, i)) ** 2).sum()) for i in range(LEVELS + 1)]
    with bsformat.open(converted) as container:
        tensor = container.model_tensors[f"{path}.weight"]
        own = [b for b, c in enumerate(container.index.chain.tolist()) if c == tensor.first_chain]
        worth = [float(container.index.worth[b]) * container.block(b).length for b in own]
    np.testing.assert_allclose(worth, [n / sum(norms) for n in norms], rtol=1e-5)
    # What the last level leaves of the dense weight is in no checkpoint; but for that, the errors fall by the norms.
    np.testing.assert_allclose([left[i] - left[i + 1] for i in range(LEVELS)], norms, rtol=0.25)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_loads_like_the_dense_model(checkpoint: Checkpoint, converted: Path, share: float) -> None:
    """Logits in float32 against a dense model of the reconstructed weights, within 1e-5 of the largest logit."""
    from transformers import AutoModelForCausalLM

    with bsformat.open(converted) as container:
        first = container.planner.resident_bytes(container.index.required + len(checkpoint.levels))
        plan = container.plan(int(first + share * (container.total_bytes - first)))
        held = [container.block(b).tensor.name for b in range(container.index.required, plan.n_blocks)]
    # What is not decomposed takes twice its bytes in float32.
    budget = plan.resident_bytes + sum(value.nbytes for value in checkpoint.raw.values())
    model = bitstack.load(converted, budget, "cpu", torch.float32)
    assert model.bitstack.plan.n_blocks == plan.n_blocks
    assert model.bitstack.resident_bytes == budget
    dense: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in checkpoint.raw.items()}
    for path, levels in checkpoint.levels.items():
        state[f"{path}.weight"] = torch.from_numpy(values(levels, held.count(f"{path}.weight"))).float()
    dense.load_state_dict(state)
    ids = torch.tensor([[5, 9, 40, 77, 12, 3]])
    with torch.inference_mode():
        wanted = dense.eval()(ids).logits
        assert float((model(ids).logits - wanted).abs().max() / wanted.abs().max()) < 1e-5
    tokenizer = model.bitstack.tokenizer()
    made = model.generate(**tokenizer("the sea", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(made[0]).startswith("the sea")


def test_without_signs_and_with_a_tied_head(tmp_path: Path) -> None:
    made = Checkpoint(tmp_path / "m", signed=False, rank=5, tie_word_embeddings=True)
    assert "lm_head.weight" not in made.raw
    made.write(shards=1)
    out = convert_bitstack(made.folder, tmp_path / "o.bstk")
    assert out.ranks == (5, 5)
    with bsformat.open(tmp_path / "o.bstk") as container:
        assert {form.kind for form in container.metadata.forms} == {"raw", "lowrank"}
        assert container.metadata.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
        for path, levels in made.levels.items():
            assert np.array_equal(rebuilt(container, f"{path}.weight", 3), values(levels, 3))
    bitstack.load(tmp_path / "o.bstk", "100%", "cpu")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 8), (5, 13), (16, 24), (7, 9)])
def test_signs_row_by_row(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitstack.published._CHUNK", 20)
    bits = np.random.default_rng(rows).integers(0, 2, (rows, columns), np.uint8)
    flat = np.packbits(bits.reshape(-1))
    flat[-1] |= (1 << (-rows * columns % 8)) - 1  # what is left over says nothing
    got = row_signs(flat.tobytes(), rows, columns)
    assert np.array_equal(got, np.packbits(bits, axis=1, bitorder="little"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.layers.3.self_attn.q_proj", "layer.3.self_attn.q_proj"),
        ("model.decoder.layers.11.fc1", "layer.11.fc1"),
        ("model.layers.2.mlp.experts.7.w1", "layer.2.mlp.experts.7.w1"),
        ("lm_head", "lm_head"),
    ],
)
def test_names_of_layers(path: str, name: str) -> None:
    assert layer_name(path) == name


def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """Twice as many layers, the same peak: what is in memory is a level of a layer, or a raw tensor."""
    peaks, sizes = [], []
    for layers in (2, 6):
        size = {"hidden_size": 256, "intermediate_size": 1044, "num_hidden_layers": layers}
        made = Checkpoint(tmp_path / f"m{layers}", rank=16, drawn=True, **size)
        made.write()
        sizes.append(sum(f.stat().st_size for f in made.folder.glob("*.safetensors")))
        convert_bitstack(made.folder, tmp_path / "warm.bstk")  # what is imported and cached once
        tracemalloc.start()
        convert_bitstack(made.folder, tmp_path / f"{layers}.bstk")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 8, (peaks, sizes)


def test_orders_in_other_words(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Any order of the configurations, several levels at once, and levels that none of them has."""
    from bitstack.published_order import read_order

    levels = {path: len(own) for path, own in checkpoint.levels.items()}
    said = checkpoint.configurations()
    file = tmp_path / "c.json"
    file.write_text(json.dumps(said))
    usual = read_order(file, levels)
    assert usual == [*levels, *checkpoint.order]
    file.write_text(json.dumps(said[::-1]))
    assert read_order(file, levels) == usual
    file.write_text(json.dumps(said[:5]))
    short = read_order(file, levels)
    assert short[: len(levels) + 4] == usual[: len(levels) + 4]
    assert sorted(short) == sorted(usual)
    file.write_text(json.dumps([said[-1]]))
    assert read_order(file, levels) == [path for _ in range(LEVELS) for path in levels]


def layers(said: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = said[3]["layers"]
    return found


Q = "layer.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: layers(s).update({"layer.9.x": 1}), "configuration 3 names 'layer.9.x'"),
        (
            lambda s: layers(s).update({Q: LEVELS + 1}),
            f"asks for {LEVELS + 1} levels of '{Q}', of which there are {LEVELS}",
        ),
        (lambda s: layers(s).update({Q: -1}), "asks for -1 levels"),
        (lambda s: layers(s).update({Q: True}), "asks for True levels"),
        (lambda s: layers(s).pop(Q), f"does not say how many levels '{Q}' has"),
        (lambda s: layers(s).update({Q: 0}), "do not grow from one another"),
        (lambda s: s.clear(), "has no configuration"),
        (lambda s: s.extend(s * 2), "more configurations than"),
        (lambda s: s.__setitem__(2, [1]), "no object of JSON"),
        (lambda s: s.__setitem__(2, {"memory": 1}), "configuration 2 is no object with layers"),
    ],
)
def test_orders_that_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[Any], object], what: str
) -> None:
    from bitstack.published_order import FILE, read_order

    said = checkpoint.configurations()
    change(said)
    (tmp_path / FILE).write_text(json.dumps(said))
    with pytest.raises(ModelError, match="order") as caught:
        read_order(tmp_path / FILE, {path: len(own) for path, own in checkpoint.levels.items()})
    assert what in caught.value.message
    assert caught.value.where == str(tmp_path / FILE)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[", "[{", '[{"layers": {}} ', '[{"layers": {"a": 1, "a": 1}}]', "[] x", "\x00", "[[[[", "9" * 5000],
)
def test_orders_that_are_no_json(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    from bitstack.published_order import read_order

    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(ModelError) as caught:
        read_order(file, {path: len(own) for path, own in checkpoint.levels.items()})
    assert "\n" not in str(caught.value)


K = "model.layers.0.self_attn.k_proj"


def wrong(name: str, value: Any) -> Callable[[Checkpoint], None]:
    """Another array in the place of a part of a level."""

    def change(made: Checkpoint) -> None:
        made.levels[K][1][name] = value(made.levels[K][1][name])

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.levels[K][1].pop("u"), f"lacks the tensor '{K}.u_1'"),
        (lambda m: m.levels[K][1].pop("qweight"), f"lacks the tensor '{K}.qweight_1'"),
        (lambda m: m.levels[K][0].pop("vt"), f"lacks the tensor '{K}.vt_0'"),
        (lambda m: m.levels[K].insert(0, {}), f"lacks the tensor '{K}.qweight_0'"),
        (lambda m: m.levels[K].pop(), "asks for 4 levels of 'layer.0.self_attn.k_proj', of which there are 3"),
        (lambda m: m.levels.pop(K), f"lacks the tensor '{K}.weight'"),
        (lambda m: m.raw.pop("model.norm.weight"), "lacks the tensor 'model.norm.weight'"),
        (lambda m: m.raw.update(extra=np.ones(3, "<f2")), "extra has no place in a LlamaForCausalLM"),
        (lambda m: m.raw.update({f"{K}.weight": np.ones((22, 44), "<f2")}), "decomposed and as it is"),
        (lambda m: m.raw.update({f"{K}.bias_0": np.ones(22, "<f2")}), "bias of a level has no meaning"),
        (lambda m: m.levels.update({"model.norm": m.levels[K]}), "model.norm is no linear layer"),
        (lambda m: m.raw.update({"model.norm.weight": np.ones(43, "<f2")}), "its configuration says [44]"),
        (wrong("qweight", lambda q: q[:-1]), "qweight_1 is U8 [120], expected U8 [121]"),
        (wrong("qweight", lambda q: q.astype(np.int8)), "qweight_1 is I8 [121]"),
        (wrong("u", lambda u: u[:-1]), "u_1 is F16 [21, 17], expected F16 [22, 17]"),
        (wrong("u", lambda u: u.astype("<f4")), "u_1 is F32"),
        (wrong("u", lambda u: u[:, :0]), "a rank from 1 to 4096 was expected"),
        (wrong("vt", lambda v: v.T.copy()), "vt_1 is F16 [44, 17], expected F16 [17, 44]"),
        (wrong("vt", lambda v: v * np.float16("inf")), "vt_1 has a value that is not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_checkpoints_that_are_refused(tmp_path: Path, change: Callable[[Checkpoint], Any], what: str) -> None:
    made = Checkpoint(tmp_path / "m", num_hidden_layers=1)
    said = made.configurations()
    change(made)
    made.write(configurations=said)
    out = tmp_path / "o.bstk"
    with pytest.raises(BstkError) as caught:
        convert_bitstack(made.folder, out)
    assert what in caught.value.message
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_unused_biases_and_frequencies_are_left_out(tmp_path: Path) -> None:
    made = Checkpoint(tmp_path / "m", num_hidden_layers=1)
    made.raw |= {f"{K}.bias_0": np.zeros(22, "<f2"), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(11, "<f4")}
    made.write()
    assert convert_bitstack(made.folder, tmp_path / "o.bstk").raw_tensors == 5


def test_other_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no directory"):
        convert_bitstack(tmp_path / "none", tmp_path / "o.bstk")
    dense = save_llama(tmp_path / "dense")
    with pytest.raises(ModelError, match=r"no tensor is called …u_0; bstk pack takes dense models"):
        convert_bitstack(dense, tmp_path / "o.bstk", order="worth")
    with pytest.raises(ModelError, match="is no order"):
        convert_bitstack(dense, tmp_path / "o.bstk", order="best")
