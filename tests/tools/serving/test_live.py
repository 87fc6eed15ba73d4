"""Many at once: turns, a full queue, clients that leave, and the end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from bitstack.tools.serving.engine import Engine
from bitstack.tools.serving.job import Ended, Job, Piece, Wanted
from bitstack.tools.serving.metrics import Metrics
from bitstack.tools.serving.sampling import Sampling
from tests.tools.serving.conftest import CHAT, Served, WatchedPasses, asked, until

GREEDY = Sampling(temperature=0)


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
