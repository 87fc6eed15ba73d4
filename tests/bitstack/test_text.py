"""Texts as windows of tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitstack.evaluation import perplexity
from bitstack.text import Windows, file_windows, read_text, self_windows
from bsformat.errors import ModelError

TEXT = "".join(chr(97 + i % 26) for i in range(103))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT)
    return path


def test_windows_tile_the_text(tokenizer: Any, text: Path) -> None:
    windows = file_windows(tokenizer, text, 10)
    assert windows.name == "some.txt"
    assert len(windows) == 10  # the last three tokens fill no window
    assert windows.ids.dtype == torch.int64
    assert "".join(tokenizer.decode(w) for w in windows.ids) == TEXT[:100]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (10, list(range(10))), (99, list(range(10)))]
)
def test_the_first_windows(tokenizer: Any, text: Path, count: int, expected: list[int]) -> None:
    everything = file_windows(tokenizer, text, 10).ids
    assert torch.equal(file_windows(tokenizer, text, 10, count).ids, everything[expected])


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (99, list(range(10)))],
)
def test_windows_spread_over_the_text(tokenizer: Any, text: Path, count: int, expected: list[int]) -> None:
    everything = file_windows(tokenizer, text, 10).ids
    assert torch.equal(file_windows(tokenizer, text, 10, count, spread=True).ids, everything[expected])


def _one_line(error: ModelError, where: Path) -> None:
    assert error.reason == "text"
    assert error.where == str(where)
    assert "\n" not in str(error)


@pytest.mark.parametrize("content", ["", "too short"])
def test_a_text_shorter_than_a_window(tokenizer: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(ModelError, match=f"has {len(content)} tokens, fewer than one window of 10") as caught:
        file_windows(tokenizer, path, 10)
    _one_line(caught.value, path)


def test_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(ModelError, match="not UTF-8") as caught:
        read_text(path)
    _one_line(caught.value, path)


@pytest.mark.parametrize(("name", "what"), [("missing.txt", "No such file"), ("", "directory")])
def test_a_text_that_cannot_be_read(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        read_text(tmp_path / name)
    _one_line(caught.value, tmp_path / name)


# Text that the model writes


def _ignore(done: int) -> None:
    pass


def test_own_text_has_the_shape_and_starts_as_documents_do(make_model: Callable[..., Any], tokenizer: Any) -> None:
    seen: list[int] = []
    windows = self_windows(make_model("llama-untied"), tokenizer, 12, 5, seed=0, progress=seen.append)
    assert (windows.name, windows.ids.shape, windows.ids.dtype) == ("self", (5, 12), torch.int64)
    assert (windows.ids[:, 0] == tokenizer.bos_token_id).all()
    assert len(set(windows.ids[:, 1].tolist())) > 1
    assert 0 <= int(windows.ids.min()) <= int(windows.ids.max()) < 258
    assert seen == [5 * 2] + [5] * 10  # two tokens of each window are given, the others written


def test_own_text_depends_on_the_seed_only(make_model: Callable[..., Any], tokenizer: Any) -> None:
    model = make_model("llama-untied")
    first = self_windows(model, tokenizer, 10, 4, seed=1, progress=_ignore)
    torch.manual_seed(99)
    torch.rand(3)
    again = self_windows(model, tokenizer, 10, 4, seed=1, progress=_ignore)
    other = self_windows(model, tokenizer, 10, 4, seed=2, progress=_ignore)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)


def test_own_text_is_drawn_from_the_model(make_model: Callable[..., Any], tokenizer: Any) -> None:
    """Each token from the distribution after all tokens before it: with a sure model, the whole text is known."""
    model = make_model("llama-untied")
    model.lm_head.weight.mul_(1e4)
    windows = self_windows(model, tokenizer, 9, 3, seed=0, progress=_ignore)
    predicted = model(windows.ids).logits.argmax(-1)
    assert torch.equal(windows.ids[:, 2:], predicted[:, 1:-1])


class _Nameless:
    """A tokenizer with neither of the special tokens that a text may start with."""

    bos_token_id = eos_token_id = None

    def __len__(self) -> int:
        return 20


def test_own_text_without_a_start_token(make_model: Callable[..., Any]) -> None:
    windows = self_windows(make_model("llama-untied"), _Nameless(), 6, 50, seed=0, progress=_ignore)
    assert windows.ids.shape == (50, 6)
    assert int(windows.ids[:, 0].max()) < 20
    assert len(set(windows.ids[:, 0].tolist())) > 5


@pytest.mark.parametrize("window", [1, 2])
def test_windows_with_nothing_to_write(make_model: Callable[..., Any], tokenizer: Any, window: int) -> None:
    windows = self_windows(make_model("llama-untied"), tokenizer, window, 3, seed=0, progress=_ignore)
    assert windows.ids.shape == (3, window)


def test_a_model_that_computes_no_numbers(make_model: Callable[..., Any], tokenizer: Any) -> None:
    model = make_model("llama-untied")
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite") as caught:
        self_windows(model, tokenizer, 6, 2, seed=0, progress=_ignore)
    assert caught.value.reason == "model-values"


# Perplexity


@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_perplexity_is_the_mean_over_all_labels(make_model: Callable[..., Any], batch_tokens: int) -> None:
    model = make_model("llama-untied")
    ids = torch.randint(0, 258, (3, 10), generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    got = perplexity(model, Windows("x", ids), batch_tokens=batch_tokens, progress=seen.append)
    chances = torch.log_softmax(model(ids).logits.double(), -1)
    losses = [-float(chances[w, t, ids[w, t + 1]]) for w in range(3) for t in range(9)]
    assert got == pytest.approx(float(torch.tensor(losses).double().mean().exp()), rel=1e-5)
    assert sum(seen) == 30


def test_perplexity_beyond_all_numbers_is_infinite(make_model: Callable[..., Any]) -> None:
    model = make_model("llama-untied")
    model.lm_head.weight.mul_(1e6)
    assert perplexity(model, Windows("x", torch.arange(20)[None])) == float("inf")
