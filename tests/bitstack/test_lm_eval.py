"""``--model bitstack``: answers are those of `bstk eval`, and of lm-eval's own model over the same weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bsformat.errors import BstkError, BudgetError, ModelError, NotFoundError
from tests.models import SENTENCES
from tests.tools import evaldata

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'bitstack[eval]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bitstack[eval]'")

import yaml
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import bitstack.lm_eval
from bitstack.lm_eval import BitStackLM

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = " ".join(SENTENCES).split()
QUESTIONS = evaldata.many(WORDS, 6)


def task_of(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A task with data in a folder, as its YAML has it."""
    data = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "test",
        **changes,
    }


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks: choices, a word to come, and text to write."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = {"choose": QUESTIONS["arc_easy"], "follow": QUESTIONS["lambada_openai"], "write": QUESTIONS["hellaswag"][:2]}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    configs = [
        task_of(
            "choose",
            folder,
            output_type="multiple_choice",
            doc_to_text="Question: {{question}}\nAnswer:",
            doc_to_target="gold",
            doc_to_choice="choices",
            metric_list=accuracy,
        ),
        task_of(
            "follow",
            folder,
            output_type="loglikelihood",
            doc_to_text="{{context}}",
            doc_to_target="{{' ' + continuation}}",
            metric_list=accuracy,
        ),
        task_of(
            "write",
            folder,
            output_type="generate_until",
            doc_to_text="{{query}}",
            doc_to_target="{{choices[0]}}",
            generation_kwargs={"until": ["sea"], "max_gen_toks": 6, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        ),
    ]
    for config in configs:
        (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def manager(tasks: Path) -> TaskManager:
    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.fixture(autouse=True)
def no_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lists what is installed on the machine with every result, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None, raising=False)


def answers(result: Any) -> dict[str, list[Any]]:
    """Everything that the model answered, by task and in the order of the questions."""
    samples: dict[str, list[dict[str, Any]]] = result["samples"]
    return {name: [row["resps"] for row in sorted(rows, key=lambda r: r["doc_id"])] for name, rows in samples.items()}


@pytest.fixture(scope="module")
def ask(manager: TaskManager) -> Callable[..., Any]:
    """What lm-eval makes of a model, by its name or itself."""

    def run(model: Any, args: Any = None, names: tuple[str, ...] = ("choose", "follow"), **options: Any) -> Any:
        settings = {"log_samples": True, "bootstrap_iters": 0, "device": "cpu"} | options
        return simple_evaluate(model=model, model_args=args, tasks=list(names), task_manager=manager, **settings)

    return run


def middle(path: Path) -> int:
    with bsformat.open(path) as container:
        return (container.minimum_bytes + container.total_bytes) // 2


@pytest.fixture(scope="module")
def loaded(tiny_bstk: Path) -> Any:
    """The model at half of its bytes, as `bitstack.load` gives it."""
    return bitstack.load(tiny_bstk, middle(tiny_bstk), "cpu")


def theirs(model: Any, **options: Any) -> HFLM:
    """lm-eval's own model, over the same weights."""
    return HFLM(pretrained=model, tokenizer=model.bitstack.tokenizer(), **options)


ALL = ("choose", "follow", "write")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_their_own_model(
    ask: Callable[..., Any], loaded: Any, tiny_bstk: Path, batch_size: int
) -> None:
    args = {"uri": str(tiny_bstk), "budget": middle(tiny_bstk)}
    ours = answers(ask("bitstack", args, ALL, batch_size=batch_size))
    assert ours == answers(ask(theirs(loaded, batch_size=batch_size), None, ALL))
    assert [len(ours[name]) for name in ALL] == [6, 6, 2]


def test_likelihoods_are_those_of_bstk_eval(
    ask: Callable[..., Any], loaded: Any, tiny_bstk: Path, tmp_path: Path
) -> None:
    """The six tasks of `bstk eval`, the same questions in the same batches."""
    from bitstack.tools.evaluation.zero_shot import ZeroShot

    shots = ZeroShot(loaded.bitstack.tokenizer(), str(evaldata.write(tmp_path, **QUESTIONS)), batch_size=3)
    seen: list[list[float]] = []
    plain = HFLM.loglikelihood

    def watched(self: HFLM, requests: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, requests, *args, **kwargs)
        seen.append([value for value, _ in out])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFLM, "loglikelihood", watched)
        measured = shots.measure(loaded)
        lm = BitStackLM(tiny_bstk, middle(tiny_bstk), device="cpu", batch_size=3)
        results = evaluate(lm=lm, task_dict=shots._tasks, bootstrap_iters=0)["results"]
    assert len(seen) == 2
    assert len(seen[0]) > 50
    assert seen[0] == seen[1]
    assert {name: task["acc"] for name, task in measured["tasks"].items()} == {
        name: task["acc,none"] for name, task in results.items()
    }


