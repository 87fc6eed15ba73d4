"""Zero-shot accuracy through lm-eval, on local files: nothing is asked of a hub.

The six tasks lie beside this package as YAML; prompts, choices and metrics are those of lm-eval's own tasks, put in
terms of the fields of the local files.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitstack.tools.console import reporter
from bitstack.tools.evaluation.quiet import hushed
from bsformat import BstkError
from bsformat.errors import ModelError

#: Metrics that are kept, as lm-eval names them.
_METRICS = ("acc", "acc_norm")


def need_lm_eval() -> None:
    """Refuse at once where tasks cannot be run.

    Raises:
        BstkError: saying how to install it.
    """
    if find_spec("lm_eval") is None:
        raise BstkError("--zero-shot needs lm-eval: pip install 'bitstack[eval]'", reason="zero-shot")


def find_data(folder: str) -> dict[str, Path]:
    """The file of every task.

    Raises:
        ModelError: the folder, or the file of a task, is missing, two files could be meant, or one lacks a field.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ModelError("no such folder of task data", where=folder, reason="zero-shot")
    out = {}
    for name, config in _configs().items():
        pattern, fields = config["metadata"]["file"], config["metadata"]["fields"]
        found = sorted(place.glob(pattern))
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files"
            raise ModelError(
                f"has {what} {pattern} for the task {name}; one is needed", where=folder, reason="zero-shot"
            )
        _check_fields(found[0], fields)
        out[name] = found[0]
    return out


def _configs() -> dict[str, dict[str, Any]]:
    import yaml

    folder = files("bitstack.tools") / "tasks"
    configs = [yaml.safe_load(f.read_text("utf-8")) for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {c["task"]: c for c in sorted(configs, key=lambda c: str(c["task"]))}


class ZeroShot:
    """The tasks, read once and run on one model after another.

    Args:
        tokenizer: of the models.
        folder: with one file of JSON lines for each task.
        limit: documents of each task, the first ones; None: all.
        batch_size: sequences that go through the model at once.

    Raises:
        ModelError: see `find_data`; or a file is not what its task needs.
    """

    def __init__(self, tokenizer: Any, folder: str, *, limit: int | None = None, batch_size: int = 16) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._batch_size = batch_size
        data = find_data(folder)
        with hushed(), TemporaryDirectory() as cache:
            from lm_eval.tasks import TaskManager, get_task_dict

            configs = []
            for name, config in _configs().items():
                kwargs = {"data_files": {"test": str(data[name])}, "cache_dir": cache, "keep_in_memory": True}
                configs.append(config | {"dataset_kwargs": kwargs})
            try:
                self._tasks = get_task_dict(configs, TaskManager(include_defaults=False))
            except Exception as error:  # the libraries behind it raise whatever they like on files they cannot read
                detail = " ".join(str(error).split())[:300]
                raise ModelError(f"its task data cannot be read: {detail}", where=folder, reason="zero-shot") from None
        self.record = {
            "limit": limit,
            "tasks": {
                name: {"file": data[name].name, "documents": len(task.test_docs())}
                for name, task in self._tasks.items()
            },
        }

    def measure(self, model: Any) -> dict[str, Any]:
        """Accuracy of a model on every task.

        Returns:
            ``tasks``: name -> ``acc`` and, where lm-eval's task has it, ``acc_norm`` (choices by likelihood for
            their length), each with its standard error (``acc_stderr``, …; none of a single question); ``average``
            of acc over the tasks; ``average_norm`` of acc_norm where there is one and acc elsewhere.
        """
        with reporter().stage("zero-shot", len(self._tasks), "task") as advance, hushed():
            from lm_eval.evaluator import evaluate

            from bitstack.lm_eval_model import LoadedLM

            lm = LoadedLM(model, self._tokenizer, batch_size=self._batch_size)
            results = evaluate(lm=lm, task_dict=self._tasks, limit=self._limit, log_samples=False, bootstrap_iters=2)
            advance(len(self._tasks))
        if results is None:
            raise BstkError("lm-eval gave no results", reason="zero-shot")
        tasks = {name: _metrics(results["results"][name]) for name in self._tasks}
        norm = [task.get("acc_norm", task["acc"]) for task in tasks.values()]
        return {
            "tasks": tasks,
            "average": sum(task["acc"] for task in tasks.values()) / len(tasks),
            "average_norm": sum(norm) / len(norm),
        }


def _check_fields(path: Path, needed: list[str]) -> None:
    """Look at the first line: what lm-eval says of a missing field names neither file nor field."""
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise ModelError(f"no JSON lines that can be read ({error})", where=str(path), reason="zero-shot") from None
    if not isinstance(row, dict) or set(needed) - set(row):
        raise ModelError(f"each line needs {', '.join(needed)}", where=str(path), reason="zero-shot")


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Without lm-eval's names of filters: ``acc,none`` is ``acc``."""
    out = {}
    for metric in _METRICS:
        if f"{metric},none" in result:
            out[metric] = float(result[f"{metric},none"])
            error = result.get(f"{metric}_stderr,none")
            if isinstance(error, float):  # "N/A" for a single question
                out[f"{metric}_stderr"] = error
    return out
