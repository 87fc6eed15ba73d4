"""Tiny random models of several architectures, saved, packed and loaded; nothing is downloaded.

transformers is imported only where it is used: it imports triton, and the tests of the kernels must come first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack

VOCABULARY = 258
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
#: With one token more, the mask.
MASKED_VOCABULARY = VOCABULARY + 1
_ENCODER = {
    "vocab_size": MASKED_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_TOKENS = {"bos_token_id": 256, "eos_token_id": 257}
#: name -> (model_type, settings); two layers, small enough to pack in a second.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", _LLAMA | {"tie_word_embeddings": True}),
    "llama-untied": ("llama", _LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama-gqa": ("llama", _LLAMA | {"attention_bias": True, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", _LLAMA | {"tie_word_embeddings": False}),
    "gemma": ("gemma", _LLAMA | {"head_dim": 16}),
    "gpt2": ("gpt2", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt-neox": (
        "gpt_neox",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 88,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "ffn_dim": 88,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
            "pad_token_id": 1,
        },
    ),
    "mistral": ("mistral", _LLAMA),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 16}),
    "gemma2": ("gemma2", _LLAMA | {"head_dim": 16}),
    "gemma3": ("gemma3_text", _LLAMA | {"head_dim": 16}),
    "phi": ("phi", _LLAMA),
    "phi3": ("phi3", _LLAMA | {"pad_token_id": 0}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": (
        "falcon",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "mixtral": ("mixtral", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        _LLAMA | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
    ),
    "gpt-oss": (
        "gpt_oss",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "rope_parameters": _ROPE},
    ),
    "llama4": (
        "llama4_text",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16, "intermediate_size_mlp": 88},
    ),
    "bert": ("bert", _ENCODER),
    "modernbert": ("modernbert", _ENCODER | {"pad_token_id": 0, "cls_token_id": 256, "sep_token_id": 257}),
    "bert-encoder": ("bert", _ENCODER),
    "t5": (
        "t5",
        {"vocab_size": MASKED_VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 88, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0},
    ),
}
#: The class of transformers that builds a kind, where that is not AutoModelForCausalLM.
CLASSES = {
    "bert": "AutoModelForMaskedLM",
    "modernbert": "AutoModelForMaskedLM",
    "bert-encoder": "AutoModel",
    "t5": "AutoModelForSeq2SeqLM",
}
#: A second or less on one core, with enough levels for a close fit.
SMALL = bitstack.Recipe().changed(
    {
        "decompose.linear.designs": ("s1 b3",),
        "decompose.linear.tail": "b3 b1",
        "decompose.linear.ranks": (2, 8),
        "decompose.linear.stretches": (1.0,),
        "decompose.token.designs": ("b1 b1 b1",),
        "decompose.token.tail": "b3 b2",
        "decompose.token.ranks": (2, 8),
        "decompose.token.stretches": (1.0,),
        "tune.steps": 0,
        "calib.tokens": 256,
        "calib.window": 32,
        "eval.heldout_tokens": 64,
        "eval.curve_points": 3,
    }
)


def build(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model whose biases and norms are random too, so that none of them can be lost unnoticed."""
    import transformers
    from transformers import AutoConfig

    model_type, settings = CONFIGS[kind]
    config = AutoConfig.for_model(model_type, **(_TOKENS | settings | changes))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = getattr(transformers, CLASSES.get(kind, "AutoModelForCausalLM")).from_config(config)
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn(value.shape) * 0.1)
            else:
                # As large as a trained model's, so that the layers and not only the residual stream say something.
                table = any(part in name for part in ("emb", "wte", "shared"))
                value.copy_(torch.randn(value.shape) * (0.5 if table else 1 / math.sqrt(64)))
    return model.eval().requires_grad_(False)


@cache
def byte_tokenizer() -> Any:
    """One token a byte, and two special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@cache
def masked_tokenizer() -> Any:
    """`byte_tokenizer` with a mask, and with its two special tokens at the ends of a text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **special)


def save(model: Any, folder: Path, tokenizer: Any = None) -> Path:
    """A Hugging Face directory."""
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class PackedModel:
    """A model directory, what it holds, and the file that it was packed into."""

    model: Any
    folder: Path
    path: Path
    result: bitstack.Packed


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`build`: a random model of one of the architectures of CONFIGS."""
    return build


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """`save`: a model and a tokenizer as a directory."""
    return save


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer that all models here share."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_with_mask() -> Any:
    """The tokenizer of the models that fill in masks."""
    return masked_tokenizer()


@pytest.fixture(scope="session")
def small() -> bitstack.Recipe:
    """The recipe that the models here are packed with."""
    return SMALL


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PackedModel]:
    """Packs a model of some kind, once a session."""

    @cache
    def pack(kind: str) -> PackedModel:
        folder = tmp_path_factory.mktemp(kind)
        model = build(kind)
        if kind not in CLASSES:
            model.generation_config.max_new_tokens = 7
        save(model, folder / "model", masked_tokenizer() if kind in CLASSES else None)
        text, path = folder / "text.txt", folder / "model.bstk"
        text.write_text(" ".join(f"the sea is wide and {n * n} birds fly" for n in range(60)))
        calib = text if kind in CLASSES else "self"
        result = bitstack.pack(folder / "model", path, recipe=SMALL, calib=calib)
        return PackedModel(model, folder / "model", path, result)

    return pack
