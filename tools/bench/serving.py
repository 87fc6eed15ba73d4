"""Clients of a server whose budget swings: ``python -m bitstack.tools.bench.serving FILE > result.json``.

Starts ``bstk serve`` as a process of its own. Clients ask at once, by the openai package, whole answers and streams in
turns, while another one sets the budget to one value after the other. Checked is:

- that no request failed, and no change of the budget;
- of every answer, that its tokens are those of fresh loads: each says which blocks each of its passes saw, and is made
  again pass by pass with transformers alone, with a model loaded afresh at each of these plans;
- that a stream says the same text as its tokens.

A check that fails ends the run with an error. The memory of the server's process is read before and after, at the
smallest budget and with nothing to do. The numbers are printed as JSON.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch

import bitstack
import bsformat
from bsformat import Container, parse_size

#: What the clients ask, shorter and longer than a piece of a prompt.
QUESTIONS: Final = (
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "Name three colours.",
    "Which of these is a fruit? " + "A stone, a boat, a book, a cloud, an apple, a street, a lamp. " * 6,
    "Why is the sky blue?",
    "Repeat: one two three four five.",
    "What do bees make?",
    "Sum this up in a word. " + "The old keeper of the lighthouse counted green bottles by the window. " * 20,
)


class Wrong(Exception):
    """A check that failed."""


@contextmanager
def served(file: str, budget: int, chunk: int, parallel: int) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    options = ["--port", "0", "--budget", str(budget), "--prompt-chunk", str(chunk), "--parallel", str(parallel)]
    command = [sys.executable, "-P", "-m", "bitstack.tools.cli", "serve", file, "--json", "--name", "model", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("the process has no pipe")
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise Wrong("the server did not start")
            text += line
        yield str(json.loads(text)["url"])
        process.terminate()
        if process.wait(120) != 0:
            raise Wrong(f"the server ended with {process.returncode}")
    finally:
        process.kill()
        process.communicate()


class Client:
    """Asks one question after the other, for one thread."""

    def __init__(self, number: int, url: str, tokens: int, questions: Sequence[str]) -> None:
        from openai import OpenAI

        self._client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        self._number, self._tokens = number, tokens
        start = number % len(questions)
        self._questions = [*questions[start:], *questions[:start]]
        self.answers: list[dict[str, Any]] = []
        self.first: list[float] = []

    def ask(self, question: str, *, stream: bool) -> None:
        """One request."""
        options: dict[str, Any] = {
            "model": "model",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._tokens,
            "temperature": 0,
            "extra_body": {"return_token_ids": True},
        }
        begun = time.monotonic()
        if stream:
            text, last = "", None
            for chunk in self._client.chat.completions.create(**options, stream=True):
                if not text:
                    self.first.append(time.monotonic() - begun)
                (last,) = chunk.choices
                text += last.delta.content or ""
        else:
            (last,) = self._client.chat.completions.create(**options).choices
            text = last.message.content or ""
        if last is None or last.finish_reason not in ("stop", "length"):
            raise Wrong("an answer without an end")
        self.answers.append({"text": text, **(last.model_extra or {})["bitstack"]})

    def run(self, until: float, requests: int | None) -> None:
        """Ask until a time of the steady clock, or so many times; what fails comes out of it."""
        questions = cycle(self._questions)
        try:
            while len(self.answers) < requests if requests is not None else time.monotonic() < until:
                self.ask(next(questions), stream=len(self.answers) % 2 == self._number % 2)
        finally:
            self.close()

    def close(self) -> None:
        """Ask no more."""
        self._client.close()


def replayed(container: Container, answer: dict[str, Any], chunk: int, models: dict[int, Any]) -> list[int]:
    """The tokens that greedy decoding gives if every pass sees the blocks that an answer names for it.

    Args:
        answer: what an answer with ``return_token_ids`` says under ``bitstack``.
        chunk: tokens of a prompt in one pass.
        models: loads by their numbers of blocks; what is missing is loaded, and stays there.
    """
    runs, prompt = answer["runs"], answer["prompt_token_ids"]
    for run in runs:
        if run["n_blocks"] not in models:
            model = bitstack.load(container, run["resident_bytes"], "cpu")
            if model.bitstack.plan.n_blocks != run["n_blocks"]:
                raise Wrong(f"{run['resident_bytes']} bytes are not {run['n_blocks']} blocks")
            models[run["n_blocks"]] = model
    reads = [run["n_blocks"] for run in runs for _ in range(run["prompt_tokens"])]
    writes = [run["n_blocks"] for run in runs for _ in range(run["completion_tokens"])]
    # The first token comes of the pass that reads the end of the prompt.
    passes = [(reads[start], prompt[start : start + chunk]) for start in range(0, len(prompt), chunk)]
    out: list[int] = []
    cache = None
    with torch.inference_mode():
        for n_blocks, tokens in [*passes, *((n_blocks, None) for n_blocks in writes[1:])]:
            ids = torch.tensor([tokens if tokens is not None else out[-1:]])
            made = models[n_blocks](input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, out = made.past_key_values, [*out, int(made.logits[0, -1].argmax())]
    return out[len(passes) - 1 :]


def measure(
    file: str,
    *,
    budgets: Sequence[int],
    clients: int,
    seconds: float,
    tokens: int,
    chunk: int = 256,
    interval: float = 0.5,
    requests: int | None = None,
    questions: Sequence[str] = QUESTIONS,
) -> dict[str, Any]:
    """Ask a server while its budget goes through ``budgets`` again and again.

    Args:
        seconds: for how long; with ``requests``, each client asks so many instead.
        tokens: the most of an answer. interval: seconds between two changes.

    Raises:
        Wrong: a check failed.
    """
    import httpx

    with served(file, budgets[0], chunk, clients) as url, httpx.Client(timeout=600) as control:
        control.base_url = url.removesuffix("/v1")
        warm = Client(0, url, 2, questions)
        for question in {questions[0], max(questions, key=len)}:
            warm.ask(question, stream=False)
        warm.close()
        _swing(control, [max(budgets), budgets[0]], threading.Event(), 0)
        before = _process_bytes(control)
        asking = [Client(number, url, tokens, questions) for number in range(clients)]
        begun, over = time.monotonic(), threading.Event()
        with ThreadPoolExecutor(clients + 1) as pool:
            swinging = pool.submit(_swing, control, cycle(budgets), over, interval)
            asked = [pool.submit(client.run, begun + seconds, requests) for client in asking]
            wait(asked)
            took = time.monotonic() - begun
            over.set()
        changed = swinging.result()
        for client in asked:
            client.result()
        _swing(control, [budgets[0]], threading.Event(), 0)
        after = _process_bytes(control)
        metrics = control.get("/metrics").text
        if "bstk_cached_tokens 0.0" not in metrics or re.search(
            r'bstk_generations_total{result="failed"} [1-9]', metrics
        ):
            raise Wrong("the server says that something failed, or is still there")
    answers = [answer for client in asking for answer in client.answers]
    _check(file, answers, chunk)
    plans = {run["n_blocks"] for answer in answers for run in answer["runs"]}
    written = sum(len(answer["token_ids"]) for answer in answers)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "budgets": list(budgets),
        "requests": len(answers),
        "failed": 0,
        "tokens": written,
        "wrong_tokens": 0,
        "tokens_per_second": round(written / took, 2),
        "budget_changes": len(changed),
        "plans_seen": len(plans),
        "answers_by_several_plans": sum(len(answer["runs"]) > 1 for answer in answers),
        "changes_within_answers": sum(len(answer["runs"]) - 1 for answer in answers),
        "change_seconds": _spread(changed),
        "first_token_seconds": _spread([second for client in asking for second in client.first]),
        "process_bytes_before": before,
        "process_bytes_after": after,
    }


def _swing(control: Any, budgets: Any, over: threading.Event, interval: float) -> list[float]:
    """Set one budget after the other; how long each change took."""
    took = []
    for budget in budgets:
        begun = time.monotonic()
        answer = control.put("/v1/budget", json={"budget": budget})
        if answer.status_code != 200:
            raise Wrong(f"a change of the budget failed: {answer.text}")
        took.append(time.monotonic() - begun)
        if over.wait(interval):
            break
    return took


def _process_bytes(control: Any) -> int | None:
    found = re.search(r"^process_resident_memory_bytes (\S+)$", control.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else None


def _check(file: str, answers: list[dict[str, Any]], chunk: int) -> None:
    """Make every answer again."""
    with bsformat.open(file) as container:
        tokenizer, models = bitstack.load_tokenizer(container), dict[int, Any]()
        for number, answer in enumerate(answers):
            if replayed(container, answer, chunk, models) != answer["token_ids"]:
                raise Wrong(f"answer {number} is not what fresh loads give: {answer['runs']}")
            tokens = [token for token in answer["token_ids"] if token not in tokenizer.all_special_ids]
            if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != answer["text"]:
                raise Wrong(f"answer {number} has another text than its tokens")


def _spread(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    high = ordered[int(0.95 * (len(ordered) - 1))]
    return {"median": round(statistics.median(ordered), 3), "p95": round(high, 3), "max": round(ordered[-1], 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--budgets", default="60MiB,75MiB,90MiB,105MiB,120MiB", help="the way up; down it goes again")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two changes of the budget")
    parser.add_argument("--tokens", type=int, default=24, help="the most of an answer")
    args = parser.parse_args()
    from bitstack.tools.console import quiet_libraries
    from bitstack.tools.devices import hardware, versions

    quiet_libraries()
    up = [parse_size(text) for text in args.budgets.split(",")]
    budgets = [*up, *up[-2:0:-1]]
    options = {"clients": args.clients, "seconds": args.seconds, "tokens": args.tokens, "interval": args.interval}
    row = measure(args.file, budgets=budgets, **options)
    machine = hardware(torch.device("cpu"))
    print(json.dumps({"file": Path(args.file).name} | row | {"hardware": machine, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
