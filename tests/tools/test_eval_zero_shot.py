"""Zero-shot accuracy in ``bstk eval``, against likelihoods computed here."""

import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import PACK_OPTIONS, save_llama
from tests.tools import evaldata
from tests.tools.conftest import Bstk

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'bitstack[eval]'")

Failed = Callable[..., str]
TASKS = {"arc_easy", "arc_challenge", "hellaswag", "lambada_openai", "piqa", "winogrande"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return evaldata.write(tmp_path / "data")


@pytest.fixture
def common(tiny_bstk: Path, text_file: Path, data: Path) -> tuple[object, ...]:
    options = ("--text", text_file, "--budgets", "20KiB,60KiB", "--window", 64, "--windows", 1, "--device", "cpu")
    return ("eval", tiny_bstk, *options, "--zero-shot", data)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise RuntimeError("nothing may be asked of a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return


def likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """Of a continuation after a context, and whether each of its tokens is the likeliest."""
    import torch

    first = len(tokenizer(context).input_ids)
    ids = tokenizer(context + continuation, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
    wanted = ids[0, first:]
    chosen = logits.gather(1, wanted[:, None])
    return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())


def expected(model: Any, tokenizer: Any, questions: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Accuracy on each task as lm-eval's own tasks define it."""

    def score(task: str, row: dict[str, Any]) -> tuple[bool, bool]:
        if task == "lambada_openai":
            right = likelihood(model, tokenizer, row["context"], " " + row["continuation"])[1]
            return right, right
        if task == "winogrande":
            pairs = [(context, row["continuation"]) for context in row["context_options"]]
        else:
            context = {
                "arc_easy": f"Question: {row.get('question')}\nAnswer:",
                "arc_challenge": f"Question: {row.get('question')}\nAnswer:",
                "piqa": f"Question: {row.get('goal')}\nAnswer:",
                "hellaswag": row.get("query", ""),
            }[task]
            pairs = [(context, choice) for choice in row["choices"]]
        values = [likelihood(model, tokenizer, context, f" {text}")[0] for context, text in pairs]
        norm = [value / len(text) for value, (_, text) in zip(values, pairs, strict=True)]
        return values.index(max(values)) == row["gold"], norm.index(max(norm)) == row["gold"]

    out = {}
    for task, rows in questions.items():
        scores = [score(task, row) for row in rows]
        out[task] = {"acc": sum(a for a, _ in scores) / len(rows)}
        if task not in ("winogrande", "lambada_openai"):
            out[task]["acc_norm"] = sum(n for _, n in scores) / len(rows)
    return out


@pytest.mark.usefixtures("no_network")
def test_accuracy_is_what_likelihoods_give(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bitstack.tools.evaluation.zero_shot import ZeroShot

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = ["the", "sea", "a", "book", "small", "boat", "old", "man", "birds", "sky", "wide", "reads", "sails", "high"]
    questions = evaldata.many(words, 12)
    # What the model says after a context is a right answer too: accuracy would be 0 otherwise.
    for row in questions["lambada_openai"][:5]:
        ids = tokenizer(row["context"], return_tensors="pt").input_ids
        said = tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax())
        row["continuation"] = said.removeprefix(" ") or "sea"
    tasks = ZeroShot(tokenizer, str(evaldata.write(tmp_path, **questions)), batch_size=3)
    assert tasks.record["tasks"].keys() == TASKS
    assert all(task["documents"] == 12 for task in tasks.record["tasks"].values())
    measured = tasks.measure(model)
    wanted = expected(model, tokenizer, questions)
    assert {name: {k: v for k, v in task.items() if "stderr" not in k} for name, task in measured["tasks"].items()} == {
        name: pytest.approx(task) for name, task in wanted.items()
    }
    assert measured["average"] == pytest.approx(sum(t["acc"] for t in wanted.values()) / 6)
    assert measured["average_norm"] == pytest.approx(sum(t.get("acc_norm", t["acc"]) for t in wanted.values()) / 6)
    # Not all right and not all wrong, or the prompts could be anything.
    assert 0 < measured["average"] < 1
    for task in measured["tasks"].values():
        p = task["acc"]
        assert task["acc_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 11))


@pytest.mark.usefixtures("no_network")
def test_every_model_of_a_run_answers_the_same_questions(
    bstk: Bstk, common: tuple[object, ...], tiny_model: Path
) -> None:
    ended = bstk(*common, "--limit", 1, "--dense", tiny_model, "--baselines", "rtn", "--bits", "4", "--json")
    assert (ended.code, ended.err) == (0, "")
    out = ended.json
    assert out["zero_shot"]["limit"] == 1
    assert out["zero_shot"]["tasks"]["arc_easy"] == {"file": "arc_easy_few.jsonl", "documents": 2}
    measured = [*out["points"], out["dense"], *out["baselines"], *(p["ours"] for p in out["baselines"])]
    assert len(measured) == 7
    for point in measured:
        assert point["zero_shot"]["tasks"].keys() == TASKS
        assert {t["acc"] for t in point["zero_shot"]["tasks"].values()} <= {0.0, 1.0}
        assert 0 <= point["zero_shot"]["average"] <= 1


def test_the_table_and_the_plot_show_the_average(bstk: Bstk, common: tuple[object, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitstack[plot]'")
    from matplotlib.figure import Figure

    from bitstack.tools import plot

    png = tmp_path / "a.png"
    ended = bstk(*common, "--plot", png)
    assert (ended.code, ended.err) == (0, "")
    out = bstk(*common, "--json").json
    averages = [p["zero_shot"]["average"] for p in out["points"]]
    assert [line.split()[-1] for line in ended.out.splitlines()[2:4]] == [f"{100 * a:.1f}%" for a in averages]
    axes = Figure().add_subplot()
    plot.panel(axes, out, None)
    assert list(axes.lines[0].get_ydata()) == averages
    assert "accuracy" in axes.get_ylabel()
    assert png.read_bytes().startswith(b"\x89PNG\r\n")


def test_data_that_is_missing_or_not_plain(failed: Failed, common: tuple[object, ...], data: Path) -> None:
    twin = data / "piqa_more.jsonl"
    twin.write_text("{}")
    assert "2 files piqa*.jsonl for the task piqa" in failed(*common)
    twin.unlink()
    (data / "winogrande_few.jsonl").unlink()
    line = failed(*common)
    assert line.startswith(f"{data}")
    assert "no file winogrande*.jsonl for the task winogrande" in line
    (data / "winogrande_few.jsonl").write_text("no JSON")
    assert "no JSON lines" in failed(*common)
    assert "no such folder" in failed(*common, "--zero-shot", data / "none")


def test_without_lm_eval(failed: Failed, common: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from bitstack.tools.evaluation import zero_shot

    monkeypatch.setattr(zero_shot, "find_spec", lambda name: None)
    assert "pip install 'bitstack[eval]'" in failed(*common)


def test_a_row_without_the_fields_of_its_task(failed: Failed, common: tuple[object, ...], data: Path) -> None:
    evaldata.write(data, piqa=[{"question": "a"}])
    line = failed(*common)
    assert line.startswith(f"{data / 'piqa_few.jsonl'}")
    assert "each line needs goal, choices, gold" in line


def test_the_real_data_is_what_the_tasks_expect(shared_data: Path) -> None:
    from bitstack.tools.evaluation.zero_shot import find_data

    assert find_data(str(shared_data)).keys() == TASKS


def test_a_model_of_another_vocabulary_size_is_measured_too(tmp_path: Path) -> None:
    """The output head may have more rows than the tokenizer has tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bitstack.tools.evaluation.zero_shot import ZeroShot

    folder = save_llama(tmp_path / "wide", vocab_size=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    measured = ZeroShot(tokenizer, str(evaldata.write(tmp_path / "data"))).measure(model)
    assert measured["tasks"].keys() == TASKS


def test_a_packed_model_with_tied_embeddings_is_left_as_it_is(bstk: Bstk, tmp_path: Path) -> None:
    import torch

    import bitstack
    from bitstack.tools.evaluation.zero_shot import ZeroShot

    folder = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    assert bstk("pack", folder, "-o", tmp_path / "tied.bstk", *PACK_OPTIONS).code == 0
    model = bitstack.load(tmp_path / "tied.bstk", budget="100%", device="cpu")
    ids = torch.arange(4, 40)[None]
    logits, size = model(input_ids=ids).logits.clone(), model.bitstack.resident_bytes
    tasks = ZeroShot(model.bitstack.tokenizer(), str(evaldata.write(tmp_path / "data")))
    assert tasks.measure(model)["tasks"].keys() == TASKS
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert model.bitstack.resident_bytes == size
    model.bitstack.close()
