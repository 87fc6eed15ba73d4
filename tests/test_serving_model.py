"""A real model served to clients while its budget changes; `bitstack.tools.bench.serving` does it for a minute."""

from pathlib import Path

import pytest

from bitstack.tools.bench.serving import QUESTIONS, measure

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
