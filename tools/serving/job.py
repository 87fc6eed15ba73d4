"""A request that is being answered: its prompts, its answers, and which blocks made them."""

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from .passes import Pass, Passes
from .sampling import Chosen, Sampler, Sampling
from .text_stream import TextStream
from .vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request asks for.

    Attributes:
        prompts: the tokens of each.
        max_tokens: how many tokens an answer to each may have.
        n: answers to each prompt.
        sampling: how tokens are chosen.
        stops: sequences before which an answer ends.
    """

    prompts: Sequence[list[int]]
    max_tokens: Sequence[int]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Passes in a row that saw the same blocks.

    Attributes:
        n_blocks: leading blocks of the file that were resident. resident_bytes: what they take in memory.
        prompt_tokens: tokens of the prompt that these passes read.
        completion_tokens: tokens that they made.
    """

    n_blocks: int
    resident_bytes: int
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of one answer with one token.

    Attributes:
        index: which answer. prompt: which prompt it is to.
        text: text that is certain now; often a token's, but not always.
        chosen: the token, with its probability if that was asked for.
        finish: why the answer ended with it; None: it goes on.
        runs: which blocks made it so far.
    """

    index: int
    prompt: int
    text: str
    chosen: Chosen
    finish: Literal["stop", "length"] | None
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes of a job: it is done, or failed, or was cancelled.

    Attributes:
        error: what ended it before its time.
    """

    error: BaseException | None = None


@dataclass(slots=True)
class _Branch:
    """One answer."""

    index: int
    prompt: int
    left: int
    text: TextStream
    sampler: Sampler
    runs: list[Run]
    cache: Any = None
    last: int = 0


@dataclass(slots=True)
class _Reading:
    """A prompt that is being read: how much of it is, and with what."""

    number: int
    done: int = 0
    cache: Any = None
    runs: list[Run] = field(default_factory=list)


class Job:
    """A request on its way through the engine, which calls `advance` until it says that there is nothing left.

    Attributes:
        cancelled: nobody waits for it any more; set by any thread.
        prompt_tokens, completion_tokens, cached_tokens: tokens read, made, and held in caches so far.
        answers: how many it asks for.
        created, started, first: times of a steady clock: when it came, when it was first advanced, when it had its
            first token.

    Args:
        tell: called with each `Piece`, and with `Ended` at the end, by the thread of the engine.
        chunk: tokens of a prompt that go through the model in one pass.
    """

    def __init__(
        self, wanted: Wanted, vocabulary: Vocabulary, tell: Callable[[Piece | Ended], object], chunk: int
    ) -> None:
        self.wanted, self.cancelled, self.tell = wanted, False, tell
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.answers = len(wanted.prompts) * wanted.n
        self.created = time.monotonic()
        self.started: float | None = None
        self.first: float | None = None
        self._vocabulary, self._chunk = vocabulary, chunk
        self._readings = deque(_Reading(number) for number in range(len(wanted.prompts)))
        self._branches: deque[_Branch] = deque()

    def advance(self, passes: Passes) -> bool:
        """One pass: of a piece of a prompt, or of one token of one answer, each in its turn. False: it was the last."""
        if self._readings:
            self._read(passes)
        else:
            self._write(passes)
        return bool(self._readings or self._branches)

    def forget(self) -> None:
        """Let go of all caches."""
        self._readings.clear()
        self._branches.clear()
        self.cached_tokens = 0

    def _read(self, passes: Passes) -> None:
        reading = self._readings[0]
        prompt = self.wanted.prompts[reading.number]
        stop = min(len(prompt), reading.done + self._chunk) if passes.splits else len(prompt)
        made = passes.run(prompt[reading.done : stop], reading.cache)
        _add(reading.runs, made, prompt_tokens=stop - reading.done)
        self.prompt_tokens += stop - reading.done
        self.cached_tokens += stop - reading.done
        reading.done, reading.cache = stop, made.cache
        if stop == len(prompt):
            self._readings.popleft()
            self._begin(reading, made)

    def _begin(self, reading: _Reading, made: Pass) -> None:
        """The first tokens of all answers to a prompt: its last pass gives them all."""
        wanted, number = self.wanted, reading.number
        self.first = self.first or time.monotonic()
        going = []
        for n in range(wanted.n):
            index = number * wanted.n + n
            branch = _Branch(
                index,
                number,
                wanted.max_tokens[number],
                TextStream(self._vocabulary.written, wanted.stops),
                Sampler(wanted.sampling, index),
                list(reading.runs),
            )
            if self._put(branch, made):
                going.append(branch)
        length = len(wanted.prompts[number])
        self.cached_tokens += (len(going) - 1) * length
        for n, branch in enumerate(going):
            branch.cache = made.cache if n == 0 else copy.deepcopy(made.cache)
        self._branches.extend(going)

    def _write(self, passes: Passes) -> None:
        branch = self._branches.popleft()
        made = passes.run([branch.last], branch.cache)
        branch.cache = made.cache
        self.cached_tokens += 1
        if self._put(branch, made):
            self._branches.append(branch)
        else:
            self.cached_tokens -= made.cache.get_seq_length()

    def _put(self, branch: _Branch, made: Pass) -> bool:
        """Choose a token of an answer and tell it; False where the answer ends with it."""
        chosen = branch.sampler.choose(made.logits)
        branch.last, branch.left = chosen.token, branch.left - 1
        _add(branch.runs, made, completion_tokens=1)
        self.completion_tokens += 1
        finish: Literal["stop", "length"] | None = None
        if chosen.token in self._vocabulary.ends:
            text, finish = branch.text.end(), "stop"
        else:
            text = branch.text.push(chosen.token)
            if not branch.text.stopped and branch.left == 0:
                text, finish = text + branch.text.end(), "length"
            if branch.text.stopped:
                finish = "stop"
        self.tell(Piece(branch.index, branch.prompt, text, chosen, finish, tuple(branch.runs)))
        return finish is None


def _add(runs: list[Run], made: Pass, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
    if not runs or runs[-1].n_blocks != made.n_blocks:
        runs.append(Run(made.n_blocks, made.resident_bytes))
    last = runs[-1]
    runs[-1] = replace(
        last,
        prompt_tokens=last.prompt_tokens + prompt_tokens,
        completion_tokens=last.completion_tokens + completion_tokens,
    )
