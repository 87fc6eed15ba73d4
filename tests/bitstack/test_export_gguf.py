"""A model at a budget as GGUF: what the file says, loaded back by transformers, and what GGUF cannot say."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstack
import bsformat
from bitstack.checkpoint import TOKENIZER_FILES
from bitstack.export_gguf import TYPES, export_gguf
from bitstack.gguf_model import gguf_model
from bitstack.gguf_tokenizer import gguf_tokenizer
from bitstack.rebuilding import Prefix
from bsformat.errors import ModelError, WriteError
from tests.bitstack.conftest import PackedModel

gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'bitstack[gguf]'")

Packed = Callable[[str], PackedModel]
CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
#: Largest difference of logits as a share of the largest logit.
BOUNDS = {
    "float32": 1e-5,
    "float16": 2e-3,
    "bfloat16": 2e-2,
    "q8_0": 0.05,
    "q5_1": 0.3,
    "q5_0": 0.3,
    "q4_1": 0.6,
    "q4_0": 0.6,
}


def fields(path: Path) -> dict[str, Any]:
    """What a file says of its model."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied", "mistral", "qwen2", "qwen3"])
def test_transformers_read_it_back(packed: Packed, tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    path = packed(kind).path
    ours = bitstack.load(path, "70%", "cpu", torch.float32)
    prompt = ours.bitstack.tokenizer()("the sea", return_tensors="pt")
    # Of qwen3 it does not read how wide heads are, and takes them to be as usual.
    more = {"head_dim": ours.config.head_dim} if kind == "qwen3" else {}
    with bsformat.open(path) as container:
        budget = container.planner.resident_bytes(ours.bitstack.plan.n_blocks)
    with torch.inference_mode():
        wanted = ours(**prompt).logits
    for dtype in ("float32", "q8_0") if kind == "llama-tied" else ("float32",):
        made = export_gguf(path, tmp_path / "m.gguf", budget=budget, dtype=dtype, replace=True)
        # Rows of 88 elements are no multiple of 32.
        notes = [note.split(":")[0] for note in made.notes if "tokens" not in note]
        assert notes == (["2 matrices are float16"] if dtype == "q8_0" else [])
        read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, **more)
        with torch.inference_mode():
            got = read.eval()(**prompt).logits
        assert float((got - wanted).abs().max() / wanted.abs().max()) < BOUNDS[dtype], dtype
    assert read.config.tie_word_embeddings == ours.config.tie_word_embeddings


def test_biases(packed: Packed, tmp_path: Path) -> None:
    """llama.cpp adds those of Llama's attention; transformers does not look for them in a GGUF file."""
    out = tmp_path / "m.gguf"
    export_gguf(packed("llama-gqa").path, out)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(out).tensors}
    assert (shapes["blk.0.attn_q.bias"], shapes["blk.0.attn_k.bias"], shapes["blk.1.attn_output.bias"]) == (
        [64],
        [32],
        [64],
    )


