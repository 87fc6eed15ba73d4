"""``--budget auto``, and growing and shrinking with the free memory, on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bitstack import loader
from bitstack.loader import budget as budgets
from bitstack.loader import memory, read_events
from bitstack.loader.free import Free
from tests.tools.conftest import Bstk

SPARE = 64 << 20


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the C library was told: nothing, for the sake of the tests to come in this process."""
    out: list[str] = []
    for module in (loader, memory):  # where the loader and who uses it look
        monkeypatch.setattr(module, "steady_heap", lambda: out.append("steady"))
        monkeypatch.setattr(module, "heap_is_steady", lambda: bool(out))
    return out


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much memory is free from now on."""

    def say(size: int) -> None:
        reading = Free(size, 1 << 40, "a test")
        monkeypatch.setattr(budgets, "free_memory", lambda device: reading)

    return say


def balanced(auto: dict[str, Any]) -> bool:
    """Whether the numbers add up."""
    beside = auto["cache_bytes"] + auto["workspace_bytes"] + auto["spare_bytes"]
    return bool(
        auto["free_bytes"] + auto["held_bytes"] - beside == auto["room_bytes"] >= auto["budget_bytes"]
        and sum(auto["workspace"].values()) == auto["workspace_bytes"]
    )


def the_line(err: str) -> str:
    assert err.count("\n") == 1
    assert err.startswith("auto: ")
    return err


def test_generate_leaves_room_for_its_prompt_and_answer(bstk: Bstk, tiny_bstk: Path) -> None:
    command = ("generate", tiny_bstk, "--raw", "--prompt", "the wide sea", "--max-new-tokens", 5)
    ended = bstk(*command, "--json")
    out = ended.json
    assert ended.code == 0
    assert out["budget"] == "auto"
    auto = out["auto"]
    assert balanced(auto)
    assert (auto["context"], auto["batch"], auto["device"]) == (3 + 5, 1, "cpu")
    with bsformat.open(tiny_bstk) as container:
        config = json.loads(container.attachment("config.json"))
        # In float32 the norms take more than in the file.
        assert out["budget_bytes"] == out["resident_bytes"] == auto["budget_bytes"] == container.total_bytes + 640
    width = config["num_key_value_heads"] * config["head_dim"]
    assert auto["cache_bytes"] == 8 * config["num_hidden_layers"] * 2 * width * 4
    assert "8 tokens x 1" in the_line(ended.err)
    assert "of all blocks" in ended.err
    longer = bstk(*command, "--context", 500, "--json").json["auto"]
    assert longer["context"] == 500
    assert longer["cache_bytes"] == auto["cache_bytes"] // 8 * 500
    assert longer["workspace"]["activations"] < 500 * auto["workspace"]["activations"] // 8  # the prompt is as long


def test_generate_within_what_is_left(
    bstk: Bstk, tiny_bstk: Path, free: Callable[[int], None], told: list[str]
) -> None:
    command = ("generate", tiny_bstk, "--prompt", "the", "--max-new-tokens", 2, "--json")
    free(1 << 30)
    loose = bstk(*command).json["auto"]
    assert told == []
    free(loose["cache_bytes"] + loose["workspace_bytes"] + SPARE + 100)
    auto = bstk(*command).json["auto"]
    assert told == ["steady"]  # memory is short: holes in the heap are more than there is room for
    assert auto["workspace"]["heap"] < loose["workspace"]["heap"] / 20
    beside = auto["cache_bytes"] + auto["workspace_bytes"] + SPARE
    free(beside + (40 << 10))
    out = bstk(*command).json
    assert out["auto"]["budget_bytes"] == out["auto"]["room_bytes"] == out["budget_bytes"] == 40 << 10
    assert 30 << 10 < out["resident_bytes"] <= 40 << 10
    free(beside + 100)
    ended = bstk(*command)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"bstk: error: {tiny_bstk}: auto: ")
    assert "= 100 B for weights, below the minimum of this file" in ended.err
    assert ended.err.endswith("or name a budget [budget-too-small]\n")
    assert ended.err.count("\n") == 1


def test_plan_says_what_auto_comes_to(
    bstk: Bstk, tiny_bstk: Path, free: Callable[[int], None], told: list[str]
) -> None:
    free(1 << 30)
    told.append("steady")
    command = ("plan", tiny_bstk, "--budget", "auto")
    out = bstk(*command, "--json").json
    assert balanced(out["auto"])
    assert (out["asked"], out["auto"]["batch"]) == ("auto", 1)
    assert out["plan"]["budget"] == out["auto"]["budget_bytes"]
    more = bstk(*command, "--context", 32, "--batch", 5, "--dtype", "bfloat16", "--json").json["auto"]
    assert more["cache_shape"] == "32 tokens x 5, 2 layers, bfloat16"
    page = bstk(*command)
    assert page.err == ""
    assert page.out.startswith("auto: 1.0 GiB free on cpu (a test) - ")
    assert bstk("plan", tiny_bstk, "--budget", "50%", "--json").json["auto"] is None
    # What generate then loads with.
    free(out["auto"]["cache_bytes"] + out["auto"]["workspace_bytes"] + SPARE + (40 << 10))
    assert bstk(*command, "--json").json["plan"]["budget"] == 40 << 10


def test_plan_of_a_file_without_a_model_of_transformers(bstk: Bstk, tmp_path: Path) -> None:
    path = tmp_path / "plain.bstk"
    with bsformat.Writer(path, [bsformat.Tensor("a", (4,), "U8")]) as writer:
        writer.put(0, bsformat.Form("raw"), b"abcd")
        writer.finish([])
    out = bstk("plan", path, "--budget", "auto", "--json").json
    assert (out["plan"]["n_blocks"], out["auto"]["budget_bytes"]) == (1, 4)
    assert "cache_bytes" not in out["auto"]


def test_eval_leaves_room_for_a_batch_of_windows(
    bstk: Bstk, tiny_bstk: Path, text_file: Path, free: Callable[[int], None]
) -> None:
    free(1 << 30)
    ended = bstk(
        "eval", tiny_bstk, "--text", text_file, "--budgets", "40KiB,auto", "--window", 64, "--windows", 1, "--json"
    )
    out = ended.json
    assert ended.code == 0
    auto = out["auto"]
    assert balanced(auto)
    assert (auto["context"], auto["batch"], auto["cache_bytes"]) == (64, 32, 0)
    assert [p["budget"] for p in out["points"]] == [40 << 10, auto["budget_bytes"]]
    assert out["points"][1]["resident_bytes"] == auto["budget_bytes"]
    assert "no cache" in the_line(ended.err)


def test_a_governor_is_there_while_generating(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    log = tmp_path / "governor.jsonl"
    command = ("generate", tiny_bstk, "--prompt", "the", "--max-new-tokens", 3, "--json")
    out = bstk(*command, "--floor", "50%", "--ceiling", "90%", "--governor-log", log).json
    events = list(read_events(log.read_text().splitlines()))
    assert [e["event"] for e in events][:2] == ["start", "decision"]
    assert [e["event"] for e in out["governor"]][:1] == ["start"]
    marks = out["governor"][0]["marks"]
    with bsformat.open(tiny_bstk) as container:
        assert container.total_bytes * 0.45 < marks["floor"] < marks["ceiling"] <= container.total_bytes * 0.9 + 640
        assert out["budget_bytes"] <= container.total_bytes * 0.9
    assert bstk(*command, "--budget", "60%").json["governor"] is None
    assert events[0]["budget"] == out["budget_bytes"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--floor", "90%", "--ceiling", "50%"), "--floor 90% is above --ceiling 50% [budget-invalid]"),
        (("--floor", "200%"), "--floor 200% is above --ceiling 100% [budget-invalid]"),
        (("--floor", "1KiB"), "--floor 1KiB is below the minimum of this file: "),
        (("--ceiling", "1KiB"), "--ceiling 1KiB is below the minimum of this file: "),
        (("--floor", "70%", "--budget", "60%"), "--budget 60% is not between --floor and --ceiling"),
        (("--ceiling", "70%", "--budget", "80%"), "--budget 80% is not between --floor and --ceiling"),
        (("--progressive", "--ceiling", "70%"), "--progressive grows the model by itself, as a governor does"),
    ],
)
def test_bounds_that_do_not_go_together(
    failed: Callable[..., str], tiny_bstk: Path, options: tuple[str, ...], reason: str
) -> None:
    assert reason in failed("generate", tiny_bstk, "--prompt", "the", *options)


@pytest.mark.parametrize("options", [("--context", "0"), ("--floor", "auto"), ("--context", "x")])
def test_wrong_usage(bstk: Bstk, tiny_bstk: Path, options: tuple[str, ...]) -> None:
    assert bstk("generate", tiny_bstk, "--prompt", "the", *options).code == 2
