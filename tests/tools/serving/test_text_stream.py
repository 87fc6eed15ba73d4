"""Text that comes token by token is the text of all tokens, and never takes anything back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bitstack.tools.serving.text_stream import TextStream


def of_bytes(tokens: list[int]) -> str:
    """A decoder of the kind that byte-level tokenizers have: every token is a byte."""
    return bytes(tokens).decode("utf-8", errors="replace")


def by_words(tokens: list[int]) -> str:
    """A decoder of the other kind: pieces with a space before them, of which the first is left out."""
    return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def pieces(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.push(token) for token in tokens), stream.end()]


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    assert "".join(pieces(TextStream(of_bytes), list(data))) == of_bytes(list(data))


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_characters_come_whole(text: str) -> None:
    found = pieces(TextStream(of_bytes), list(text.encode()))
    assert "".join(found) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_words(tokens: list[int]) -> None:
    assert "".join(pieces(TextStream(by_words), tokens)) == by_words(tokens)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_after_a_stop_sequence(text: str, stops: list[str]) -> None:
    stream = TextStream(of_bytes, stops)
    cut = min(
        ((text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text), default=(0, len(text))
    )
    assert "".join(pieces(stream, list(text.encode()))) == text[: cut[1]]
    assert stream.stopped == any(stop in text for stop in stops)


def test_what_may_become_a_stop_sequence_is_held_back() -> None:
    stream = TextStream(of_bytes, ["xyz"])
    assert [stream.push(byte) for byte in b"axyaxyz?"] == ["a", "", "", "xya", "", "", "", ""]
    assert stream.stopped
    assert stream.end() == ""


def test_each_token_is_decoded_with_few_others() -> None:
    longest = 0

    def watched(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return of_bytes(tokens)

    pieces(TextStream(watched, ["never"]), list(("sea " * 200).encode()))
    assert longest <= 2
