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
}
#: A second or less on one core, with enough levels for a close fit.
SMALL = bitstack.Recipe().changed(
    {
        "decompose.linear.ranks": (8, 8, 4, 4, 4, 2, 2, 2),
        "decompose.token.ranks": (8, 8, 4, 4, 4, 2, 2, 2),
        "calib.tokens": 256,
        "calib.window": 32,
        "eval.heldout_tokens": 64,
        "eval.curve_points": 3,
    }
)


def build(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model whose biases and norms are random too, so that none of them can be lost unnoticed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = CONFIGS[kind]
    config = AutoConfig.for_model(model_type, **(_TOKENS | settings | changes))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn(value.shape) * 0.1)
            else:
                # As large as a trained model's, so that the layers and not only the residual stream say something.
                value.copy_(torch.randn(value.shape) * (0.5 if "emb" in name or "wte" in name else 1 / math.sqrt(64)))
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
        model.generation_config.max_new_tokens = 7
        save(model, folder / "model")
        path = folder / "model.bstk"
        return PackedModel(model, folder / "model", path, bitstack.pack(folder / "model", path, recipe=SMALL))

    return pack
