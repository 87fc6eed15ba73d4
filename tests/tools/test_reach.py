"""Commands and a model that has positions for a few tokens only, and fails at one more."""

from pathlib import Path

import pytest

import bitstack
from tests.models import save_tokenizer
from tests.tools.conftest import Bstk

POSITIONS = 48


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A packed GPT-2 with `POSITIONS` learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("short")
    tokens = {"vocab_size": save_tokenizer(folder / "model"), "bos_token_id": 0, "eos_token_id": None}
    GPT2LMHeadModel(GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=1, n_head=2, **tokens)).save_pretrained(
        folder / "model"
    )
    small = {"designs": ("b1",), "tail": "b1", "ranks": (1,), "stretches": (1.0,)}
    changes = {f"decompose.{part}.{key}": value for part in ("linear", "token") for key, value in small.items()}
    few = {"calib.tokens": 96, "eval.heldout_tokens": 96, "eval.curve_points": 2, "tune.steps": 0}
    recipe = bitstack.Recipe().changed({"calib.text": str(text_file), **few, **changes})
    bitstack.pack(folder / "model", folder / "short.bstk", recipe=recipe)
    return folder / "short.bstk"


def test_windows_are_what_the_model_reads(bstk: Bstk, short: Path, text_file: Path) -> None:
    common = ("eval", short, "--text", text_file, "--windows", 2, "--json", "--budgets")
    for budget in ("100%", "auto"):
        assert bstk(*common, budget).json["text"]["window"] == POSITIONS
    ended = bstk(*common, "100%", "--window", POSITIONS + 1)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "bstk: error: --window 49 is more than this model can read, 48 tokens [budget]\n"


def test_a_text_ends_where_the_model_ends(bstk: Bstk, short: Path) -> None:
    common = ("generate", short, "--budget", "100%", "--raw", "--json", "--prompt")
    ended = bstk(*common, "a b c d", "--max-new-tokens", 9)
    assert (ended.json["tokens"], ended.err) == (9, "")
    ended = bstk(*common, "a b c d", "--max-new-tokens", 100)
    assert 30 < ended.json["tokens"] < POSITIONS
    assert ended.err == "bstk: the text ends here: with its prompt it has the 48 tokens that this model can read\n"


def test_a_prompt_longer_than_the_model_reads(bstk: Bstk, short: Path) -> None:
    ended = bstk("generate", short, "--budget", "100%", "--raw", "--prompt", " a" * POSITIONS)
    assert (ended.code, ended.out) == (1, "")
    wanted = "the prompt has 48 tokens; this model reads 48, its answer included: shorten it [prompt]"
    assert ended.err == f"bstk: error: {wanted}\n"


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_context_longer_than_the_model_reads(bstk: Bstk, short: Path, command: str) -> None:
    ended = bstk(command, short, "--port", 0, "--context", POSITIONS + 1)
    assert ended.code == 1
    assert ended.err.endswith("--context 49 is more than this model can read, 48 tokens [budget]\n")
