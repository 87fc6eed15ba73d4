"""From the body of a request to what the engine is asked for."""

from collections.abc import Sequence
from typing import Any

from .errors import ApiError, invalid
from .job import Wanted
from .limits import LONGEST_STOP, MOST_BIASES, MOST_STOPS, Limits
from .sampling import Sampling
from .schemas import ChatRequest, CompletionRequest
from .vocabulary import Vocabulary

#: Tokens of a completion where the request does not say, as OpenAI has it. A chat goes on to the end of the context.
_COMPLETION_TOKENS = 16


def wanted_chat(request: ChatRequest, vocabulary: Vocabulary, limits: Limits) -> Wanted:
    """What a request for a chat completion asks for; may take long with a long prompt.

    Raises:
        ApiError: something in it is wrong, or not supported.
    """
    request.check()
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
    prompt = vocabulary.of_messages([message.plain() for message in request.messages])
    alternatives = (request.top_logprobs or 0) if request.logprobs else None
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return _wanted(request, [prompt], most, alternatives, vocabulary, limits, "messages")


def wanted_completion(request: CompletionRequest, vocabulary: Vocabulary, limits: Limits) -> Wanted:
    """What a request for a completion asks for; may take long with a long prompt.

    Raises:
        ApiError: something in it is wrong, or not supported.
    """
    request.check()
    every = _texts_or_tokens(request.prompt)
    _check_choices(len(every) * (request.n or 1), limits)
    prompts = [
        vocabulary.of_text(item) if isinstance(item, str) else vocabulary.checked(item, "prompt") for item in every
    ]
    most = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    return _wanted(request, prompts, most, request.logprobs, vocabulary, limits, "prompt")


def _texts_or_tokens(given: Any) -> Sequence[str | list[int]]:
    """The prompts of a request, each a text or tokens.

    Raises:
        ApiError: they are something else, or none.
    """
    if isinstance(given, str) or _are(given, int):
        return [given]
    if _are(given, str) or (_are(given, list) and all(_are(item, int) for item in given)):
        every: Sequence[str | list[int]] = given
        return every
    raise invalid("prompt", "'prompt' must be a text, a list of texts, a list of tokens, or a list of such lists.")


def _are(given: Any, kind: type) -> bool:
    """Whether it is a list of something, with one member at least; ``True`` is no token."""
    return isinstance(given, list) and bool(given) and all(type(item) is kind for item in given)


def _wanted(
    request: ChatRequest | CompletionRequest,
    prompts: list[list[int]],
    most: int | None,
    alternatives: int | None,
    vocabulary: Vocabulary,
    limits: Limits,
    param: str,
) -> Wanted:
    n = request.n or 1
    _check_choices(len(prompts) * n, limits)
    return Wanted(
        prompts=prompts,
        max_tokens=[_room(len(prompt), most, limits, param) for prompt in prompts],
        n=n,
        sampling=Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logit_bias=_biases(request.logit_bias, vocabulary),
            logprobs=alternatives,
        ),
        stops=_stops(request.stop),
    )


def _check_choices(count: int, limits: Limits) -> None:
    if count > limits.parallel:
        raise invalid("n", f"{count} answers to one request; this server gives at most {limits.parallel}.")


def _room(prompt: int, most: int | None, limits: Limits, param: str) -> int:
    """Tokens that an answer may have."""
    left = limits.context - prompt
    if left < 1 or (most is not None and most > left):
        asked = f" and {most} of the answer" if most is not None else ""
        raise ApiError(
            400,
            f"This model's context is {limits.context} tokens; the request has {prompt} tokens in {param!r}{asked}. "
            f"Shorten it{', or ask for fewer' if most is not None else ''}.",
            param=param,
            code="context_length_exceeded",
        )
    return left if most is None else most


def _stops(stop: Any) -> tuple[str, ...]:
    if not (stop is None or stop == [] or isinstance(stop, str) or _are(stop, str)):
        raise invalid("stop", "'stop' must be a text, or a list of texts.")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS:
        raise invalid("stop", f"{len(stops)} stop sequences; at most {MOST_STOPS} may be given.")
    if any(not 0 < len(text) <= LONGEST_STOP for text in stops):
        raise invalid("stop", f"A stop sequence must have from 1 to {LONGEST_STOP} characters.")
    return stops


def _biases(given: Any, vocabulary: Vocabulary) -> dict[int, float]:
    if given is not None and (not isinstance(given, dict) or len(given) > MOST_BIASES):
        raise invalid("logit_bias", f"'logit_bias' must be an object of at most {MOST_BIASES} tokens.")
    out = {}
    for name, bias in (given or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary.size):
            raise invalid("logit_bias", f"{name[:40]!r} is no token of this model.")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise invalid("logit_bias", f"The bias of token {name} is not between -100 and 100.")
        out[int(name)] = bias
    return out
