"""The policy, over traces of memory: readings that were written down, and readings that were drawn."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstack.loader import Decision, Governor, Marks
from bsformat.errors import BudgetError

MARKS = Marks(floor=200, ceiling=1000, low=100, high=300, step=150, dwell=5, backoff=20, longest_backoff=70)


@dataclass
class Machine:
    """A machine on which others hold some memory and a model of blocks of 7 bytes the rest, ticked once a second.

    Attributes:
        memory: of the machine. others: what others hold.
        fails: whether the next resizes raise.
        history: every decision, and the free memory after it was carried out.
    """

    governor: Governor
    memory: int
    others: int = 0
    fails: bool = False
    time: float = 0.0
    history: list[tuple[Decision, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.resident = self.governor.budget // 7 * 7

    @property
    def free(self) -> int:
        return max(0, self.memory - self.others - self.resident)

    def tick(self, others: int | None = None, *, known: bool = True) -> Decision:
        self.time += 1
        self.others = self.others if others is None else others
        decision = self.governor.decide(self.time, self.free if known else None, self.resident)
        if decision.action != "hold":
            if self.fails:
                self.governor.failed(self.time, decision)
            else:
                self.resident = decision.target // 7 * 7
                self.governor.resized(self.time, decision)
        self.history.append((decision, self.free))
        return decision

    def run(self, ticks: int, others: int | None = None) -> list[str]:
        return [self.tick(others).reason for _ in range(ticks)]

    @property
    def changes(self) -> list[Decision]:
        return [decision for decision, _ in self.history if decision.action != "hold"]


def test_a_drop_is_answered_in_the_same_tick() -> None:
    machine = Machine(Governor(MARKS, 1000), 2000)
    assert machine.run(3) == ["ceiling"] * 3
    decision = machine.tick(1000)
    assert (decision.action, decision.reason, decision.free) == ("shrink", "low", 6)
    # What is free now is the target, give or take a block.
    assert 200 <= machine.free < 207
    assert machine.governor.budget == 1000 - 6 - (200 - 6)
    assert machine.run(50) == ["band"] * 50


def test_it_falls_to_the_floor_and_says_so() -> None:
    machine = Machine(Governor(MARKS, 1000), 2000)
    # What is free is told from 0 on: how much is missing shows only as it is freed.
    assert machine.run(4, 1900) == ["low"] * 4
    assert [decision.target for decision in machine.changes] == [794, 591, 388, 200]
    assert machine.run(3) == ["floor"] * 3
    assert machine.governor.budget == 200


def test_growth_waits_comes_in_steps_and_ends_at_the_ceiling() -> None:
    machine = Machine(Governor(MARKS, 300), 5000)
    reasons = machine.run(40)
    grown = [decision for decision in machine.changes if decision.action == "grow"]
    assert [decision.target for decision in grown] == [450, 600, 750, 900, 1000]
    # Free memory is above the high mark from the first tick on; the step after each change waits as long again.
    assert [decision.time for decision in grown] == [6, 12, 18, 24, 30]
    assert reasons[:6] == ["dwell"] * 5 + ["high"]
    assert reasons[30:] == ["ceiling"] * 10


def test_a_moment_below_the_high_mark_starts_the_dwell_anew() -> None:
    machine = Machine(Governor(MARKS, 300), 1000)
    machine.run(5, 300)
    assert machine.tick(450).reason == "band"
    assert machine.run(5, 300) == ["dwell"] * 5
    assert machine.tick(300).reason == "high"


def test_growth_leaves_the_target_free() -> None:
    machine = Machine(Governor(MARKS, 300), 1000)
    machine.run(30, 380)
    assert [decision.target for decision in machine.changes] == [294 + 326 - 200]
    assert machine.free >= MARKS.target


def test_a_step_smaller_than_a_block_gets_there_all_the_same() -> None:
    marks = Marks(floor=0, ceiling=100, low=100, high=300, step=2, dwell=0, backoff=20)
    machine = Machine(Governor(marks, 7), 5000)
    machine.run(50)
    assert machine.resident == 98
    assert machine.governor.budget == 100


def test_growing_that_fails_is_tried_less_and_less_often() -> None:
    machine = Machine(Governor(MARKS, 300), 5000, fails=True)
    machine.run(250)
    times = [decision.time for decision in machine.changes]
    assert times == [6, 26, 66, 136, 206]  # 20, 40, then the longest
    assert machine.governor.failures == 5
    machine.fails = False
    machine.run(100)
    assert machine.governor.budget == 1000
    assert machine.governor.failures == 0


def test_shrinking_that_fails_is_tried_at_every_tick() -> None:
    machine = Machine(Governor(MARKS, 1000), 2000, fails=True)
    assert machine.run(4, 1000) == ["low"] * 4
    machine.fails = False
    assert machine.tick().reason == "low"
    assert machine.free >= MARKS.target


def test_growth_that_had_to_be_taken_back_counts_as_failed() -> None:
    machine = Machine(Governor(MARKS, 300), 2000)
    taken = 0
    for _ in range(300):  # others take whatever was left, as soon as the model has grown, and let go again
        machine.tick(0 if machine.governor.budget == 200 or not taken else taken)
        grew = machine.changes and machine.changes[-1].action == "grow"
        taken = 1900 if grew else 0
    grown = [decision.time for decision in machine.changes if decision.action == "grow"]
    gaps = [b - a for a, b in pairwise(grown)]
    assert gaps[:2] == [21, 41]
    assert set(gaps[2:]) == {71}


def test_nothing_is_done_where_nothing_is_known() -> None:
    machine = Machine(Governor(MARKS, 500), 5000)
    machine.run(5)
    assert machine.tick(known=False).reason == "unknown"
    assert machine.run(5) == ["dwell"] * 5  # what was seen before no longer counts
    assert Governor(MARKS, 1200).decide(0.0, None, 1200).reason == "above-ceiling"


def test_a_budget_outside_of_floor_and_ceiling_is_brought_inside() -> None:
    above = Machine(Governor(MARKS, 1500), 5000)
    assert (above.tick().reason, above.governor.budget) == ("above-ceiling", 1000)
    below = Machine(Governor(MARKS, 50), 5000)
    assert (below.tick().reason, below.governor.budget) == ("below-floor", 200)
    crowded = Machine(Governor(MARKS, 50), 240)
    assert (crowded.tick().reason, crowded.governor.budget) == ("no-room", 50)
    failing = Machine(Governor(MARKS, 50), 5000, fails=True)
    assert failing.run(3) == ["below-floor", "backoff", "backoff"]


@pytest.mark.parametrize(
    "changes",
    [
        {"floor": 1001},
        {"floor": -1},
        {"low": 300},
        {"low": -1},
        {"target": 100},
        {"target": 300},
        {"step": 0},
        {"dwell": -1.0},
        {"backoff": 0.0},
        {"backoff": 100.0},
        {"dwell": float("nan")},
    ],
)
def test_marks_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BudgetError) as caught:
        Marks(**(MARKS.to_json() | changes))
    assert caught.value.reason == "budget-invalid"
    assert "\n" not in str(caught.value)


def test_marks_around_a_model() -> None:
    marks = Marks.around(floor=100, ceiling=900, spare=40, beside=60)
    assert (marks.low, marks.target, marks.high, marks.step) == (40, 100, 140, 100)
    assert Marks.around(floor=5, ceiling=5, spare=0, beside=0).step == 1
    assert Marks.around(floor=100, ceiling=900, spare=40, beside=60, step=7, dwell=1.5, high=500).high == 500
    moved = Marks.around(floor=100, ceiling=900, spare=40, beside=60, low=300, high=1000)
    assert (moved.low, moved.target, moved.high) == (300, 360, 1000)


BLOCK = 7
#: What others hold, tick by tick: levels and how long they last.
TRACES = st.lists(st.tuples(st.integers(0, 2200), st.integers(1, 12)), min_size=1, max_size=25)


@st.composite
def all_marks(draw: st.DrawFn) -> Marks:
    floor = draw(st.integers(0, 800))
    low = draw(st.integers(0, 400))
    target = low + draw(st.integers(1, 300))
    backoff = draw(st.floats(0.5, 50))
    return Marks(
        floor=floor,
        ceiling=floor + draw(st.integers(0, 1200)),
        low=low,
        target=target,
        high=target + draw(st.integers(1, 300)),
        step=draw(st.integers(1, 500)),
        dwell=draw(st.floats(0, 10)),
        backoff=backoff,
        longest_backoff=backoff * draw(st.floats(1, 20)),
    )


@given(marks=all_marks(), start=st.floats(0, 1), trace=TRACES, failures=st.sets(st.integers(0, 300), max_size=150))
@settings(max_examples=150, deadline=None)
def test_over_any_trace(marks: Marks, start: float, trace: list[tuple[int, int]], failures: set[int]) -> None:
    budget = marks.floor + round(start * (marks.ceiling - marks.floor))
    machine = Machine(Governor(marks, budget), 2000)
    blocked = float("-inf")
    changed = float("-inf")
    for others in [level for level, length in trace for _ in range(length)]:
        machine.fails = len(machine.history) in failures
        before = machine.governor.budget
        decision = machine.tick(others)
        after, free = machine.governor.budget, decision.free
        assert free is not None
        assert marks.floor <= decision.target <= marks.ceiling
        assert marks.floor <= after <= marks.ceiling
        assert (decision.action == "hold") == (decision.target == before)
        if free < marks.low:  # a drop is answered in this tick, down to the floor if need be
            assert decision.action == "shrink" or before == marks.floor
            if not machine.fails and free > 0:
                assert machine.free >= marks.target or after == marks.floor
            elif not machine.fails:  # by how much memory is short cannot be seen
                assert after <= max(marks.floor, before - marks.target)
        elif free <= marks.high:  # within the band nothing happens
            assert decision.action == "hold"
        else:
            assert decision.action != "shrink"
        if decision.action == "grow":
            assert free > marks.high
            assert 0 < decision.target - before <= marks.step
            assert decision.time - changed >= marks.dwell
            assert decision.time >= blocked
            assert machine.fails or machine.free >= marks.target
        if machine.fails:
            assert after == before
            if decision.action == "grow":
                pause = machine.governor.blocked_until - decision.time
                assert marks.backoff <= pause <= marks.longest_backoff or pause == pytest.approx(marks.backoff)
        if after != before:
            changed = decision.time
        blocked = machine.governor.blocked_until


@given(marks=all_marks(), others=st.integers(0, 2200), start=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_on_a_machine_at_rest_it_comes_to_rest(marks: Marks, others: int, start: float) -> None:
    budget = marks.floor + round(start * (marks.ceiling - marks.floor))
    machine = Machine(Governor(marks, budget), 2000, others)
    # Shrinking, one time where the shortage shows, then growth only: never up and down.
    machine.run(1500)
    actions = [decision.action for decision in machine.changes]
    assert actions == sorted(actions, reverse=True)
    if machine.history[0][0].free:
        assert actions.count("shrink") <= 1
    assert machine.governor.failures == 0


@given(
    marks=all_marks(),
    others=st.integers(0, 2200),
    swing=st.lists(st.floats(0, 1), min_size=1, max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_what_others_do_within_the_band_moves_nothing(marks: Marks, others: int, swing: list[float]) -> None:
    machine = Machine(Governor(marks, marks.ceiling), 2000, others)
    machine.run(300)
    settled = machine.governor.budget
    # Whatever others hold so that between the low and the high mark, both included, is free.
    least, most = 2000 - machine.resident - marks.high, 2000 - machine.resident - marks.low
    if least < 0:
        return
    for share in swing:
        assert machine.tick(round(least + share * (most - least))).action == "hold"
    assert machine.governor.budget == settled


@given(marks=all_marks(), trace=TRACES, failures=st.sets(st.integers(0, 100), max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_same_readings_give_the_same_decisions(
    marks: Marks, trace: list[tuple[int, int]], failures: set[int]
) -> None:
    runs = []
    for _ in range(2):
        machine = Machine(Governor(marks, marks.ceiling), 2000)
        for number, (others, _) in enumerate(trace):
            machine.fails = number in failures
            machine.tick(others)
        runs.append(machine.history)
    assert runs[0] == runs[1]
