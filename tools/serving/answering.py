"""One request from its body to its answer, whole or as a stream of events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .answers import Answer, ChatAnswer, CompletionAnswer
from .errors import ApiError
from .flow import Flow, Item
from .job import Wanted
from .limits import Limits
from .schemas import ChatRequest, CompletionRequest
from .service import Service
from .vocabulary import Vocabulary
from .wanted import wanted_chat, wanted_completion

_Body = TypeVar("_Body", ChatRequest, CompletionRequest)

#: Status of an answer that nobody is there to read, by the custom of proxies.
_NOBODY: Final = 499
_STREAM: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer_chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """Of ``/v1/chat/completions``."""
    return await _answer(service, request, body, wanted_chat, ChatAnswer)


async def answer_completion(service: Service, request: Request, body: CompletionRequest) -> Response:
    """Of ``/v1/completions``."""
    return await _answer(service, request, body, wanted_completion, CompletionAnswer)


def unknown_model(name: str, there: str) -> ApiError:
    """The request names a model that is not here."""
    return ApiError(
        404, f"No model {name[:100]!r} here; this server has {there!r}.", param="model", code="model_not_found"
    )


async def _answer(
    service: Service,
    request: Request,
    body: _Body,
    read: Callable[[_Body, Vocabulary, Limits], Wanted],
    kind: type[Answer],
) -> Response:
    """The answer to a request; its headers go out when it has its first token.

    Raises:
        ApiError: there will be none.
    """
    engine, vocabulary, budget = service.ready()
    if body.model != service.name:
        raise unknown_model(body.model, service.name)
    with ExitStack() as stack:
        stack.enter_context(service.place())
        # Long texts take long to split, and others are answered meanwhile.
        wanted = await asyncio.to_thread(read, body, vocabulary, service.limits)
        root, token_ids = budget.elastic.container.root, bool(body.return_token_ids)
        answer = kind(wanted, vocabulary, name=service.name, root=root, token_ids=token_ids)
        chunk, streamed = service.limits.chunk, bool(body.stream)
        flow = stack.enter_context(Flow(request, engine, vocabulary, wanted, answer, chunk, streamed=streamed))
        first = await flow.next()
        if first is None:
            return Response(status_code=_NOBODY)
        headers = {"X-Request-Id": answer.id} | dict(budget.headers(first.run.n_blocks, first.run.resident_bytes))
        if streamed:
            events = _events(flow, first, usage=body.with_usage)
            return _Stream(events, stack.pop_all(), media_type="text/event-stream", headers=headers | _STREAM)
        while await flow.next() is not None:
            pass
        return JSONResponse(answer.whole(), headers=headers)


class _Stream(StreamingResponse):
    """A stream whose end, of whatever kind, ends what it stands for."""

    def __init__(self, events: AsyncIterator[bytes], ends: ExitStack, **options: Any) -> None:
        super().__init__(events, **options)
        self._ends = ends

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._ends:
            await super().__call__(scope, receive, send)


async def _events(flow: Flow, first: Item, *, usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream: every chunk, the count of tokens if it was asked for, and ``[DONE]``."""
    item: Item | None = first
    nothing: dict[str, Any] = {"usage": None} if usage else {}
    try:
        while item is not None and item.chunk is not None:
            yield _event(item.chunk | nothing)
            item = await flow.next()
    except ApiError as error:  # the status has gone out long ago
        yield _event(error.to_json())
        return
    if usage:
        yield _event(flow.answer.last_chunk())
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