def test_a_tokenizer_that_transformers_read_back(tiny_bstk: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_gguf(tiny_bstk, tmp_path / "m.gguf")
    with bsformat.open(tiny_bstk) as container:
        wanted = bitstack.load_tokenizer(container)
    there = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ("the sea is wide", "a small boat, 1969"):
        assert there(text).input_ids == wanted(text).input_ids
    assert there.chat_template == wanted.chat_template


@pytest.mark.parametrize("dtype", TYPES)
def test_types(tiny_bstk: Path, tmp_path: Path, dtype: str) -> None:
    """Matrices are what the specification says, rounded as the type rounds; vectors are float32."""
    out = tmp_path / "m.gguf"
    made = export_gguf(tiny_bstk, out, dtype=dtype)
    reader = gguf.GGUFReader(out)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    ends = TYPES[dtype] if dtype in ("float32", "float16", "bfloat16") else "Q8_0"
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == (ends, ends)
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.1.attn_norm.weight"]) == (TYPES[dtype], "F32")
    assert (made.tensors, made.size) == (len(kinds), sum(int(tensor.n_bytes) for tensor in reader.tensors))
    (down,) = (tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    with bsformat.open(tiny_bstk) as container, Prefix(container, "100%") as prefix:
        exact = prefix.value(prefix.tensors["model.layers.0.mlp.down_proj.weight"], "F32")
    got = gguf.dequantize(down.data, down.tensor_type).reshape(exact.shape)
    if dtype in ("float32", "float16"):
        assert np.array_equal(got, exact.astype(TYPES[dtype].replace("F", "float")))
    else:
        bits = {"bfloat16": 8, "q8_0": 8, "q5_1": 5, "q5_0": 5, "q4_1": 4, "q4_0": 4}[dtype]
        assert np.abs(got - exact).max() <= 2.0 ** (1 - bits) * np.abs(exact).max()
        assert not np.array_equal(got, exact)


def test_what_the_file_says(tiny_bstk: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    made = export_gguf(tiny_bstk, out, dtype="float16", budget="80%")
    said = fields(out)
    assert (said["general.architecture"], said["general.name"]) == ("llama", "tiny-llama")
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert (said["bstk.root"], said["bstk.blocks"]) == (made.root, made.n_blocks)
    numbers = {"block_count": 2, "embedding_length": 64, "feed_forward_length": 128, "context_length": 256}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16, "vocab_size": 300}
    assert {key: said[f"llama.{key}"] for key in numbers} == numbers
    assert said["llama.rope.freq_base"] == 10000.0
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == 300
    assert said["tokenizer.ggml.tokens"][:4] == ["<eos>", "<pad>", "<user>", "<assistant>"]
    assert said["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 3, 1]
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.padding_token_id"]) == (0, 1)
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert "add_generation_prompt" in said["tokenizer.chat_template"]
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_rows_of_queries_and_keys() -> None:
    """llama.cpp turns neighbours (2i, 2i + 1) where transformers turns i and i + d/2."""
    model = gguf_model(CONFIG, "x")
    value = np.arange(64)
    turned = model.arranged("model.layers.0.self_attn.q_proj.weight", value[:, None])[:, 0]
    assert turned[:4].tolist() == [0, 8, 1, 9]
    assert turned[16:20].tolist() == [16, 24, 17, 25]
    assert model.arranged("model.layers.0.self_attn.k_proj.bias", value[:32])[:4].tolist() == [0, 8, 1, 9]
    assert model.arranged("model.layers.0.self_attn.v_proj.weight", value)[1] == 1
    qwen = gguf_model(CONFIG | {"model_type": "qwen2"}, "x")
    assert qwen.arranged("model.layers.0.self_attn.q_proj.weight", value)[1] == 1


def test_frequencies_of_llama_3() -> None:
    """The factors make of the plain frequencies those that transformers computes."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(**(CONFIG | {"head_dim": 128, "rope_parameters": rope}))
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = gguf_model(config.to_dict(), "x").rope_factors()
    plain = 5e5 ** (-np.arange(0, 128, 2) / 128)
    assert factors is not None
    np.testing.assert_allclose(plain / factors, wanted.numpy(), rtol=1e-5)
    assert len(set(factors.tolist())) > 3
    former = {key: value for key, value in CONFIG.items() if key != "rope_parameters"} | {"head_dim": 128}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    again = gguf_model(former | {"rope_theta": 5e5, "rope_scaling": scaling}, "x").rope_factors()
    assert np.array_equal(factors, again)


class Writer:
    """Notes what is added to it."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.said.__setitem__(name, value)


def test_scaled_rotary_embeddings() -> None:
    for kind, extra in (("linear", {}), ("yarn", {"original_max_position_embeddings": 64})):
        writer = Writer()
        rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **extra}
        gguf_model(CONFIG | {"rope_parameters": rope}, "x").write(writer)
        assert writer.said["add_rope_scaling_factor"] == 4.0
        assert writer.said["add_rope_scaling_type"].value == kind
    assert writer.said["add_rope_scaling_orig_ctx_len"] == 64


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "gpt2"}, "is a 'gpt2' model: there is a mapping to GGUF for llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, "mapping to GGUF for"),
        ({"hidden_size": None}, "no usable hidden_size"),
        ({"num_attention_heads": 0}, "no usable num_attention_heads"),
        ({"vocab_size": 1 << 31}, "no usable vocab_size"),
        ({"num_hidden_layers": "2"}, "no usable num_hidden_layers"),
        ({"head_dim": 15}, "heads of 15 dimensions"),
        ({"hidden_act": "gelu"}, "another activation than silu"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "of the type 'longrope'"),
        ({"rope_parameters": {"full": {"rope_theta": 1.0}}}, "rotary embeddings of the type None"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "turns a part of each head"),
    ],
)
def test_models_that_it_cannot_say(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        gguf_model(CONFIG | change, "x.bstk")
    assert what in caught.value.message
    assert (caught.value.where, caught.value.reason) == ("x.bstk", "export-architecture")


def test_rotary_numbers_that_are_none() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": math.nan, "low_freq_factor": 1, "high_freq_factor": 4}
    with pytest.raises(ModelError, match="no usable factor"):
        gguf_model(CONFIG | {"rope_parameters": rope}, "x").rope_factors()


def test_architectures_without_a_place(packed: Packed, tmp_path: Path) -> None:
    for kind, what in (("gpt2", "'gpt2' model"), ("mixtral", "'mixtral' model")):
        with pytest.raises(ModelError, match=what):
            export_gguf(packed(kind).path, tmp_path / "m.gguf")


def bare(path: Path, config: dict[str, Any], **shapes: tuple[int, ...]) -> Path:
    """A file of zeros: the tensors of one layer that are looked for first, and others."""
    wanted = {
        "model.embed_tokens.weight": (300, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.k_proj.weight": (32, 64),
    } | shapes
    tensors = [bsformat.Tensor(name, shape, "F16") for name, shape in wanted.items()]
    with bsformat.Writer(path, tensors) as writer:
        for chain, tensor in enumerate(tensors):
            writer.put(chain, bsformat.Form("raw"), bytes(tensor.dense_bytes))
        writer.attach("config.json", json.dumps(config).encode())
        writer.attach("tokenizer.json", json.dumps(tokenizer_json()).encode())
        writer.finish([])
    return path


@pytest.mark.parametrize(
    ("change", "shapes", "what"),
    [
        ({}, {"strange": (4,)}, "has a tensor 'strange' that GGUF's llama has no place for"),
        ({"vocab_size": 1 << 30}, {}, "holds no model.embed_tokens.weight of 1073741824 rows of 64"),
        ({"num_hidden_layers": 1 << 30}, {}, "holds no model.layers.1.self_attn.q_proj.weight of 64 rows"),
        ({"head_dim": 1 << 30}, {}, "holds no model.layers.0.self_attn.q_proj.weight of 4294967296 rows"),
        ({}, {"model.layers.0.self_attn.k_proj.weight": (34, 64)}, "self_attn.k_proj.weight of 32 rows of 64"),
    ],
)
def test_files_that_are_not_what_they_say(
    tmp_path: Path, change: dict[str, Any], shapes: dict[str, Any], what: str
) -> None:
    path = bare(tmp_path / "small.bstk", CONFIG | {"num_hidden_layers": 1} | change, **shapes)
    with pytest.raises(ModelError) as caught:
        export_gguf(path, tmp_path / "m.gguf")
    assert what in caught.value.message
    assert os.listdir(tmp_path) == ["small.bstk"]


def test_files_that_are_there(tiny_bstk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("mine")
    with pytest.raises(WriteError, match="--force replaces it"):
        export_gguf(tiny_bstk, out)

    def full(self: Prefix, tensor: Any, dtype: str) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Prefix, "value", full)
        with pytest.raises(WriteError, match="nothing was left behind"):
            export_gguf(tiny_bstk, out, replace=True)
    assert (os.listdir(tmp_path), out.read_text()) == (["m.gguf"], "mine")
    with pytest.raises(ModelError, match="none of the types"):
        export_gguf(tiny_bstk, out, replace=True, dtype="q4_k")
    export_gguf(tiny_bstk, out, replace=True)
    assert out.read_bytes()[:4] == b"GGUF"


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """BPE over bytes: three tokens, one merge."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return {"model": model, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}} | changes


def described(vocabulary: int = 5, settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    files = {"tokenizer.json": json.dumps(tokenizer_json(**changes)).encode()}
    files["tokenizer_config.json"] = json.dumps(settings or {}).encode()
    assert set(files) <= set(TOKENIZER_FILES)
    return gguf_tokenizer(files, vocabulary, "x.bstk")


def test_tokens_beyond_those_of_the_tokenizer() -> None:
    made = described()
    assert made.tokens == ["a", "b", "ab", "[PAD3]", "[PAD4]"]
    assert made.types == [1, 1, 1, 5, 5]
    assert (made.merges, made.cut, made.notes) == (["a b"], "gpt-2", [])


def test_tokens_beyond_the_rows_of_the_embedding() -> None:
    made = described(2)
    assert (made.tokens, made.merges) == (["a", "b"], [])
    assert made.notes == ["1 tokens are left out: the embedding has no rows for them"]


def test_special_tokens() -> None:
    added = [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "<x>", "special": False}]
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    post = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<s>", "pad_token": "no such"}
    made = described(settings=settings, added_tokens=added, post_processor=post)
    assert made.types == [1, 1, 1, 3, 4]
    assert made.special == {"bos": 3, "eos": 3}
    assert made.adds == {"add_bos_token": True, "add_eos_token": False}
    assert described(settings=settings | {"add_bos_token": False}, added_tokens=added, post_processor=post).adds == {
        "add_bos_token": False,
        "add_eos_token": False,
    }


def test_how_text_is_cut() -> None:
    split = {"type": "Split", "pattern": {"Regex": "x+"}}
    sequence = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    made = described(pre_tokenizer=sequence)
    assert made.cut == "default"
    assert "no name for" in made.notes[0]
    digits = {"type": "Digits", "individual_digits": True}
    sequence = {"type": "Sequence", "pretokenizers": [digits, {"type": "ByteLevel", "use_regex": True}]}
    assert (described(pre_tokenizer=sequence).cut, described(pre_tokenizer=sequence).notes) == ("smollm", [])


def test_pieces_with_scores() -> None:
    """Llama 2: BPE over words, whose order of merges becomes scores, with bytes to fall back on."""
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<0x0A>": 1, "▁": 2, "a": 3, "▁a": 4, "▁aa": 5},
        "merges": ["▁ a", "▁a a"],
    }
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}
    made = described(6, model=model, normalizer=normalizer, pre_tokenizer=None)
    assert (made.model, made.merges, made.cut) == ("llama", [], "")
    assert made.types == [2, 6, 1, 1, 1, 1]
    assert made.scores[4] == 0 > made.scores[5] > made.scores[3] == made.scores[2]
    assert made.adds["add_space_prefix"] is True
    assert described(6, model=model, pre_tokenizer=None).adds["add_space_prefix"] is False


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "holds no tokenizer.json"),
        ({"tokenizer.json": b"[1]"}, "is no JSON object"),
        ({"tokenizer.json": b"\xff"}, "is no JSON object"),
        ({"tokenizer.json": b'{"model": {}}'}, "BPE over bytes"),
        ({"tokenizer.json": b'{"model": {"type": "Unigram", "vocab": []}}'}, "of the type Unigram"),
        ({"tokenizer.json": b'{"model": {"byte_fallback": true, "vocab": {"a": -1}, "merges": []}}'}, "cannot be read"),
        (
            {"tokenizer.json": b'{"model": {"byte_fallback": true, "vocab": {"a": "b"}, "merges": []}}'},
            "cannot be read",
        ),
        ({"tokenizer.json": b'{"model": {"byte_fallback": true, "vocab": 3}}'}, "cannot be read"),
    ],
)
def test_tokenizers_that_it_cannot_say(files: dict[str, bytes], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        gguf_tokenizer(files, 5, "x.bstk")
    assert what in caught.value.message
    assert caught.value.reason == "export-tokenizer"
