"""What the server is doing: the state that HTTP, the engine and the command share."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .errors import ApiError
from .limits import Limits
from .metrics import Metrics

if TYPE_CHECKING:
    from .budget import Budget
    from .engine import Engine
    from .vocabulary import Vocabulary

#: Seconds after which a client may ask again whether the model is loaded.
_LOADING: Final = 2
#: What a Retry-After says at most, in seconds.
_LONGEST: Final = 60


class Service:
    """One model, its limits, and who is being answered.

    Attributes:
        name: of the model, as clients name it.
        created: when the server was started, in seconds since 1970.
        engine, vocabulary, budget: there once the model is loaded.
        draining: the server stops, and answers nothing new.
        admitted: requests that are being answered, or wait for it.
        typical: seconds that a request took of late.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.created = int(time.time())
        self.engine: Engine | None = None
        self.vocabulary: Vocabulary | None = None
        self.budget: Budget | None = None
        self.draining = False
        self.admitted = 0
        self.typical = 1.0
        self.metrics = Metrics()
        self.metrics.watch(self)

    def begin(self, engine: "Engine", vocabulary: "Vocabulary", budget: "Budget", limits: Limits) -> None:
        """The model is there: answer from now on."""
        self.limits = limits
        self.vocabulary, self.budget, self.engine = vocabulary, budget, engine

    def ready(self) -> "tuple[Engine, Vocabulary, Budget]":
        """What answering takes.

        Raises:
            ApiError: not yet, or not any more.
        """
        if self.draining:
            raise ApiError(
                503, "The server is stopping.", code="stopping", headers={"Retry-After": "5", "Connection": "close"}
            )
        if self.engine is None or self.vocabulary is None or self.budget is None:
            raise ApiError(
                503, "The model is still being loaded.", code="loading", headers={"Retry-After": str(_LOADING)}
            )
        return self.engine, self.vocabulary, self.budget

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that are answered; to be taken in the thread of HTTP alone.

        Raises:
            ApiError: all are taken.
        """
        limits = self.limits
        if self.admitted >= limits.admitted:
            wait = math.ceil(self.typical * limits.queue / limits.parallel) or 1
            raise ApiError(
                429,
                f"{limits.admitted} requests are being answered or wait, and there is room for no more: try later.",
                code="queue_full",
                headers={"Retry-After": str(min(wait, _LONGEST))},
            )
        begun = time.monotonic()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1
            self.typical += (time.monotonic() - begun - self.typical) / 8
