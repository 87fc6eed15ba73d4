"""Many at once: turns, a full queue, clients that leave, budgets that change, and the end."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import bitstack
import bsformat
from bitstack.tools.bench.resizing import allocated
from bitstack.tools.bench.serving import replayed
from bitstack.tools.serving.engine import Engine
from bitstack.tools.serving.job import Ended, Job, Piece, Wanted
from bitstack.tools.serving.metrics import Metrics
from bitstack.tools.serving.sampling import Sampling
from tests.loader.tiny import WatchedSource
from tests.tools.serving.conftest import CHAT, Served, WatchedPasses, extra

GREEDY = Sampling(temperature=0)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about."""
    pause = threading.Event()
    for _ in range(3000):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come about")


@contextmanager
def asked(call: Callable[..., Any], *bodies: dict[str, Any]) -> Iterator[list["Future[Any]"]]:
    """Calls under way in threads of their own."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        yield [pool.submit(call, **body) for body in bodies]


def test_requests_take_turns(model: Any) -> None:
    """A long answer does not hold up a short one, nor a long prompt: each pass is another request's."""
    passes, metrics = WatchedPasses(model), Metrics()
    vocabulary = Served.vocabulary_of(model)
    told: list[str] = []

    def job(name: str, prompt: int, tokens: int, n: int = 1) -> Job:
        def tell(event: Piece | Ended) -> None:
            told.append(name if isinstance(event, Piece) else f"{name} ended")

        wanted = Wanted(prompts=[list(range(5, 5 + prompt))], max_tokens=[tokens], n=n, sampling=GREEDY)
        return Job(wanted, vocabulary, tell, chunk=4)

    engine = Engine(passes, 4, metrics)
    for each in (job("long", 2, 6), job("prompt", 10, 2), job("twice", 2, 2, n=2), job("waits", 2, 1)):
        engine.submit(each)
    engine.start()
    until(lambda: sum(name.endswith("ended") for name in told) == 4)
    engine.stop()
    rounds = (
        "long twice twice",  # both answers to a prompt begin with the pass that read it; the long one is being read
        "long twice",
        "long prompt twice, twice ended",
        "long prompt, prompt ended, waits, waits ended",  # there is room for it now, and it is the last in turn
        "long",
        "long, long ended",
    )
    assert " ".join(told) == " ".join(rounds).replace(",", "")
    # Passes: a prompt of ten tokens is read in pieces of four.
    assert sorted(length for length in passes.lengths if length > 2) == [4, 4]


def test_an_answer_does_not_depend_on_the_others(model: Any) -> None:
    with Served(model, parallel=8) as served:
        bodies = [
            {"prompt": f"{text} sea", "max_tokens": 10, "logprobs": 3, "extra_body": {"return_token_ids": True}}
            for text in ("the old", "a small boat on the", "birds fly over the wide", "high", "the book about the", "a")
        ]
        alone = [served.complete(**body).choices for body in bodies]
        with asked(served.complete, *bodies) as answers:
            # Tokens, and probabilities to the last bit.
            assert [answer.result().choices for answer in answers] == alone


def test_a_full_queue_says_when_to_come_again(model: Any) -> None:
    with Served(model, parallel=1, queue=1) as served:
        served.passes.may_go.clear()
        with asked(served.chat, {}, {}) as answers:
            until(lambda: served.service.admitted == 2)
            with pytest.raises(openai.RateLimitError) as refused:
                served.chat()
            assert refused.value.code == "queue_full"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            until(lambda: (served.engine.running, served.engine.waiting) == (1, 1))
            served.passes.may_go.set()
            assert answers[0].result().choices[0].message == answers[1].result().choices[0].message
        until(lambda: served.service.admitted == 0)
        assert served.chat().usage.completion_tokens == 12


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_answered_no_further(model: Any, stream: bool) -> None:
    with Served(model, parallel=1) as served:
        served.passes.before = lambda number: served.passes.may_go.clear() if number == 5 else None
        with pytest.raises(openai.APITimeoutError) if not stream else _nothing():
            answer = served.client.with_options(timeout=60 if stream else 1).chat.completions.create(
                **(CHAT | {"max_tokens": 60, "stream": stream})
            )
            next(iter(answer))
            answer.close()
        until(lambda: all(job.cancelled for job in served.engine._active))
        served.passes.may_go.set()
        until(lambda: served.engine.running == served.service.admitted == 0)
        assert len(served.passes.lengths) <= 8  # of 60
        assert served.engine.cached_tokens == 0
        assert 'bstk_generations_total{result="cancelled"} 1.0' in served.raw.get("/metrics").text


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def test_who_leaves_the_queue_makes_room(model: Any) -> None:
    with Served(model, parallel=1, queue=1) as served:
        served.passes.may_go.clear()
        with asked(served.chat, {}) as answers:
            until(lambda: served.engine.running == 1)
            with pytest.raises(openai.APITimeoutError):
                served.client.with_options(timeout=0.5).chat.completions.create(**CHAT)
            until(lambda: served.service.admitted == 1)
            assert served.engine.waiting == 0
            served.passes.may_go.set()
            assert answers[0].result().usage.completion_tokens == 12


