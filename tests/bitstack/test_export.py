"""A model at a budget as safetensors: the values of the specification rounded once, loaded by plain transformers."""

import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstack
import bsformat
from bitstack import rebuilding
from bitstack.export import DTYPES, Exported, attached, export_safetensors, standard_config
from bitstack.rebuilding import Prefix
from bitstack.safetensors_file import read_entries
from bsformat import rebuild
from bsformat.errors import BudgetError, ModelError, WriteError
from tests.bitstack.conftest import PackedModel
from tests.loader.tiny import CONFIG, write_tiny
from tests.servers import Scripted

Packed = Callable[[str], PackedModel]
#: Largest difference of logits as a share of the largest logit, for weights rounded to a type.
BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of every kind, three chains in the embedding, scales of three types, a tied head, biases."""
    path = tmp_path_factory.mktemp("export") / "tiny.bstk"
    write_tiny(path, padded_head=False)
    return path


def exact(container: bsformat.Container, name: str, n_blocks: int) -> Any:
    """The matrix of a prefix in float64, chain by chain, from whole blocks."""
    tensor = container.model_tensors[name]
    index = container.index

    def payloads(chain: int) -> list[tuple[bsformat.Form, bytes]]:
        numbers = [b for b in range(n_blocks) if int(index.chain[b]) == chain]
        return [(container.block(b).form, container.read_block(b)) for b in numbers]

    def raw(number: int) -> Any:
        other = container.tensors[number]
        data = np.frombuffer(payloads(other.first_chain)[0][1], "u1")
        return rebuild.payload.as_float(data, other.dtype).reshape(other.shape)

    if not tensor.packed:
        return raw(container.tensors.index(tensor))
    row, col = raw(tensor.row_scale), raw(tensor.col_scale)
    out = []
    for group in range(tensor.n_chains):
        start, stop = group * tensor.group_rows, min(tensor.rows, (group + 1) * tensor.group_rows)
        own = col if col.ndim == 1 else col[group]
        blocks = payloads(tensor.first_chain + group)
        out.append(rebuild.chain_values(tensor, stop - start, blocks, row[start:stop], own))
    return np.concatenate(out).reshape(tensor.shape)


def arrays(folder: Path) -> dict[str, Any]:
    """All tensors of a directory in float64."""
    entries = [entry for path in folder.glob("*.safetensors") for entry in read_entries(path)]
    return {e.name: rebuild.payload.as_float(np.frombuffer(e.read(), "u1"), e.dtype).reshape(e.shape) for e in entries}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rounded_once(tiny: Path, tmp_path: Path, dtype: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_ELEMENTS", 64)
    with bsformat.open(tiny) as container:
        budget = int(container.minimum_bytes + share * (container.total_bytes - container.minimum_bytes))
        made = export_safetensors(tiny, tmp_path / "out", budget=budget, dtype=dtype)
        plan = container.plan(budget)
        assert (made.n_blocks, made.resident_bytes, made.root) == (plan.n_blocks, plan.resident_bytes, container.root)
        got = arrays(tmp_path / "out")
        assert set(got) == set(container.model_tensors)
        for name, values in got.items():
            wanted = exact(container, name, plan.n_blocks)
            rounded = rebuild.round_to(wanted, DTYPES[dtype]).astype(np.float64)
            assert np.array_equal(values, rounded), name
            # Half a unit in the last place, or half of the smallest step.
            ulp, least = {"float32": (2**-24, 0.0), "float16": (2**-11, 2**-25), "bfloat16": (2**-8, 0.0)}[dtype]
            assert (np.abs(values - wanted) <= ulp * np.abs(wanted) + least).all()


def test_slices_of_long_chains() -> None:
    """Rows [first, stop) of a block say what those rows of the whole say, for every kind."""
    draw = np.random.default_rng(0)
    rows, columns = 150, 37
    tensor = bsformat.Tensor("w", (rows, columns), "F32", rows, 0, 0)
    place = draw.permutation(rows * columns)[:90]
    place = place[(place // columns < 64) | (place // columns >= 128)]
    entries = bsformat.sparse.join(rows, 0.5, place // columns, place % columns, np.full(len(place), 0x38, np.uint8))
    signs = np.packbits(draw.integers(0, 2, (rows, columns), np.uint8), axis=1, bitorder="little")
    u, v = draw.standard_normal((rows, 2)).astype("<f2"), draw.standard_normal((columns, 2)).astype("<f2")
    blocks = [
        (bsformat.Form("sign", rank=2, factors="F16"), bsformat.payload.join(signs, u, v, None)),
        (bsformat.Form("plane"), bsformat.payload.join_plane(signs)),
        (bsformat.Form("sparse"), entries),
        (bsformat.Form("lowrank", rank=2, factors="F16"), bsformat.payload.join_lowrank(u, v, None)),
    ]
    row, col = draw.uniform(0.5, 2, rows), draw.uniform(0.5, 2, columns)
    whole = rebuild.chain_values(tensor, rows, blocks, row, col)
    for first in (0, 64, 128):
        stop = min(rows, first + 64)
        own = [rebuilding.rows_of(form, tensor, rows, data, first, stop) for form, data in blocks]
        assert (own[2] is None) == (first == 64)
        part = rebuild.chain_values(tensor, stop - first, [b for b in own if b], row[first:stop], col)
        assert np.array_equal(part, whole[first:stop])


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2", "gpt2", "gemma3", "mixtral", "qwen3-moe"])
def test_plain_transformers_say_the_same(packed: Packed, tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = packed(kind).path
    ours = bitstack.load(path, "70%", "cpu", torch.float32)
    prompt = ours.bitstack.tokenizer()("the sea", return_tensors="pt")
    with bsformat.open(path) as container:
        budget = container.planner.resident_bytes(ours.bitstack.plan.n_blocks)
    with torch.inference_mode():
        wanted = ours(**prompt).logits
    for dtype, bound in BOUNDS.items():
        if dtype != "float32" and kind != "llama-tied":  # which says it for all; of a mixture it may change the experts
            continue
        folder = tmp_path / dtype
        made = export_safetensors(path, folder, budget=budget, dtype=dtype, shard_bytes=30_000)
        assert made.n_blocks == ours.bitstack.plan.n_blocks
        plain, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.inference_mode():
            got = plain.eval()(**prompt).logits
        assert float((got - wanted).abs().max() / wanted.abs().max()) < bound, dtype
        if dtype == "float32":
            a, b = (m.generate(**prompt, max_new_tokens=4, do_sample=False) for m in (ours, plain))
            assert torch.equal(a, b)
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "float32")
    assert tokenizer("the sea").input_ids == prompt.input_ids[0].tolist()
    assert plain.generation_config.max_new_tokens == 7
    # The names and shapes are those that transformers itself saves: experts one by one, and tied weights once.
    saved, exported = arrays(packed(kind).folder), arrays(tmp_path / "float32")
    assert {name: value.shape for name, value in exported.items()} == {n: v.shape for n, v in saved.items()}


def test_what_is_in_the_directory(tiny_bstk: Path, tmp_path: Path) -> None:
    made = export_safetensors(tiny_bstk, tmp_path / "one")
    files = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(made.files) == files | {"model.safetensors"} == {item.name for item in (tmp_path / "one").iterdir()}
    assert (made.format, made.dtype) == ("safetensors", "float32")  # as the model was before
    limit = 40_000
    cut = export_safetensors(tiny_bstk, tmp_path / "cut", shard_bytes=limit)
    names = sorted(set(cut.files) - files)
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert names[-1] == "model.safetensors.index.json"
    assert names[:-1] == [f"model-{i:05}-of-{len(names) - 1:05}.safetensors" for i in range(1, len(names))]
    held = {name: read_entries(tmp_path / "cut" / name) for name in names[:-1]}
    assert index["weight_map"] == {entry.name: name for name, own in held.items() for entry in own}
    assert index["metadata"]["total_size"] == cut.size == sum(e.length for own in held.values() for e in own)
    assert all(len(own) == 1 or sum(e.length for e in own) <= limit for own in held.values())
    assert {k: v.tobytes() for k, v in arrays(tmp_path / "cut").items()} == {
        k: v.tobytes() for k, v in arrays(tmp_path / "one").items()
    }
    from safetensors import safe_open

    with safe_open(tmp_path / "one" / "model.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about == {"format": "pt", "bstk_root": made.root, "bstk_blocks": str(made.total_blocks)}


def test_configurations_for_others_too() -> None:
    from transformers import LlamaConfig

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = json.loads(LlamaConfig(rope_parameters=rope).to_json_string()) | {"quantization_config": {"a": 1}}
    made = standard_config(config, "float16")
    assert "quantization_config" not in made
    assert (made["torch_dtype"], made["dtype"], made["rope_theta"]) == ("float16", "float16", 5e5)
    assert made["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    again = LlamaConfig.from_dict(made)
    assert again.rope_parameters == LlamaConfig(rope_parameters=rope).rope_parameters
    assert standard_config(CONFIG | {"rope_parameters": {"rope_theta": 1.0}}, "float32")["rope_scaling"] is None
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    assert "rope_theta" not in standard_config(nested, "float32")


def test_tokenizers_by_the_name_that_all_versions_know(tiny_bstk: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        settings = json.loads(attached(container)["tokenizer_config.json"])
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_from_a_server(tiny: Path, tmp_path: Path, scripted: Scripted) -> None:
    """The prefix is read once, nothing of it stays, and the bytes are those of a local export."""
    scripted.data = tiny.read_bytes()
    with bsformat.open(tiny) as container:
        root = container.root
        plan = container.plan("60%")
    export_safetensors(scripted.url(), tmp_path / "far", budget="60%", root=root)
    assert sum(r.stop - r.start for r in scripted.requests) <= plan.offset + plan.length + 16384
    export_safetensors(tiny, tmp_path / "near", budget="60%")
    assert sorted(os.listdir(tmp_path)) == ["far", "near"]
    for item in (tmp_path / "near").iterdir():
        assert item.read_bytes() == (tmp_path / "far" / item.name).read_bytes()


def test_memory_of_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a matrix is rebuilt there is never as much as one copy of it in float64."""
    monkeypatch.setattr(rebuilding, "_ELEMENTS", 1 << 14)
    rows, columns = 4096, 512
    path, draw = tmp_path / "w.bstk", np.random.default_rng(0)
    tensors = [bsformat.Tensor(n, (k,), "F16") for n, k in (("r", rows), ("c", columns))]
    with bsformat.Writer(path, [*tensors, bsformat.Tensor("w", (rows, columns), "F16", rows, 0, 1)]) as writer:
        for chain, size in enumerate((rows, columns)):
            writer.put(chain, bsformat.Form("raw"), np.ones(size, "<f2").tobytes())
        for _ in range(2):
            u, v = (np.ones((k, 1), "<f2") for k in (rows, columns))
            writer.put(
                2,
                bsformat.Form("sign", rank=1, factors="F16"),
                draw.bytes(rows * columns // 8) + u.tobytes() + v.tobytes(),
            )
        writer.finish([(2, 1.0), (2, 0.5)])
    with bsformat.open(path) as container, Prefix(container, "100%") as prefix:
        tensor = container.model_tensors["w"]
        prefix.value(tensor, "F16")
        tracemalloc.start()
        value = prefix.value(tensor, "F16")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert value.nbytes == 2 * rows * columns
    assert peak < 8 * rows * columns


def test_what_stays_when_it_fails(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export_safetensors(tiny, out, dtype="float16")
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    usual, calls = Prefix.value, []

    def full(self: Prefix, tensor: Any, dtype: str) -> Any:
        calls.append(tensor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(self, tensor, dtype)

    monkeypatch.setattr(Prefix, "value", full)
    with pytest.raises(WriteError, match="nothing was left behind: free some space"):
        export_safetensors(tiny, out, replace=True)
    with pytest.raises(WriteError):
        export_safetensors(tiny, tmp_path / "new")
    assert os.listdir(tmp_path) == ["out"]
    assert {item.name: item.read_bytes() for item in out.iterdir()} == before
    monkeypatch.undo()
    with pytest.raises(WriteError, match="--force replaces it"):
        export_safetensors(tiny, out)
    export_safetensors(tiny, out, replace=True, dtype="float32")
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "model.safetensors").stat().st_size > len(before["model.safetensors"])


def test_folders_that_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.doc").write_text("mine")
    with pytest.raises(WriteError, match=r"holds 'thesis.doc'"):
        export_safetensors(tiny, tmp_path / "thesis", replace=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="is no folder"):
        export_safetensors(tiny, tmp_path / "file", replace=True)
    with pytest.raises(WriteError, match="create it first"):
        export_safetensors(tiny, tmp_path / "no" / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    made: Exported = export_safetensors(tiny, tmp_path / "link")
    assert made.path == str(tmp_path / "empty")
    assert (tmp_path / "link").is_symlink()


def test_what_cannot_be_exported(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of the types"):
        export_safetensors(tiny, tmp_path / "out", dtype="int4")
    with pytest.raises(BudgetError):
        export_safetensors(tiny, tmp_path / "out", budget=10)
    bare = tmp_path / "bare.bstk"
    with bsformat.Writer(bare, [bsformat.Tensor("w", (2,), "F32")]) as writer:
        writer.put(0, bsformat.Form("raw"), np.array([1.0, 7e4], "<f4").tobytes())
        writer.finish([])
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        export_safetensors(bare, tmp_path / "out")
    with bsformat.Writer(bare, [bsformat.Tensor("w", (2,), "F32")]) as writer:
        writer.put(0, bsformat.Form("raw"), np.array([1.0, 7e4], "<f4").tobytes())
        writer.attach("config.json", b'{"model_type": "llama"}')
        writer.finish([])
    with pytest.raises(ModelError, match=r"w has a weight of 7e\+04, which F16 cannot hold"):
        export_safetensors(bare, tmp_path / "out", dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["bare.bstk"]
