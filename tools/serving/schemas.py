"""The bodies of requests, as OpenAI's API has them, and what of them this server does not take.

What would change an answer and is not there is refused by name; what only tells OpenAI about the caller is ignored.
A body of megabytes must not become millions of errors: lists end at their first, and objects have few members.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from .errors import invalid, unsupported

#: Parameters that are refused unless they have one of these values, which mean what this server does anyway.
_ONLY: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
#: Members that any object of the API may have, and more.
_MOST_MEMBERS: Final = 64
_INSTEAD: Final = {
    "tools": "describe them in the prompt",
    "best_of": "ask for n answers",
    "response_format": "use text",
}


class _Strict(BaseModel):
    """Takes no parameter that it does not know, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MOST_MEMBERS:
            raise ValueError(f"more than {_MOST_MEMBERS} parameters")
        return value


class StreamOptions(_Strict):
    """``stream_options``."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Strict):
    """What both kinds of requests have in common."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    #: A text, or several.
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    #: Numbers of tokens, and what to add to their logits.
    logit_bias: Any = None
    #: Not OpenAI's: the numbers of all tokens with the answer. Other servers have it by this name.
    return_token_ids: bool | None = None

    # Ignored.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None

    # See `_ONLY`.
    store: Any = None

    def check(self) -> None:
        """Refuse what this server does not have.

        Raises:
            ApiError: naming the first such parameter.
        """
        for name in sorted(_ONLY.keys() & type(self).model_fields.keys()):
            if not any(getattr(self, name) == value for value in _ONLY[name]):
                raise unsupported(name, _INSTEAD.get(name, "leave it out"))

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Request):
    """Of ``/v1/completions``."""

    #: A text, tokens, or several of either: looked into where it is read.
    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    #: A text, or its parts.
    content: Any = None
    name: str | None = None
    refusal: str | None = None
    audio: Any = None
    annotations: Any = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: str | None = None
    #: What some clients send back of answers.
    reasoning_content: Any = None

    def plain(self) -> dict[str, str]:
        """For a chat template: the role and the text.

        Raises:
            ApiError: it has what is no text.
        """
        if self.role in ("tool", "function") or self.tool_calls or self.function_call:
            raise unsupported("messages", "leave out calls of tools and what they gave")
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(map(_text, self._parts()))}

    def _parts(self) -> list[Any]:
        if isinstance(self.content, list):
            return self.content
        return [] if self.content is None else [{"type": "text", "text": self.content}]


def _text(part: Any) -> str:
    """Of a part of the content of a message.

    Raises:
        ApiError: it is none.
    """
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if isinstance(kind, str) and kind != "text":
        raise unsupported("messages", f"a part of type {kind[:40]!r} is no text")
    if kind is None or not isinstance(text, str):
        raise invalid("messages", "The content of a message must be a text, or a list of parts of type 'text'.")
    return text


class ChatRequest(_Request):
    """Of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class BudgetRequest(_Strict):
    """Of ``PUT /v1/budget``.

    Attributes:
        budget: bytes, ``80MiB``, ``60%`` of all blocks, or ``auto``.
        progressive: answer at once, and grow step by step.
    """

    budget: int | str
    progressive: bool = False
