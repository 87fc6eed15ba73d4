"""Task data of a few questions each, in the fields of the real files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    """One file for each of the six tasks, two questions each; ``changes`` replaces those of a task."""
    questions: dict[str, list[dict[str, Any]]] = {
        "arc_easy": [_question("what is wide", ["the sea", "a book"], 0), _question("who reads", ["sky", "man"], 1)],
        "arc_challenge": [_question("what is high", ["the sky", "a boat"], 0), _question("what flies", ["a", "b"], 1)],
        "hellaswag": [
            {"query": "the old man: he", "choices": ["sails", "reads a book"], "gold": 1},
            {"query": "birds: they", "choices": ["fly high", "read"], "gold": 0},
        ],
        "piqa": [
            {"goal": "cross the sea", "choices": ["take a boat", "take a book"], "gold": 0},
            {"goal": "read", "choices": ["take a boat", "take a book"], "gold": 1},
        ],
        "winogrande": [
            _blank("the man sails the boat because", ["the man", "the boat"], "is old.", 0),
            _blank("birds fly over the sea because", ["birds", "the sea"], "is wide.", 1),
        ],
        "lambada_openai": [
            {"context": "a small boat sails over the wide", "continuation": "sea"},
            {"context": "the old man reads a", "continuation": "book"},
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in (questions | changes).items():
        lines = [json.dumps(row) for row in rows]
        (folder / f"{task}_few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _question(question: str, choices: list[str], gold: int) -> dict[str, Any]:
    return {"question": question, "choices": choices, "gold": gold}


def _blank(start: str, options: list[str], end: str, gold: int) -> dict[str, Any]:
    return {"context_options": [f"{start} {o}" for o in options], "continuation": end, "gold": gold}


def many(words: list[str], count: int) -> dict[str, list[dict[str, Any]]]:
    """Questions of random words for every task; the same at every call."""
    source = random.Random(0)

    def text(most: int) -> str:
        return " ".join(source.choices(words, k=source.randint(1, most)))

    def choices(number: int) -> list[str]:
        return [text(4) for _ in range(number)]

    def rows(make: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        return [make() for _ in range(count)]

    return {
        "arc_easy": rows(lambda: _question(text(6), choices(4), source.randrange(4))),
        "arc_challenge": rows(lambda: _question(text(6), choices(3), source.randrange(3))),
        "hellaswag": rows(lambda: {"query": text(8), "choices": choices(4), "gold": source.randrange(4)}),
        "piqa": rows(lambda: {"goal": text(5), "choices": choices(2), "gold": source.randrange(2)}),
        "winogrande": rows(lambda: _blank(text(5), choices(2), text(3), source.randrange(2))),
        "lambada_openai": rows(lambda: {"context": text(8), "continuation": source.choice(words)}),
    }
