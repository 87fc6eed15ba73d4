"""A server over a small model, in this process, and clients of it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

import bitstack
from bitstack.tools.serving.app import build_app
from bitstack.tools.serving.budget import Budget
from bitstack.tools.serving.engine import Engine
from bitstack.tools.serving.hosts import address_of, listen
from bitstack.tools.serving.http_server import HttpServer
from bitstack.tools.serving.limits import Limits
from bitstack.tools.serving.passes import Pass, Passes
from bitstack.tools.serving.service import Service
from bitstack.tools.serving.vocabulary import Vocabulary


class WatchedPasses(Passes):
    """Passes that are counted, and wait where a test says so.

    Attributes:
        lengths: of every pass so far, the tokens that went through.
        may_go: cleared, the next pass waits.
        trouble: raised by the next pass.
    """

    def __init__(self, model: Any) -> None:
        self.lengths: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.trouble: Exception | None = None
        self.before: Callable[[int], object] = lambda number: None
        super().__init__(model)
        self.lengths.clear()

    def run(self, tokens: list[int], cache: Any) -> Pass:
        self.may_go.wait()
        self.lengths.append(len(tokens))
        self.before(len(self.lengths))
        if self.trouble is not None:
            error, self.trouble = self.trouble, None
            raise error
        return super().run(tokens, cache)


class Served:
    """A model that is served on a free port of loopback, in a ``with`` statement."""

    def __init__(self, model: Any, *, token: str | None = None, begin: bool = True, **limits: Any) -> None:
        self.model, self.token = model, token
        self.limits = Limits(**({"context": 128, "parallel": 4, "queue": 8, "chunk": 16} | limits))
        self.service = Service("tiny", self.limits)
        self.passes = WatchedPasses(model)
        self.vocabulary = self.vocabulary_of(model)
        self.engine = Engine(self.passes, self.limits.parallel, self.service.metrics).start()
        self.budget = Budget(model.bitstack)
        listener = listen("127.0.0.1", 0, token=token is not None)
        self.url = f"http://{address_of(listener)}"
        self.http = HttpServer(build_app(self.service, token), listener, replace(self.limits, grace=1)).start()
        if begin:
            self.begin()

    @staticmethod
    def vocabulary_of(model: Any) -> Vocabulary:
        vocabulary = Vocabulary(model.bitstack.tokenizer(), model)
        vocabulary.ends = frozenset()  # so that answers have the lengths that tests ask for
        return vocabulary

    def begin(self) -> None:
        self.service.begin(self.engine, self.vocabulary, self.budget, self.limits)

    def __enter__(self) -> "Served":
        self._stack = ExitStack()
        key = self.token or "none"
        self.client = self._stack.enter_context(
            OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        )
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self.raw = self._stack.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=60))
        return self

    def __exit__(self, *_: object) -> None:
        self.passes.may_go.set()
        self._stack.close()
        self.http.close()
        self.engine.stop()
        self.http.wait()

    def chat(self, **body: Any) -> Any:
        """A chat completion through the client, greedy."""
        return self.client.chat.completions.create(**(CHAT | {"temperature": 0} | body))

    def complete(self, **body: Any) -> Any:
        """A completion through the client, greedy."""
        return self.client.completions.create(**({"model": "tiny", "prompt": PROMPT, "temperature": 0} | body))

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return self.raw.post(path, json=body)


PROMPT = "the old man reads a book about the wide sea and the sky"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny_bstk: Path) -> Iterator[Any]:
    """`tiny_bstk` with all of its blocks, for one module of tests; who resizes it puts it back."""
    loaded = bitstack.load(tiny_bstk, "100%", "cpu")
    loaded.generation_config.eos_token_id = None
    yield loaded
    loaded.bitstack.close()


@pytest.fixture(scope="module")
def _server(model: Any) -> Iterator[Served]:
    with Served(model) as server:
        yield server


@pytest.fixture
def served(_server: Served) -> Served:
    """One server for a module of tests, which leave it as it was."""
    _server.passes.lengths.clear()
    return _server


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers' own generation writes."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=1
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def extra(choice: Any) -> dict[str, Any]:
    """What an answer says under ``bitstack``."""
    value: dict[str, Any] = choice.model_extra["bitstack"]
    return value


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
