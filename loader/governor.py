"""When to grow and when to shrink a model on a machine whose free memory varies: the policy, and nothing else.

No clock, no thread, no reading of memory: a program (`bitstack.loader.Driver`, a server's own loop, a test with a
trace) says what time it is and what is free, and is told what to do. The same readings give the same decisions.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bsformat import format_size
from bsformat.errors import BudgetError

Action = Literal["grow", "shrink", "hold"]
#: Why a decision was made.
#:
#: shrink: ``low`` (free memory fell below the low mark), ``above-ceiling``. grow: ``high`` (it stayed above the high
#: mark), ``below-floor``. hold: ``band`` (not above the high mark), ``dwell`` (above it, but not for long enough),
#: ``backoff`` (growing failed, or had to be taken back, not long ago), ``ceiling``, ``no-room``, ``floor`` (below the
#: low mark with nothing left to give up), ``unknown`` (nobody can tell what is free).
Reason = Literal[
    "low", "above-ceiling", "high", "below-floor", "band", "dwell", "backoff", "ceiling", "no-room", "floor", "unknown"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The settings of a `Governor`. Sizes are bytes, times seconds.

    Attributes:
        floor, ceiling: the smallest and the largest budget that it sets, both included.
        low: below so much free memory it shrinks, at once.
        high: above so much, and only there, it may grow.
        target: what a shrink leaves free, and a growth at least; low < target < high, the middle by default (0). What
            others take and give back between low and high, the target in between, changes nothing.
        step: the most that one growth adds.
        dwell: for how long free memory must stay above ``high``, and nothing have changed, before a growth.
        backoff: for how long nothing grows after a growth that failed, or that had to be taken back within ``dwell``;
            twice as long after each further one, up to ``longest_backoff``, until a growth has stood for ``dwell``.

    Raises:
        BudgetError: they contradict each other.
    """

    floor: int
    ceiling: int
    low: int
    high: int
    target: int = 0
    step: int
    dwell: float = 5.0
    backoff: float = 15.0
    longest_backoff: float = 600.0

    def __post_init__(self) -> None:
        if self.target == 0:
            object.__setattr__(self, "target", (self.low + self.high) // 2)
        wrong = None
        if not 0 <= self.floor <= self.ceiling:
            wrong = f"the floor, {format_size(self.floor)}, is above the ceiling, {format_size(self.ceiling)}"
        elif not 0 <= self.low < self.target < self.high:
            wrong = f"the marks of free memory must rise: low {self.low}, target {self.target}, high {self.high}"
        elif self.step < 1:
            wrong = f"the step must be at least 1 byte, not {self.step}"
        elif not (self.dwell >= 0 and 0 < self.backoff <= self.longest_backoff):
            wrong = "the dwell must be at least 0, the back-off above 0 and at most the longest one"
        if wrong:
            raise BudgetError(wrong, reason="budget-invalid")

    @classmethod
    def around(cls, *, floor: int, ceiling: int, spare: int, beside: int, **changes: Any) -> "Marks":
        """Marks that suit a model.

        Args:
            floor, ceiling: see the attributes.
            spare: bytes that are to stay free for others whatever happens: the low mark.
            beside: bytes that the model takes beside its weights when it works, which growing must leave.
            changes: other attributes; those that follow from another one, and are not given, move with it.
        """
        step = max(1, (ceiling - floor) // 8)
        low = changes.get("low", spare)
        marks: dict[str, Any] = {"low": low, "target": low + max(1, beside), "step": step}
        marks |= changes
        marks.setdefault("high", max(marks["target"], marks["low"]) + min(step, max(1, spare)))
        return cls(floor=floor, ceiling=ceiling, **marks)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a governor decided, and on what grounds.

    Attributes:
        time: seconds, of the clock of whoever asked.
        action, reason: what to do, and why.
        free: bytes that were free; None where nobody can tell.
        resident: bytes of the weights that were in memory.
        budget: the budget that held. target: the one to set; the same where nothing is to be done.
    """

    time: float
    action: Action
    reason: Reason
    free: int | None
    resident: int
    budget: int
    target: int

    def __str__(self) -> str:
        """One line."""
        free = "unknown" if self.free is None else format_size(self.free)
        change = f"{format_size(self.budget)} -> {format_size(self.target)}"
        done = f"{self.action} {change}" if self.action != "hold" else f"hold {format_size(self.budget)}"
        return f"{done} ({self.reason}): {free} free, {format_size(self.resident)} resident"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


class Governor:
    """Decides, reading by reading, which budget a model should have.

    Call `decide` regularly; where its decision is not to hold, resize to its target and say how that ended with
    `resized` or `failed`. Not to be used by several threads at once.

    Attributes:
        marks: its settings.
        budget: the budget that holds.
        failures: growths in a row that failed or were taken back.
        blocked_until: nothing grows before this time.

    Args:
        budget: the one that the model has now.
    """

    def __init__(self, marks: Marks, budget: int) -> None:
        self.marks, self.budget = marks, budget
        self.failures = 0
        self.blocked_until = float("-inf")
        self._high_since: float | None = None
        self._changed = float("-inf")
        self._grown: float | None = None

    def decide(self, time: float, free: int | None, resident: int) -> Decision:
        """What to do now.

        Args:
            time: seconds of a clock that never goes back.
            free: bytes that are free on the device, without those of the model; None where that cannot be told.
            resident: bytes of the weights that are in memory, at most the budget.
        """
        marks = self.marks
        if self._grown is not None and time - self._grown >= marks.dwell:
            self._grown, self.failures = None, 0  # it has stood
        if free is None or free <= marks.high:
            self._high_since = None
        elif self._high_since is None:
            self._high_since = time

        def decision(action: Action, reason: Reason, target: int = self.budget) -> Decision:
            return Decision(time, action, reason, free, resident, self.budget, target)

        # What the weights may take if the target is to be free.
        fitting = resident + (0 if free is None else free - marks.target)
        if free is not None and free < marks.low:
            wanted = max(marks.floor, min(fitting, marks.ceiling))
            return decision("shrink", "low", wanted) if wanted < self.budget else decision("hold", "floor")
        if self.budget > marks.ceiling:
            return decision("shrink", "above-ceiling", marks.ceiling)
        if free is None:
            return decision("hold", "unknown")
        if self.budget < marks.floor:
            if time < self.blocked_until:
                return decision("hold", "backoff")
            fits = free - (marks.floor - resident) >= marks.low
            return decision("grow", "below-floor", marks.floor) if fits else decision("hold", "no-room")
        return self._growth(time, fitting, decision)

    def _growth(self, time: float, fitting: int, decision: Callable[..., Decision]) -> Decision:
        marks, since = self.marks, self._high_since
        wanted = min(marks.ceiling, self.budget + marks.step, fitting)
        if since is None:
            return decision("hold", "band")
        if self.budget >= marks.ceiling:
            return decision("hold", "ceiling")
        if time < self.blocked_until:
            return decision("hold", "backoff")
        if time - max(since, self._changed) < marks.dwell:
            return decision("hold", "dwell")
        return decision("grow", "high", wanted) if wanted > self.budget else decision("hold", "no-room")

    def resized(self, time: float, decision: Decision) -> None:
        """What was decided has been done."""
        taken_back = decision.action == "shrink" and self._grown is not None
        self.budget, self._changed, self._high_since = decision.target, time, None
        self._grown = time if decision.action == "grow" else None
        if taken_back:
            self._back_off(time)

    def failed(self, time: float, decision: Decision) -> None:
        """It could not be done, and the budget is what it was. Growing waits; shrinking is tried again at once."""
        self._high_since = None
        if decision.action == "grow":
            self._grown = None
            self._back_off(time)

    def _back_off(self, time: float) -> None:
        marks = self.marks
        pause = marks.backoff * 2.0 ** min(self.failures, 60)
        self.failures += 1
        self.blocked_until = time + min(pause, marks.longest_backoff)
