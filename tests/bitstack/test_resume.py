"""Packing that is killed, at every step and at any moment, and goes on to the same bytes.

A server imports everything once and forks a child for each run, so that a run costs a fraction of a second. It imports
only: no parallel code has run when it forks.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bitstack
from bitstack.progress import Advance
from bsformat.errors import WriteError

#: Runs `bitstack.pack` in a child for each line. A run may be killed right before or right after its n-th step is
#: given its name, or when some seconds have gone by.
SERVER = """
import itertools, json, os, signal, sys, time
import torch, bitstack
from bitstack import pipeline
from transformers import AutoModelForCausalLM, LlamaForCausalLM

def child(job):
    torch.set_num_threads(1)
    rename, steps = os.replace, itertools.count(1)
    def counting(source, target):
        # Threads of several devices come here at once: each step has a number of its own.
        last = ".work/" in str(target) and next(steps) == job.get("steps")
        if last and not job["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counting
    recipe = bitstack.Recipe.from_json(job["recipe"])
    bitstack.pack(job["model"], job["output"], recipe=recipe, devices=job.get("devices", ["cpu"]))

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            child(job)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if "seconds" in job:
        time.sleep(job["seconds"])
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLED = -9

Run = Callable[..., int]


@pytest.fixture(scope="module")
def recipe(small: bitstack.Recipe) -> bitstack.Recipe:
    chains = {"designs": ("s1 b1",), "tail": "b1", "ranks": (2,)}
    return small.changed(
        {f"decompose.{part}.{name}": value for part in ("linear", "token") for name, value in chains.items()}
        | {"calib.tokens": 128, "calib.gradient_tokens": 64, "eval.heldout_tokens": 32, "eval.curve_points": 2}
        | {"tune.steps": 2}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save_model: Any) -> Path:
    path: Path = save_model(make_model("llama-tied"), tmp_path_factory.mktemp("resume") / "model")
    return path


@pytest.fixture(scope="module")
def run(model: Path, recipe: bitstack.Recipe) -> Iterator[Run]:
    """Packs in another process and gives its exit status."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def pack(output: Path, **job: Any) -> int:
            given = {"model": str(model), "output": str(output), "recipe": recipe.to_json(), "after": True} | job
            print(json.dumps(given), file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield pack
        server.stdin.close()


@pytest.fixture(scope="module")
def wanted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "x.bstk"
    assert run(output) == 0
    assert os.listdir(output.parent) == ["x.bstk"]
    return output.read_bytes()


@pytest.mark.parametrize(("after", "steps"), [(True, 1), (False, 2)], ids=["after", "before"])
def test_killed_at_every_step(run: Run, wanted: bytes, tmp_path: Path, after: bool, steps: int) -> None:
    """Each run gets one step further than the one before it, and is killed right there."""
    output, kills = tmp_path / "x.bstk", 0
    seen: set[str] = set()
    # A run names its manifest once; one that goes on, only what is new.
    while (code := run(output, steps=steps, after=after)) == KILLED:
        kills += 1
        assert kills < 100
        assert not output.exists()
        seen |= {p.name for p in tmp_path.joinpath("x.bstk.work").glob("*") if p.suffix != ".part"}
    assert code == 0
    assert output.read_bytes() == wanted
    assert os.listdir(tmp_path) == ["x.bstk"]
    # Two layers: states at three boundaries, 15 packed parameters, and what stands before and after them.
    assert {f"blocks-{n:05d}.safetensors" for n in range(15)} <= seen
    assert {"manifest.json", "checked.json", "text-000000.safetensors", "trial.json", "outside.safetensors"} <= seen
    assert {f"{kind}-000{n}.bin" for kind in ("state", "slope", "chosen") for n in range(3)} <= seen
    assert {"dense.json", "about.json", "draft.bstk", "curve.json", "untuned.bstk", "tuned.safetensors"} <= seen
    assert kills > 30


def test_killed_at_any_moment(run: Run, wanted: bytes, tmp_path: Path) -> None:
    output, dice = tmp_path / "x.bstk", random.Random(0)
    codes = [run(output, seconds=dice.uniform(0.02, 0.2)) for _ in range(15) if not output.exists()]
    assert codes.count(KILLED) >= 2
    if not output.exists():
        assert run(output) == 0
    assert output.read_bytes() == wanted


def test_the_number_of_devices_does_not_matter(run: Run, wanted: bytes, tmp_path: Path) -> None:
    output = tmp_path / "x.bstk"
    assert run(output, devices=["cpu"] * 3, steps=20) == KILLED
    assert run(output, devices=["cpu"] * 2) == 0
    assert output.read_bytes() == wanted


class _Recorder:
    """A reporter that keeps what it is told: total, what was done before, and what was done."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        kept = self.stages[title] = [total, done, 0]

        def advance(count: int) -> None:
            kept[2] += count

        yield advance


@pytest.mark.parametrize("steps", [8, 16, 25, 33])
def test_progress_goes_on_where_it_was(
    run: Run, model: Path, recipe: bitstack.Recipe, tmp_path: Path, steps: int
) -> None:
    output, report = tmp_path / "x.bstk", _Recorder()
    assert run(output, steps=steps) == KILLED
    bitstack.pack(model, output, recipe=recipe, report=report)
    assert report.stages["measure curve"][1] == 0
    for title, (total, before, after) in report.stages.items():
        assert before + after == total, title
    assert sum(before for _, before, _ in report.stages.values()) > 0
    assert all(after < total for title, (total, before, after) in report.stages.items() if before)


def test_another_recipe_does_not_go_on(run: Run, model: Path, recipe: bitstack.Recipe, tmp_path: Path) -> None:
    output = tmp_path / "x.bstk"
    assert run(output, steps=20) == KILLED
    with pytest.raises(WriteError, match=r"another recipe\).*--restart"):
        bitstack.pack(model, output, recipe=recipe.changed({"seed": 1}))
    fresh = bitstack.pack(model, tmp_path / "y.bstk", recipe=recipe.changed({"seed": 1}))
    other = bitstack.pack(model, output, recipe=recipe.changed({"seed": 1}), restart=True)
    assert other.root == fresh.root


def test_the_work_is_kept_where_it_is_wanted(
    model: Path, recipe: bitstack.Recipe, wanted: bytes, tmp_path: Path
) -> None:
    first = bitstack.pack(model, tmp_path / "x.bstk", recipe=recipe, work=tmp_path / "work", keep_work=True)
    assert sorted(os.listdir(tmp_path)) == ["work", "x.bstk"]
    report = _Recorder()
    again = bitstack.pack(model, tmp_path / "y.bstk", recipe=recipe, work=tmp_path / "work", report=report)
    assert report.stages == {}  # nothing was left to do but to copy
    assert again.root == first.root
    assert sorted(os.listdir(tmp_path)) == ["x.bstk", "y.bstk"]