def test_batches_make_no_difference_that_counts(ask: Callable[..., Any], tiny_bstk: Path) -> None:
    args = f"uri={tiny_bstk},budget=100%,max_length=64"
    alone = answers(ask("bitstack", args, batch_size=1))
    for batch_size in (5, "auto"):
        others = answers(ask("bitstack", args, batch_size=batch_size, max_batch_size=4))
        for name, rows in alone.items():
            for one, other in zip(rows, others[name], strict=True):
                for (a,), (b,) in zip(one, other, strict=True):
                    assert a[0] == pytest.approx(b[0], abs=1e-4)


@pytest.mark.parametrize("length", [20, 60])
def test_chat_templates_and_a_length_that_is_too_short(
    ask: Callable[..., Any], loaded: Any, tiny_bstk: Path, length: int
) -> None:
    args = {"uri": tiny_bstk, "budget": middle(tiny_bstk), "max_length": length}
    options = {"apply_chat_template": True, "system_instruction": "the sea", "fewshot_as_multiturn": True}
    result = ask("bitstack", args, **options)
    assert answers(result) == answers(ask(theirs(loaded, max_length=length), None, **options))
    prompt = result["samples"]["choose"][0]["arguments"][0][0]
    assert prompt.startswith("<user> the sea <user> Question:")
    assert prompt.endswith("<assistant>")


def test_what_lm_eval_makes_of_a_string(ask: Callable[..., Any], tiny_bstk: Path) -> None:
    budget = middle(tiny_bstk)
    with bsformat.open(tiny_bstk) as container:
        root = container.root
    args = f"pretrained={tiny_bstk},budget={budget},root='{root}',dtype=bfloat16,add_bos_token=False"
    result = ask("bitstack", args, ("follow",))
    told = result["config"]
    assert (told["model"], told["model_sha"], told["bitstack_uri"]) == ("bitstack", root, str(tiny_bstk))
    assert told["model_dtype"] == "torch.bfloat16"
    assert told["bitstack_budget"] == budget
    assert 0 < told["bitstack_resident_bytes"] <= budget
    assert told["model_num_parameters"] > 60_000
    json.dumps(told, default=str)


def test_the_handle_resizes_what_is_measured(ask: Callable[..., Any], tiny_bstk: Path) -> None:
    lm = BitStackLM(tiny_bstk, "100%", device="cpu")
    whole = answers(ask(lm))
    info = lm.get_model_info()
    lm.elastic.resize(middle(tiny_bstk))
    assert lm.get_model_info()["bitstack_blocks"] < info["bitstack_blocks"]
    assert answers(ask(lm)) != whole
    lm.elastic.resize("100%")
    assert answers(ask(lm)) == whole
    assert lm.tokenizer_name == f"bitstack-{lm.elastic.container.root}"


def test_auto_leaves_room_for_the_batch(tiny_bstk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "bitstack"):
        lm = BitStackLM(tiny_bstk, device="cuda:0" if not torch.cuda.is_available() else "cpu", batch_size=7)
    use = lm.elastic.use
    assert (use.batch, use.context, use.logits, use.cached) == (7, None, "all", True)
    assert any(record.getMessage().startswith("auto: ") for record in caplog.records)
    if not torch.cuda.is_available():
        assert "on the CPU" in caplog.text
    assert lm.elastic.plan.next_bytes is None
    assert BitStackLM(tiny_bstk, None, device="cpu", max_length=33, batch_size="auto").elastic.use.context == 33
    assert BitStackLM(tiny_bstk, device="cpu", context=20, max_length=33).elastic.use.context == 20


