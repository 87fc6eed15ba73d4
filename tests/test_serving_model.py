"""A real model served to clients; `bitstack.tools.bench.serving` does for a minute what the first test does."""

import threading
from pathlib import Path
from typing import Any

import pytest

import bitstack
import bsformat
from bitstack.loader import useful_plan
from bitstack.tools.bench.serving import QUESTIONS, measure
from tests.loader.tiny import WatchedSource
from tests.tools.serving.conftest import Served, extra

pytestmark = pytest.mark.model
pytest_plugins = ["tests.realmodel"]


def test_eight_clients_while_the_budget_swings(smollm2_bstk: Path) -> None:
    """No failed request, no token that fresh loads would not give, and the memory is there again."""
    low, high = 60 << 20, 120 << 20
    row = measure(
        str(smollm2_bstk),
        budgets=[low, high],
        clients=8,
        seconds=0,
        requests=1,
        tokens=4,
        chunk=32,
        interval=0.1,
        questions=QUESTIONS[:3],
    )
    assert (row["requests"], row["failed"], row["wrong_tokens"]) == (8, 0, 0)
    assert row["plans_seen"] == 2
    assert row["changes_within_answers"] > 0
    # What 60 MiB more would leave behind if a change of the budget kept them.
    assert row["process_bytes_after"] - row["process_bytes_before"] < (high - low) // 2


def test_it_answers_while_the_rest_streams_in(smollm2_bstk: Path) -> None:
    source, held = WatchedSource(smollm2_bstk.read_bytes()), threading.Event()
    with bsformat.open(smollm2_bstk) as container:
        target = container.plan("100MiB")
        useful = useful_plan(container, target)
    source.trouble = lambda offset, length: held.wait() if offset + length > useful.offset + useful.length else None
    model = bitstack.load(source, "100MiB", "cpu", progressive=True)
    with Served(model, context=100, chunk=64) as served:

        def asked(**options: Any) -> Any:
            question = [{"role": "user", "content": QUESTIONS[0]}]
            return served.chat(messages=question, max_tokens=6, stream=True, **options)

        early = asked()
        assert early.response.headers["x-bstk-plan"] == (
            f"blocks={useful.n_blocks}, resident-bytes={useful.resident_bytes + model.bitstack.widening}, "
            f"target-blocks={target.n_blocks}"
        )
        *_, last = early
        assert [run["n_blocks"] for run in extra(last.choices[0])["runs"]] == [useful.n_blocks]
        held.set()
        model.bitstack.growth.wait(60)
        late = asked()
        assert late.response.headers["x-bstk-plan"].startswith(f"blocks={target.n_blocks}, ")
        assert "Paris" in "".join(chunk.choices[0].delta.content for chunk in late)
