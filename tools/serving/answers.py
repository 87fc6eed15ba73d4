"""Answers in the words of OpenAI's API, whole and in chunks.

What is ours is under ``bitstack``: which blocks made an answer, and the numbers of its tokens where these were asked
for.
"""

import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from .job import Piece, Wanted
from .vocabulary import Vocabulary


@dataclass(slots=True)
class _Part:
    """What there is of one of the answers to a request."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)
    last: Piece | None = None


class Answer(ABC):
    """An answer to one request, as its pieces come; for one thread at a time.

    Args:
        token_ids: whether the numbers of all tokens were asked for.
        root: of the file, whose blocks answer.
    """

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, wanted: Wanted, vocabulary: Vocabulary, *, name: str, root: str, token_ids: bool) -> None:
        self._wanted, self._vocabulary = wanted, vocabulary
        self._token_ids, self._root = token_ids, root
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
        self._parts = [_Part() for _ in range(len(wanted.prompts) * wanted.n)]

    @property
    def id(self) -> str:
        """Of this answer alone."""
        return str(self._head["id"])

    def take(self, piece: Piece) -> None:
        """Note a piece; for the thread that writes, which alone may name tokens."""
        part = self._parts[piece.index]
        if piece.chosen.logprob is not None:
            part.probabilities.append(self._described(piece, len(part.text)))
        part.text += piece.text
        part.tokens.append(piece.chosen.token)
        part.last = piece

    def usage(self) -> dict[str, int]:
        """How many tokens there were so far."""
        prompt = sum(map(len, self._wanted.prompts))
        completion = sum(len(part.tokens) for part in self._parts)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self) -> dict[str, Any]:
        """All of it; every answer has come to its end."""
        choices = []
        for index, part in enumerate(self._parts):
            if part.last is not None:
                choice: dict[str, Any] = {"index": index, "finish_reason": part.last.finish}
                choice["logprobs"] = self._probabilities(part.probabilities)
                choices.append(choice | self._said(part.text) | {"bitstack": self._ours(part, part.last)})
        return self._object(self.whole_object, choices, self._blocks()) | {"usage": self.usage()}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The piece that was taken last, as an event of a stream."""
        part = self._parts[piece.index]
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.finish}
        choice["logprobs"] = self._probabilities(part.probabilities[-1:])
        choice |= self._added(piece.text, first=len(part.tokens) == 1)
        if piece.finish is not None:
            choice["bitstack"] = self._ours(part, piece)
        return self._object(self.chunk_object, [choice], piece.runs[-1].n_blocks)

    def last_chunk(self) -> dict[str, Any]:
        """The event that counts the tokens, after all others."""
        return self._object(self.chunk_object, [], self._blocks()) | {"usage": self.usage()}

    def _object(self, kind: str, choices: list[dict[str, Any]], n_blocks: int) -> dict[str, Any]:
        fingerprint = f"bstk-{self._root[:16]}-{n_blocks}"
        return self._head | {"object": kind, "system_fingerprint": fingerprint, "choices": choices}

    def _blocks(self) -> int:
        return max((part.last.runs[-1].n_blocks for part in self._parts if part.last), default=0)

    def _ours(self, part: _Part, last: Piece) -> dict[str, Any]:
        out: dict[str, Any] = {"runs": [run.to_json() for run in last.runs]}
        if self._token_ids:
            out |= {"prompt_token_ids": self._wanted.prompts[last.prompt], "token_ids": part.tokens}
        return out

    def _probabilities(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Those of some tokens; None where nobody asked."""
        return None if self._wanted.sampling.logprobs is None else self._listed(rows)

    @abstractmethod
    def _described(self, piece: Piece, offset: int) -> dict[str, Any]:
        """A token and its alternatives, with their probabilities; ``offset`` characters stand before it."""

    @abstractmethod
    def _listed(self, rows: list[dict[str, Any]]) -> dict[str, Any]: ...

    @abstractmethod
    def _said(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _added(self, text: str, *, first: bool) -> dict[str, Any]: ...


class ChatAnswer(Answer):
    """Of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _described(self, piece: Piece, offset: int) -> dict[str, Any]:
        chosen = piece.chosen
        own = self._named(chosen.token, chosen.logprob or 0.0)
        return own | {"top_logprobs": [self._named(token, value) for token, value in chosen.top]}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        name = self._vocabulary.name(token)
        # A token that is a part of a character has no text of its own, and its bytes the library does not tell.
        whole = "\N{REPLACEMENT CHARACTER}" not in name
        return {"token": name, "logprob": logprob, "bytes": list(name.encode()) if whole else None}

    def _listed(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"content": rows, "refusal": None}

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _added(self, text: str, *, first: bool) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}


class CompletionAnswer(Answer):
    """Of ``/v1/completions``."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def _described(self, piece: Piece, offset: int) -> dict[str, Any]:
        chosen, name = piece.chosen, self._vocabulary.name
        # Parts of characters may have one name between them: the likeliest has it.
        top = {name(token): value for token, value in reversed(chosen.top)}
        return {
            "tokens": name(chosen.token),
            "token_logprobs": chosen.logprob,
            "top_logprobs": top,
            "text_offset": offset,
        }

    def _listed(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [row[key] for row in rows] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}

    def _said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _added(self, text: str, *, first: bool) -> dict[str, Any]:
        return {"text": text}
