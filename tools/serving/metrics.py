"""What Prometheus may ask about."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from .engine import StoppedError

if TYPE_CHECKING:
    from .job import Job
    from .service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and times of one server, in a registry of their own; the engine's `Watcher`.

    Attributes:
        requests: answered, by endpoint and status.
        resizes: asked for over HTTP, by how they ended.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry}
        timed = own | {"buckets": _SECONDS}
        self.requests = Counter("bstk_requests", "Requests answered", ["endpoint", "status"], **own)
        self.resizes = Counter("bstk_resizes", "Resizes asked for over HTTP", ["result"], **own)
        self._ended = Counter("bstk_generations", "Generations that ended", ["result"], **own)
        self._prompt = Counter("bstk_prompt_tokens", "Tokens of prompts that were read", **own)
        self._completion = Counter("bstk_completion_tokens", "Tokens that were written", **own)
        self._passes = Histogram("bstk_pass_seconds", "Time of a pass through the model", **timed)
        self._queued = Histogram("bstk_queue_seconds", "Time until a request had its first turn", **timed)
        self._first = Histogram("bstk_first_token_seconds", "Time until a request had its first token", **timed)
        self._whole = Histogram("bstk_generation_seconds", "Time until a request had its last token", **timed)

    def advanced(self, seconds: float, job: "Job") -> None:
        """See `bitstack.tools.serving.engine.Watcher`."""
        self._passes.observe(seconds)

    def ended(self, job: "Job", error: BaseException | None) -> None:
        """See `bitstack.tools.serving.engine.Watcher`."""
        self._prompt.inc(job.prompt_tokens)
        self._completion.inc(job.completion_tokens)
        for time_of, histogram in ((job.started, self._queued), (job.first, self._first)):
            if time_of is not None:
                histogram.observe(time_of - job.created)
        result = "done"
        if error is not None:
            result = "stopped" if isinstance(error, StoppedError) else "failed"
        elif job.cancelled:
            result = "cancelled"
        else:
            self._whole.observe(time.monotonic() - job.created)
        self._ended.labels(result).inc()

    def watch(self, service: "Service") -> None:
        """Report what a service holds, too."""
        self.registry.register(_State(service))

    def text(self) -> bytes:
        """All of it in the format that Prometheus reads."""
        return generate_latest(self.registry)


class _State:
    """Gauges that are read when they are asked for."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What there is, without asking for it."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        service = self._service
        ready = service.engine is not None and not service.draining
        yield GaugeMetricFamily("bstk_ready", "Whether new requests are answered", int(ready))
        yield GaugeMetricFamily("bstk_requests_admitted", "Requests in the server", service.admitted)
        engine, budget = service.engine, service.budget
        if engine is not None:
            yield GaugeMetricFamily("bstk_requests_waiting", "Requests that wait for a turn", engine.waiting)
            yield GaugeMetricFamily("bstk_requests_running", "Requests that take turns", engine.running)
            yield GaugeMetricFamily("bstk_cached_tokens", "Tokens in the caches of all requests", engine.cached_tokens)
        if budget is not None:
            state = budget.state()
            for name, meaning in (
                ("budget_bytes", "The budget of the weights"),
                ("resident_bytes", "Weights in memory"),
                ("n_blocks", "Blocks in memory"),
                ("available_blocks", "Blocks of the file"),
            ):
                yield GaugeMetricFamily(f"bstk_{name}", meaning, state[name])
