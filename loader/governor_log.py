"""What a governor did, as records of the logging module, and read back from lines of JSON.

Every record of the logger `NAME` carries ``record.governor``: ``event`` (``start``, ``decision``, ``resized`` or
``failed``) and the numbers of that event. `JsonLines` writes those, `read_events` reads them.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final

from bsformat import format_size

from .governor import Decision, Marks

#: The logger.
NAME: Final = "bitstack.governor"
_logger = logging.getLogger(NAME)
#: Reasons to hold that somebody should hear of, once, when they begin.
_ALARMS: Final = frozenset({"floor", "unknown"})


class EventLog:
    """Logs what one governor does. Decisions to hold are of level DEBUG, but the first of a kind that alarms."""

    def __init__(self) -> None:
        self._last: str | None = None

    def start(self, time: float, marks: Marks, budget: int) -> None:
        """It begins."""
        text = f"governor: {format_size(marks.floor)} to {format_size(marks.ceiling)}, now {format_size(budget)}; "
        text += f"shrinks below {format_size(marks.low)} free, grows above {format_size(marks.high)}"
        _emit(logging.INFO, text, {"event": "start", "time": time, "budget": budget, "marks": marks.to_json()})

    def decision(self, decision: Decision) -> None:
        """It decided."""
        alarm = decision.reason in _ALARMS and decision.reason != self._last
        self._last = decision.reason
        level = logging.WARNING if alarm else logging.DEBUG if decision.action == "hold" else logging.INFO
        _emit(level, str(decision), {"event": "decision", **decision.to_json()})

    def resized(self, time: float, seconds: float, decision: Decision, resident: int) -> None:
        """It was done."""
        text = f"{decision.action} done: {format_size(resident)} resident after {seconds:.3f} s"
        event = {"event": "resized", "time": time, "action": decision.action, "target": decision.target}
        _emit(logging.INFO, text, event | {"seconds": seconds, "resident": resident})

    def failed(self, time: float, seconds: float, decision: Decision, error: Exception, blocked_until: float) -> None:
        """It could not be done."""
        kind, detail = type(error).__name__, " ".join(str(error).split())[:500]
        text = f"{decision.action} to {format_size(decision.target)} failed after {seconds:.3f} s: {kind}: {detail}"
        event = {"event": "failed", "time": time, "action": decision.action, "target": decision.target}
        event |= {"seconds": seconds, "error": kind, "message": detail, "blocked_until": _finite(blocked_until)}
        _emit(logging.WARNING, text, event)


class JsonLines(logging.Formatter):
    """One JSON object a line: the event, and the ``level`` and the ``text`` of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`; a record of another logger has only level and text."""
        event = getattr(record, "governor", {})
        return json.dumps({**event, "level": record.levelname, "text": record.getMessage()}, allow_nan=False)


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of a log that `JsonLines` wrote; lines that are none, as one that a crash cut off, are left out."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event


def decisions(events: Iterable[dict[str, Any]]) -> Iterator[Decision]:
    """The decisions among some events, as they were made."""
    for event in events:
        if event["event"] == "decision":
            yield Decision(**{name: event[name] for name in Decision.__slots__})


def _emit(level: int, text: str, event: dict[str, Any]) -> None:
    _logger.log(level, "%s", text, extra={"governor": event})


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
