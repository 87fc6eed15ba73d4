"""Small models that tests pack and run: a random Llama with a tokenizer of its own, and the file packed from it.

`tests/conftest.py` loads this module as a plugin, so the fixtures `tiny_model` and `tiny_bstk` are there everywhere.
Both are made once a session and are not to be written to; copy them first.
"""

from pathlib import Path

import pytest

SENTENCES = (
    "the sea is wide and the sky is high",
    "a small boat sails over the wide sea",
    "the old man reads a book about the sea",
    "birds fly high in the sky over the old boat",
    "a book is a small boat for the mind",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
#: Options of `bstk pack` for a file of a few seconds' work; `tiny_bstk` is packed with them.
PACK_OPTIONS = (
    *("--calib-tokens", "96", "--calib-window", "32", "--eval-heldout-tokens", "64", "--eval-curve-points", "3"),
    *("--linear-designs", "s1 b2", "--linear-tail", "b1", "--linear-ranks", "2"),
    *("--token-designs", "b1", "--token-tail", "b1", "--token-ranks", "4", "--tune-steps", "0"),
)


def save_tokenizer(folder: Path, vocab_size: int = 300) -> int:
    """Train a byte-level BPE tokenizer with a chat template, save it, and give the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>", "<user>", "<assistant>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    return len(wrapped)


def save_llama(folder: Path, **changes: int | bool) -> Path:
    """Save a random Llama with two layers and its tokenizer; ``changes`` go into its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocab = save_tokenizer(folder)
    settings = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    } | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**settings))
        # Larger than the usual start, so that tokens differ in likelihood and levels in worth.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random Llama: 2 layers, 64 wide, a vocabulary of about 300, weights in float32."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bstk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model`, packed: four levels in the linear layers, two in embedding and head, and a quality curve."""
    import bitstack

    recipe = bitstack.Recipe().changed(
        {
            "decompose.linear.designs": ("s1 b2",),
            "decompose.linear.tail": "b1",
            "decompose.linear.ranks": (2,),
            "decompose.token.designs": ("b1",),
            "decompose.token.tail": "b1",
            "decompose.token.ranks": (4,),
            "tune.steps": 0,
            "calib.tokens": 96,
            "calib.window": 32,
            "eval.heldout_tokens": 64,
            "eval.curve_points": 3,
        }
    )
    path = tmp_path_factory.mktemp("packed") / "tiny.bstk"
    bitstack.pack(tiny_model, path, recipe=recipe)
    return path
