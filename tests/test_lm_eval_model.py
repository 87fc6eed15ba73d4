"""A real model, asked by lm-eval."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'bitstack[eval]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bitstack[eval]'")

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import bitstack.lm_eval

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]
pytest_plugins = ["tests.realmodel"]

QUESTIONS = [
    ("What do bees make?", ["Honey.", "Concrete.", "Paper money."], 0),
    ("Which of these is a planet?", ["A spoon.", "Mars.", "The number four."], 1),
    ("Where does rain come from?", ["Out of shoes.", "From the clouds.", "From the kitchen."], 1),
]


@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_those_of_their_own_model(smollm2_bstk: Path, tmp_path: Path, chat: bool) -> None:
    rows = [{"question": question, "choices": choices, "gold": gold} for question, choices, gold in QUESTIONS]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "few",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "few.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
    }
    manager = TaskManager(include_defaults=False)

    def ask(model: Any, args: Any = None) -> tuple[list[list[float]], Any]:
        options = {"device": "cpu", "batch_size": 3, "apply_chat_template": chat, "bootstrap_iters": 0}
        result: Any = simple_evaluate(model, args, [task], task_manager=manager, **options)
        samples = sorted(result["samples"]["few"], key=lambda row: row["doc_id"])
        return [[value for ((value, _),) in row["resps"]] for row in samples], result

    ours, result = ask("bitstack", f"uri={smollm2_bstk},budget=100MiB")
    model = bitstack.load(smollm2_bstk, "100MiB", "cpu", torch.float32)
    assert ours == ask(HFLM(pretrained=model, tokenizer=model.bitstack.tokenizer(), batch_size=3))[0]
    assert result["config"]["bitstack_resident_bytes"] <= 100 << 20
    assert result["results"]["few"]["acc,none"] == 1.0
