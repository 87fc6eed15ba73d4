"""From the body of a request to what the engine is asked for."""

from collections.abc import Sequence

from .errors import ApiError, invalid
from .job import Wanted
from .limits import LONGEST_STOP, MOST_STOPS, Limits
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
    given = request.prompt
    every: Sequence[str | list[int]]
    if isinstance(given, str):
        every = [given]
    elif given and isinstance(given[0], int):
        every = [[token for token in given if isinstance(token, int)]]
    else:
        every = [item for item in given if not isinstance(item, int)]
    if not every:
        raise invalid("prompt", "'prompt' has no tokens: write something.")
    _check_choices(len(every) * (request.n or 1), limits)
    prompts = [
        vocabulary.of_text(item) if isinstance(item, str) else vocabulary.checked(item, "prompt") for item in every
    ]
    most = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    return _wanted(request, prompts, most, request.logprobs, vocabulary, limits, "prompt")


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
            logit_bias=_biases(request.logit_bias or {}, vocabulary),
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


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS:
        raise invalid("stop", f"{len(stops)} stop sequences; at most {MOST_STOPS} may be given.")
    if any(not 0 < len(text) <= LONGEST_STOP for text in stops):
        raise invalid("stop", f"A stop sequence must have from 1 to {LONGEST_STOP} characters.")
    return stops


def _biases(given: dict[str, float], vocabulary: Vocabulary) -> dict[int, float]:
    out = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary.size):
            raise invalid("logit_bias", f"{name[:40]!r} is no token of this model.")
        if not -100 <= bias <= 100:
            raise invalid("logit_bias", f"The bias of token {name} is not between -100 and 100.")
        out[int(name)] = bias
    return out