def test_a_request_that_fails_is_the_only_one(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Served(model) as served:
        served.passes.trouble = RuntimeError("the device has /secret/path trouble")
        with pytest.raises(openai.InternalServerError) as failed:
            served.chat()
        assert "secret" not in str(failed.value)
        assert "secret" in caplog.text
        served.passes.before = lambda number: setattr(served.passes, "trouble", MemoryError()) if number == 4 else None
        with pytest.raises(openai.APIError, match="smaller budget"):
            list(served.chat(stream=True))
        assert served.chat().usage.completion_tokens == 12


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


def test_a_later_budget_takes_the_place_of_one_under_way(tiny_bstk: Path) -> None:
    source, held = WatchedSource(tiny_bstk.read_bytes()), threading.Event()
    model = bitstack.load(source, "40%", "cpu")
    with Served(model) as served, ThreadPoolExecutor(1) as pool:
        source.trouble = lambda offset, length: held.wait()
        source.forget()
        growing = pool.submit(served.raw.put, "/v1/budget", json={"budget": "100%"})
        until(lambda: bool(source.reads))
        assert served.raw.put("/v1/budget", json={"budget": "20%"}).status_code == 200
        held.set()
        assert growing.result().status_code == 409
        assert growing.result().json()["error"]["code"] == "resize_superseded"
        assert served.chat(max_tokens=2).usage.completion_tokens == 2


def test_a_stop_waits_for_no_stream(tiny_bstk: Path) -> None:
    source, held = WatchedSource(tiny_bstk.read_bytes()), threading.Event()
    model = bitstack.load(source, "40%", "cpu")
    with Served(model) as served, ThreadPoolExecutor(1) as pool:
        source.trouble = lambda offset, length: held.wait()
        source.forget()
        growing = pool.submit(served.raw.put, "/v1/budget", json={"budget": "100%"})
        until(lambda: bool(source.reads))
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


def test_what_the_state_of_the_server_says(model: Any) -> None:
    with Served(model, begin=False) as served:
        assert served.raw.get("/health").json() == {"status": "ok"}
        waiting = served.raw.get("/ready")
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "loading")
        for answer in (served.post(**CHAT), served.raw.get("/v1/budget")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert int(answer.headers["retry-after"]) > 0
        assert "bstk_ready 0.0" in served.raw.get("/metrics").text
        assert [model.id for model in served.client.models.list()] == ["tiny"]
        served.begin()
        assert served.raw.get("/ready").json() == {"status": "ready"}
        served.chat()
        served.raw.get("/nothing/" + "x" * 50)
        text = served.raw.get("/metrics").text
        prompt = len(served.vocabulary.of_messages(CHAT["messages"]))
        for line in (
            "bstk_ready 1.0",
            "bstk_completion_tokens_total 12.0",
            f"bstk_prompt_tokens_total {prompt}.0",
            'bstk_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0',
            'bstk_requests_total{endpoint="other",status="404"} 1.0',
            f"bstk_pass_seconds_count {12 + -(-prompt // 16) - 1}.0",
            "bstk_first_token_seconds_count 1.0",
            f"bstk_n_blocks {len(model.bitstack.container)}.0",
            "bstk_cached_tokens 0.0",
        ):
            assert line in text.splitlines(), line
        served.service.draining = True
        assert served.raw.get("/health").status_code == 200
        for answer in (served.raw.get("/ready"), served.post(**CHAT)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")


def test_what_runs_when_the_engine_stops_is_told(model: Any) -> None:
    with Served(model, parallel=1) as served:
        served.passes.before = lambda number: served.passes.may_go.clear() if number == 5 else None
        with asked(lambda **body: list(served.chat(**body)), {"stream": True}, {"stream": True}) as answers:
            until(lambda: (served.engine.running, served.engine.waiting) == (1, 1))
            stopping = threading.Thread(target=served.engine.stop)
            stopping.start()
            until(lambda: served.engine._stopping)
            served.passes.may_go.set()
            for answer in answers:
                with pytest.raises(openai.APIError, match="stopping"):
                    answer.result()
            stopping.join()
        with pytest.raises(openai.InternalServerError, match="stopping"):
            served.chat()
