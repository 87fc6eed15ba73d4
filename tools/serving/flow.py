"""A job as the thread of HTTP sees it: what comes of it, item by item, for as long as the client stays."""

import asyncio
from contextlib import suppress
from typing import Any, NamedTuple

from fastapi import Request

from .answers import Answer
from .engine import Engine, StoppedError
from .errors import ApiError
from .job import Ended, Job, Piece, Run, Wanted
from .vocabulary import Vocabulary


class Item(NamedTuple):
    """One more token of an answer.

    Attributes:
        run: which blocks made it.
        chunk: the event of a stream; None where none is wanted.
    """

    run: Run
    chunk: dict[str, Any] | None


class Flow:
    """Submits a job to the engine, and gives what comes of it; in a ``with`` statement, whose end cancels it.

    Args:
        request: whose client may leave, which cancels the job too.
        chunk: tokens of a prompt that go through the model in one pass.
        streamed: whether every token becomes an event.
    """

    def __init__(
        self,
        request: Request,
        engine: Engine,
        vocabulary: Vocabulary,
        wanted: Wanted,
        answer: Answer,
        chunk: int,
        *,
        streamed: bool,
    ) -> None:
        self.answer = answer
        self._request, self._engine, self._streamed = request, engine, streamed
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item | ApiError | None] = asyncio.Queue()
        self._job = Job(wanted, vocabulary, self._tell, chunk)

    def __enter__(self) -> "Flow":
        self._engine.submit(self._job)
        self._watch = asyncio.create_task(self._until_gone())
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self._engine.cancel(self._job)

    async def next(self) -> Item | None:
        """The next token; None when there are no more, or nobody to read them.

        Raises:
            ApiError: the job failed, or the server stops.
        """
        item = await self._items.get()
        if isinstance(item, ApiError):
            raise item
        return item

    async def _until_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._engine.cancel(self._job)

    def _tell(self, event: Piece | Ended) -> None:
        """By the thread of the engine."""
        item: Item | ApiError | None = None
        if isinstance(event, Piece):
            self.answer.take(event)
            item = Item(event.runs[-1], self.answer.chunk(event) if self._streamed else None)
        elif event.error is not None:
            item = _failure(event.error)
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


def _failure(error: BaseException) -> ApiError:
    if isinstance(error, StoppedError):
        return ApiError(503, "The server is stopping.", code="stopping", headers={"Retry-After": "5"})
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ApiError(503, "Out of memory: set a smaller budget, or ask for less.", code="out_of_memory")
    # What it was stands in the server's log.
    return ApiError(500, "Answering failed within the server.", code="internal_error")
