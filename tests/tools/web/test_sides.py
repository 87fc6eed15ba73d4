"""Two budgets, one model or two: what is resident, what is written, what fails."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack.loader import Free
from bitstack.tools.web import sides as sides_module
from bitstack.tools.web.room import Room, find_room
from bitstack.tools.web.sides import Sides, Written
from bitstack.tools.web.writing import Turns
from bsformat.errors import BudgetError, ModelError, SourceError

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.fixture
def container(tiny_bstk: Path) -> Iterator[bsformat.Container]:
    with bsformat.open(tiny_bstk) as opened:
        yield opened


def opened_sides(container: bsformat.Container, models: Any) -> Sides:
    use = bitstack.Use(128)
    room = find_room(container, CPU, F32, use, models=models, budget="60%")
    loaded = [bitstack.load(container, room.budgets[i], CPU, use=use) for i in range(room.models)]
    return Sides(loaded, bitstack.load_tokenizer(container), room)


@pytest.fixture(params=["one", "two"])
def both(request: pytest.FixtureRequest, container: bsformat.Container) -> Iterator[Sides]:
    made = opened_sides(container, request.param)
    yield made
    made.close()


def alone(container: bsformat.Container, budget: int, prompt: str, tokens: int) -> str:
    """What a fresh load of a budget writes."""
    from bitstack.tools.generate_command import complete

    model = bitstack.load(container, budget, CPU)
    return complete(model, bitstack.load_tokenizer(container), prompt, tokens, raw=False, temperature=0.0, seed=0)[0]


def test_both_write_what_a_fresh_load_of_their_budget_writes(both: Sides, container: bsformat.Container) -> None:
    events = list(both.write("the sea is wide", 12))
    for side in (0, 1):
        own = [event for event in events if event.side == side]
        assert own[0] == Written(side, None)
        counts = list(dict.fromkeys(event.tokens for event in own[1:-1]))
        assert counts == list(range(1, len(counts) + 1))  # one event for every token
        assert own[-1].seconds is not None
        assert own[-1].text == alone(container, both.standing(side).budget, "the sea is wide", 12)
    order = [event.side for event in events if event.tokens]
    assert (order == sorted(order)) is not both.two


def test_resident_is_what_the_model_holds(both: Sides) -> None:
    for budget in ("40%", "90%", "70%"):
        size = bsformat.parse_size(budget, both.room.most)
        both.move(1, size)
        standing = both.standing(1)
        model = both._model(1)
        assert standing.resident_bytes == model.bitstack.resident_bytes == standing.expected
        assert standing.resident_bytes <= size
        assert standing.n_blocks == model.bitstack.plan.n_blocks
    assert (both.standing(0).resident_bytes is None) is not both.two


def test_a_budget_is_kept_within_the_room(both: Sides) -> None:
    both.move(0, 0)
    assert both.standing(0).budget == both.room.least
    both.move(0, 1 << 50)
    assert both.standing(0).budget == both.room.most


def test_moving_while_it_writes_resizes_the_model_that_writes(both: Sides, container: bsformat.Container) -> None:
    texts = both.write("the sea", 40)
    for event in texts:
        if event.side == 0 and event.tokens == 3:
            both.move(0, both.room.most)
            assert both._model(0).bitstack.plan.n_blocks == len(container)
            both.move(1, both.room.least)
            # One model is busy with the other side: it comes to this budget when it is that side's turn.
            assert both._model(0).bitstack.plan.n_blocks == len(container)
    assert both._model(1).bitstack.plan.n_blocks == container.index.required
    assert both.standing(1).resident_bytes == both.room.least


def test_stop_ends_both(both: Sides) -> None:
    ends = []
    for event in both.write("the sea", 100):
        if event.tokens == 2:
            both.stop()
        if event.seconds is not None or event.error:
            ends.append(event)
    assert [event.error for event in ends] == ["stopped", "stopped"]
    assert all(event.tokens < 10 for event in ends)
    assert [event.text is not None for event in both.write("the sea", 2)].count(True) > 2  # and it writes again


def test_leaving_the_texts_ends_the_writing(both: Sides) -> None:
    texts = both.write("the sea", 100)
    next(texts)
    texts.close()  # type: ignore[attr-defined]
    assert both._workers._work_queue.qsize() == 0
    assert not both._busy


def test_a_failure_is_told_and_the_other_side_goes_on(both: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sides_module.write

    def fails(*args: Any) -> float:
        if args[-1] == 0:
            raise SourceError("the cable is cut", where="tiny.bstk")
        return real(*args)

    monkeypatch.setattr(sides_module, "write", fails)
    ends = {event.side: event for event in both.write("the sea", 3)}
    assert "the cable is cut" in str(ends[0].error)
    assert (ends[1].tokens, ends[1].error) == (3, None)


def test_prompts_without_room_are_refused(both: Sides) -> None:
    with pytest.raises(ModelError, match="there is room for 1 to 127"):
        list(both.write("sea " * 200, 3))
    written = list(both.write("sea " * 30, 500))
    assert max(event.tokens for event in written) < 128


def free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Let a device have so much memory free."""
    monkeypatch.setattr("bitstack.loader.budget.free_memory", lambda device: Free(free_bytes, 1 << 40, "a test"))


def room(container: bsformat.Container, **options: Any) -> Room:
    return find_room(container, CPU, F32, bitstack.Use(128), **options)


def test_memory_decides_how_many_models(container: bsformat.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were so already: no test makes the heap of all the others steady.
    for place in ("bitstack.loader", "bitstack.loader.memory"):
        monkeypatch.setattr(f"{place}.heap_is_steady", lambda: True)
    plenty = room(container)
    assert plenty.models == 2
    assert plenty.reason.startswith("Two models in memory, one for each side: ")
    assert plenty.budgets[1] == plenty.most
    assert plenty.budgets[0] < plenty.most
    with bsformat.open(container.uri) as other:
        model = bitstack.load(other, "100%", CPU, use=bitstack.Use(128))
        needs = model.bitstack.needs
        beside = needs.cache_bytes + needs.workspace_bytes
    spare = 64 << 20
    free(monkeypatch, spare + 2 * (beside + plenty.most))
    assert room(container).models == 2
    free(monkeypatch, spare + 2 * (beside + plenty.most) - 1)
    one = room(container)
    assert (one.models, one.most) == (1, plenty.most)
    assert "two could take" in one.reason
    two = room(container, models="two")
    assert two.most == plenty.most - 1
    # A lower ceiling makes room for a second one.
    assert room(container, ceiling="90%").models == 2
    free(monkeypatch, spare + beside + plenty.most - 10)
    assert room(container).most == plenty.most - 10
    with pytest.raises(BudgetError, match="no room for two models"):
        room(container, models="two")


def test_budgets_that_do_not_fit_are_refused(container: bsformat.Container) -> None:
    with pytest.raises(BudgetError, match=r"--budget .* is above the most"):
        room(container, budget="90%", ceiling="80%")
    with pytest.raises(BudgetError, match="below the minimum"):
        room(container, against="1KiB")
    assert room(container, budget="1GiB").budgets[0] == room(container).most
    assert "as --models one asks" in room(container, models="one").reason


def test_turns_alternate_until_one_leaves() -> None:
    turns, order = Turns([0, 1]), []

    def work(writer: int, count: int) -> None:
        turns.wait(writer)
        for _ in range(count):
            order.append(writer)
            turns.pass_on(writer)
        turns.leave(writer)

    threads = [threading.Thread(target=work, args=args) for args in ((1, 2), (0, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 0, 1, 0, 0, 0]
