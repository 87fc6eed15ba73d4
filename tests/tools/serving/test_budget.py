"""Budgets that change while requests are answered, by a client, a governor, or what streams in."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack.tools.bench.resizing import allocated
from bitstack.tools.bench.serving import replayed
from tests.loader.tiny import WatchedSource
from tests.tools.serving.conftest import CHAT, Served, asked, extra, until


def test_the_budget_can_be_read_and_set(model: Any) -> None:
    elastic = model.bitstack
    with Served(model) as served:
        state = served.raw.get("/v1/budget").json()
        assert state["resident_bytes"] == elastic.resident_bytes == state["total_bytes"]
        assert state["n_blocks"] == state["available_blocks"] == len(elastic.container)
        assert (state["growing"], state["governor"]) == (None, None)
        small = served.raw.put("/v1/budget", json={"budget": "60%"}).json()
        assert small == served.raw.get("/v1/budget").json()
        assert small["resident_bytes"] == elastic.resident_bytes < state["resident_bytes"]
        answer = served.raw.post("/v1/chat/completions", json=CHAT)
        assert answer.headers["x-bstk-plan"].startswith(f"blocks={small['n_blocks']},")
        for budget in (10, "1KiB", "many", -1):
            refused = served.raw.put("/v1/budget", json={"budget": budget})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "budget"
            assert elastic.plan.n_blocks == small["n_blocks"]
        for body in ({"budget": 1.5}, {"budget": None}, {}, {"budget": "60%", "now": True}):
            assert served.raw.put("/v1/budget", json=body).status_code == 400
        assert served.raw.put("/v1/budget", json={"budget": "auto"}).json()["n_blocks"] == state["n_blocks"]
        grown = served.raw.put("/v1/budget", json={"budget": "80%"}).json()
        assert served.raw.put("/v1/budget", json={"budget": "100%", "progressive": True}).status_code == 200
        elastic.growth.wait(30)
        assert served.raw.get("/v1/budget").json() == state
        assert grown["n_blocks"] < state["n_blocks"]


def test_a_budget_that_changes_in_mid_answer_is_told(model: Any, tiny_bstk: Path) -> None:
    elastic = model.bitstack
    with Served(model) as served:
        shares = {3: "50%", 6: "75%", 9: "30%", 11: "100%"}
        served.passes.before = lambda number: elastic.resize(shares[number]) if number in shares else None
        *_, last = served.chat(max_tokens=16, stream=True, extra_body={"return_token_ids": True})
        ours = extra(last.choices[0])
        runs = ours["runs"]
        assert len(runs) == len(shares) + 1
        assert sum(run["prompt_tokens"] for run in runs) == len(ours["prompt_token_ids"])
        assert sum(run["completion_tokens"] for run in runs) == 16
        assert [run["resident_bytes"] for run in runs] == [
            elastic.container.planner.resident_bytes(run["n_blocks"]) + elastic.widening for run in runs
        ]
        with bsformat.open(tiny_bstk) as container:
            assert replayed(container, ours, served.limits.chunk, {}) == ours["token_ids"]


def test_clients_under_a_budget_that_swings(model: Any, tiny_bstk: Path) -> None:
    elastic = model.bitstack
    with Served(model, parallel=4) as served, bsformat.open(tiny_bstk) as container:
        body = {"max_tokens": 16, "extra_body": {"return_token_ids": True}}
        bodies = [body | {"messages": [{"role": "user", "content": "the sea " * (3 * n + 1)}]} for n in range(4)]
        for each in bodies:
            served.chat(**each)
        elastic.resize("40%")
        elastic.resize("100%")
        before = allocated(torch.device("cpu"))
        served.passes.lengths.clear()
        served.passes.before = lambda number: served.passes.may_go.clear() if number == 8 else None
        with asked(served.chat, *bodies) as answers:
            until(lambda: not served.passes.may_go.is_set())
            elastic.resize("70%")
            served.passes.may_go.set()
            turn = 0
            while not all(answer.done() for answer in answers):
                share = ("40%", "100%", "70%")[turn % 3]
                assert served.raw.put("/v1/budget", json={"budget": share}).status_code == 200
                turn += 1
            found = [extra(answer.result().choices[0]) for answer in answers]
        del answers
        elastic.resize("100%")
        assert allocated(torch.device("cpu")) == before
        assert sum(len(ours["runs"]) for ours in found) > len(found)
        fresh: dict[int, Any] = {}
        for ours in found:
            assert replayed(container, ours, served.limits.chunk, fresh) == ours["token_ids"]


@contextmanager
def held_growth(file: Path) -> Iterator[tuple[Served, Future[Any], threading.Event]]:
    """A server, a growth that was asked of it and waits for its bytes, and what lets these come."""
    source, held = WatchedSource(file.read_bytes()), threading.Event()
    model = bitstack.load(source, "40%", "cpu")
    with Served(model) as served, ThreadPoolExecutor(1) as pool:
        source.trouble = lambda offset, length: held.wait()
        source.forget()
        growing = pool.submit(served.raw.put, "/v1/budget", json={"budget": "100%"})
        try:
            until(lambda: bool(source.reads))
            yield served, growing, held
        finally:
            held.set()


def test_a_later_budget_takes_the_place_of_one_under_way(tiny_bstk: Path) -> None:
    with held_growth(tiny_bstk) as (served, growing, held):
        assert served.raw.put("/v1/budget", json={"budget": "20%"}).status_code == 200
        held.set()
        assert growing.result().status_code == 409
        assert growing.result().json()["error"]["code"] == "resize_superseded"
        assert served.chat(max_tokens=2).usage.completion_tokens == 2


def test_a_stop_waits_for_no_stream(tiny_bstk: Path) -> None:
    with held_growth(tiny_bstk) as (served, growing, held):
        served.budget.settle()
        held.set()
        assert growing.result().status_code == 409


def test_a_growth_that_fails_changes_nothing(tiny_bstk: Path) -> None:
    source = WatchedSource(tiny_bstk.read_bytes())
    model = bitstack.load(source, "40%", "cpu")
    with Served(model) as served:
        before = served.raw.get("/v1/budget").json()
        source.trouble = _cut
        failed = served.raw.put("/v1/budget", json={"budget": "100%"})
        assert (failed.status_code, failed.json()["error"]["type"]) == (502, "server_error")
        assert served.raw.get("/v1/budget").json() == before
        assert 'bstk_resizes_total{result="failed"} 1.0' in served.raw.get("/metrics").text


def _cut(offset: int, length: int) -> None:
    raise bsformat.errors.SourceError("the cable is cut", where="tiny.bstk")


def test_a_stream_that_ends_in_the_background_is_told(tiny_bstk: Path) -> None:
    source = WatchedSource(tiny_bstk.read_bytes())
    model = bitstack.load(source, "40%", "cpu")
    with Served(model) as served:
        source.trouble = _cut
        assert served.raw.put("/v1/budget", json={"budget": "100%", "progressive": True}).status_code == 200
        with pytest.raises(bsformat.errors.SourceError):
            model.bitstack.growth.wait(30)
        state = served.raw.get("/v1/budget").json()
        assert "the cable is cut" in state["growing"]["error"]
        assert state["n_blocks"] < state["growing"]["target_blocks"]
        assert served.raw.put("/v1/budget", json={"budget": "20%"}).json()["growing"] is None
        source.trouble = lambda offset, length: None
        assert served.raw.put("/v1/budget", json={"budget": "100%", "progressive": True}).status_code == 200
        model.bitstack.growth.wait(30)
        assert served.raw.get("/v1/budget").json()["growing"] is None


def test_it_answers_while_the_rest_streams_in(tiny_bstk: Path) -> None:
    source, held = WatchedSource(tiny_bstk.read_bytes()), threading.Event()
    with bsformat.open(tiny_bstk) as container:
        target, start = len(container), container.plan("50%").offset + container.plan("50%").length
    source.trouble = lambda offset, length: held.wait() if offset + length > start else None
    model = bitstack.load(source, "100%", "cpu", progressive="40%")
    with Served(model) as served:
        answer = served.raw.post("/v1/chat/completions", json=CHAT | {"temperature": 0})
        n_blocks = answer.json()["choices"][0]["bitstack"]["runs"][0]["n_blocks"]
        header = answer.headers["x-bstk-plan"]
        assert header.startswith(f"blocks={n_blocks}, ")
        assert header.endswith(f", target-blocks={target}")
        assert n_blocks < target
        growing = served.raw.get("/v1/budget").json()["growing"]
        assert growing["target_blocks"] == target
        # In the middle of an answer the rest comes in: its end says so.
        served.passes.lengths.clear()

        def let_in(number: int) -> None:
            if number == 6:
                held.set()
                model.bitstack.growth.wait(30)

        served.passes.before = let_in
        *_, last = served.chat(stream=True)
        assert extra(last.choices[0])["runs"][-1]["n_blocks"] == target
        assert len(extra(last.choices[0])["runs"]) >= 2
        assert "target-blocks" not in served.post(**CHAT).headers["x-bstk-plan"]


def test_under_a_governor_the_budget_is_a_ceiling(tiny_bstk: Path) -> None:
    model = bitstack.load(tiny_bstk, "100%", "cpu")
    elastic, free = model.bitstack, 1 << 30
    driver = bitstack.govern(model, "30%", "100%", free=lambda: free, low=1000, target=5000, high=20_000, dwell=0.0)
    with Served(model) as served:
        served.budget.__init__(elastic, driver)  # type: ignore[misc]
        bounds = served.raw.get("/v1/budget").json()["governor"]
        assert bounds["ceiling_bytes"] == bounds["highest_ceiling_bytes"] == elastic.resident_bytes
        size = (bounds["floor_bytes"] + bounds["ceiling_bytes"]) // 2
        assert served.raw.put("/v1/budget", json={"budget": size}).status_code == 200
        for _ in range(5):
            driver.tick()
        assert elastic.plan.n_blocks == elastic.planned(size).n_blocks  # there is room, and it stays where it was put
        free = 0
        driver.tick()
        assert elastic.resident_bytes <= size - 5000  # memory is short: it gives up what the governor wants free
        free = 1 << 30
        for _ in range(20):
            driver.tick()
        assert elastic.plan.n_blocks == elastic.planned(size).n_blocks
        for budget in (bounds["floor_bytes"] - 1, bounds["ceiling_bytes"] + 1, "10%"):
            refused = served.raw.put("/v1/budget", json={"budget": budget})
            assert refused.status_code == 400, budget
        assert served.raw.put("/v1/budget", json={"budget": size, "progressive": True}).status_code == 400
        auto = served.raw.put("/v1/budget", json={"budget": "auto"}).json()
        assert auto["resident_bytes"] == bounds["highest_ceiling_bytes"]
