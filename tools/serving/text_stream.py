"""The text of tokens that come one by one: as soon as it is certain, and no further than a stop sequence."""

from collections.abc import Callable, Sequence
from typing import Final

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
#: Bytes of a character that may be there while the last one is missing, each of which may decode to a replacement.
_INCOMPLETE: Final = 3


class TextStream:
    """Turns tokens into text, piece by piece.

    All pieces together are the decoded tokens, cut before the stop sequence that is complete first. A token may be a
    part of a character, and a piece of text the beginning of a stop sequence: what could still change is held back.

    Attributes:
        stopped: whether a stop sequence was found; then nothing more comes.

    Args:
        decode: the text of some tokens in a row.
        stops: the stop sequences, none of them empty.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._tokens: list[int] = []
        # Decoders treat what they begin with in their own way: tokens are decoded behind some whose text is known.
        self._start = self._read = 0
        self._sent = 0  # characters of the tokens from _read on that are given out already
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; gives the text that is certain now."""
        self._tokens.append(token)
        return self._release(self._fresh(final=False), final=False)

    def end(self) -> str:
        """Nothing more comes; gives what was held back."""
        return self._release(self._fresh(final=True), final=True)

    def _fresh(self, *, final: bool) -> str:
        """Characters that no later token changes."""
        known = len(self._decode(self._tokens[self._start : self._read]))
        text = self._decode(self._tokens[self._start :])[known:]
        certain = len(text)
        while not final and len(text) - certain < _INCOMPLETE and text[:certain].endswith(_REPLACEMENT):
            certain -= 1
        fresh, self._sent = text[self._sent : certain], max(self._sent, certain)
        if certain == len(text) and text:
            self._start, self._read, self._sent = self._read, len(self._tokens), 0
        return fresh

    def _release(self, fresh: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + fresh, ""
        # The one that is complete first, so that it makes no difference how the text is cut into tokens.
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        if not final and (tail := max((_overlap(text, stop) for stop in self._stops), default=0)):
            text, self._held = text[:-tail], text[-tail:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of a stop sequence, and not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