def test_another_tokenizer(tiny_bstk: Path, tiny_model: Path) -> None:
    lm = BitStackLM(tiny_bstk, "100%", device="cpu", tokenizer=str(tiny_model))
    assert lm.tokenizer.name_or_path == str(tiny_model)


def test_their_advice_about_loaded_models_is_not_given(tiny_bstk: Path, caplog: pytest.LogCaptureFixture) -> None:
    BitStackLM(tiny_bstk, "100%", device="cpu")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("kind", "args", "said"),
    [
        (ModelError, {}, "name one .bstk"),
        (ModelError, {"uri": "a.bstk", "pretrained": "b.bstk"}, "name one .bstk"),
        (ModelError, {"uri": 3}, "name one .bstk"),
        (ModelError, {"uri": "a.bstk", "budgets": "80MiB", "parallelize": True}, "has no budgets, parallelize"),
        (ModelError, {"uri": "a.bstk", "budget": 0.5}, "budget=0.5 is no size"),
        (ModelError, {"uri": "a.bstk", "budget": True}, "budget=True is no size"),
        (ModelError, {"uri": "a.bstk", "dtype": "int8"}, "not in int8"),
        (BstkError, {"uri": "a.bstk", "device": "tpu"}, "no device 'tpu'"),
        (NotFoundError, {"uri": "/no/such.bstk"}, "no such file"),
    ],
)
def test_what_means_nothing(kind: type[BstkError], args: dict[str, Any], said: str) -> None:
    with pytest.raises(kind) as caught:
        BitStackLM.create_from_arg_obj(args, {"batch_size": 1})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_below_the_minimum(tiny_bstk: Path) -> None:
    with pytest.raises(BudgetError, match="minimum"):
        BitStackLM(tiny_bstk, "1KiB", device="cpu")


def test_the_network_as_an_object_of_json(tiny_bstk: Path) -> None:
    lm = BitStackLM(tiny_bstk, "100%", device="cpu", network={"attempts": 2, "memory": 1 << 24})
    lm.elastic.close()
    for wrong, message in (
        ({"tries": 2}, "tries"),
        ({"attempts": 0}, "attempts is 0"),
        ("fast", "bsformat.Network takes"),
    ):
        with pytest.raises(ModelError, match=message):
            BitStackLM(tiny_bstk, "100%", device="cpu", network=wrong)


# --- the command ------------------------------------------------------------------------------------------------------

#: The command but for lm-eval's list of its own tasks, which takes long to make.
COMMAND = """
import functools, runpy
import lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("bitstack.lm_eval", run_name="__main__", alter_sys=True)
"""


def test_the_command_in_two_processes(ask: Callable[..., Any], tasks: Path, tiny_bstk: Path, tmp_path: Path) -> None:
    """As ``accelerate launch -m bitstack.lm_eval`` starts them: each takes half of the questions."""
    (tmp_path / "command.py").write_text(COMMAND)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "command.py")]
    args = ["--model", "bitstack", "--model_args", f"path={tiny_bstk},budget=100%", "--include_path", str(tasks)]
    options = ["--tasks", "follow", "--batch_size", "2", "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", *launch, *args, *options],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("|follow|") == 1
    (found,) = (tmp_path / "out").rglob("results_*.json")
    result = json.loads(found.read_text())
    assert result["config"]["bitstack_uri"] == str(tiny_bstk)
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    (alone,) = answers(ask("bitstack", f"path={tiny_bstk},budget=100%", ("follow",), batch_size=2)).values()
    together = [float(row["resps"][0][0][0]) for row in rows]
    assert together == pytest.approx([resps[0][0][0] for resps in alone], abs=1e-4)


def test_an_error_of_the_command_is_one_line(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    args = ["--model", "bitstack", "--model_args", "uri=/no/such.bstk", "--tasks", "follow"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *args, "--include_path", str(tasks)])
    assert bitstack.lm_eval.main() == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("bitstack.lm_eval: error: /no/such.bstk: no such file")


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "bitstack.lm_eval_model")
    monkeypatch.delitem(sys.modules, "bitstack.lm_eval")
    with pytest.raises(ImportError, match=r"pip install 'bitstack\[eval\]'"):
        importlib.import_module("bitstack.lm_eval")
    with pytest.raises(SystemExit, match=r"pip install 'bitstack\[eval\]'"):
        bitstack.lm_eval.main()
