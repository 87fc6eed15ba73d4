"""Between texts and tokens: prompts, conversations, and what is written."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

from bsformat import BstkError

from .errors import ApiError, invalid


class Vocabulary:
    """The tokenizer of a model, for several threads.

    Attributes:
        size: how many tokens the model knows.
        ends: tokens that end an answer.

    Args:
        tokenizer: of transformers. model: the model that it belongs to.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        # Tokenizers of the Rust library refuse a reader while another thread changes a setting, as encoding may: one
        # for what comes in, under a lock, and one for the thread that writes.
        self._encoder, self._decoder = tokenizer, copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self.size = int(model.config.get_text_config(decoder=True).vocab_size)
        self.ends = _ends(model, tokenizer)

    def of_text(self, text: str, param: str = "prompt") -> list[int]:
        """The tokens of a text that is to be continued.

        Raises:
            ApiError: it has none, or is no text.
        """
        _check_characters(text, param)
        with self._lock:
            tokens = self._encoder(text, return_token_type_ids=False)["input_ids"]
        return self.checked(tokens, param)

    def of_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation, by the chat template of the model, up to where its answer begins.

        Raises:
            ApiError: there is no template, or it does not take these messages.
        """
        if not getattr(self._encoder, "chat_template", None):
            raise ApiError(
                400, "This model has no chat template: use /v1/completions.", param="messages", code="no_chat_template"
            )
        for message in messages:
            for value in message.values():
                _check_characters(value, "messages")
        try:
            with self._lock:
                tokens = self._encoder.apply_chat_template(
                    list(messages), add_generation_prompt=True, return_dict=True, return_tensors=None
                )["input_ids"]
        except BstkError:
            raise
        except Exception as error:  # a template is a program of the model's author: it may fail in any way
            detail = " ".join(str(error).split())[:200]
            raise invalid("messages", f"The chat template of this model does not take them: {detail}") from None
        return self.checked(tokens, "messages")

    def checked(self, tokens: list[int], param: str) -> list[int]:
        """Tokens that the model can read.

        Raises:
            ApiError: there are none, or it does not know one.
        """
        if not tokens:
            raise invalid(param, f"{param!r} has no tokens: write something.")
        for token in tokens:
            if not 0 <= token < self.size:
                raise invalid(
                    param, f"{param!r} has a token {token}; this model knows those from 0 to {self.size - 1}."
                )
        return tokens

    def written(self, tokens: list[int]) -> str:
        """The text of tokens that the model wrote; for the thread that writes."""
        text: str = self._decoder.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def name(self, token: int) -> str:
        """The text of one token, special ones too; for the thread that writes."""
        text: str = self._decoder.decode([token], clean_up_tokenization_spaces=False)
        return text


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    return frozenset(found)


def _check_characters(text: str, param: str) -> None:
    """JSON can hold halves of characters, as of a text that was cut within one: no tokenizer reads them.

    Raises:
        ApiError: naming the parameter.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(param, f"'{param}' has half of a surrogate pair, which is no character.") from None
