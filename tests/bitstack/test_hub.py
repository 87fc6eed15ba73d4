"""A repository of a hub through the doors that users have: the command, `bitstack.load`, `from_pretrained`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bitstack
import bsformat
from bitstack.repository import FILE, write_repository
from tests.hub import TOKEN, Hub
from tests.tools.conftest import the_line

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "You passed `quantization_config`")
import torch
import bitstack
from transformers import AutoModelForCausalLM, AutoTokenizer

name, config = sys.argv[1], bitstack.BitStackConfig(budget=int(sys.argv[2]), cache=False)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config)
tokenizer = AutoTokenizer.from_pretrained(name)
ids = tokenizer("the sea is wide", return_tensors="pt").input_ids
with torch.inference_mode():
    total = model(ids).logits.double().sum().item()
plan = model.bitstack.plan
print(json.dumps({"uri": model.bitstack.container.uri, "blocks": plan.n_blocks, "sum": total, "ids": ids.tolist()}))
"""


@pytest.fixture
def files(tiny_bstk: Path, tmp_path: Path) -> dict[str, bytes]:
    """What `bstk init-repo` writes."""
    write_repository(tiny_bstk, tmp_path / "repository", card=lambda container: "# A model")
    return {path.name: path.read_bytes() for path in (tmp_path / "repository").iterdir()}


def middle(path: Path) -> int:
    with bsformat.open(path) as container:
        return (container.minimum_bytes + container.total_bytes) // 2


def test_from_pretrained_reads_the_prefix_of_a_private_repository(
    hub: Hub, files: dict[str, bytes], tiny_bstk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    hub.uses = 3  # links expire on the way
    commit = hub.repository(private=True).commit(files)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    budget = middle(tiny_bstk)
    arguments = [sys.executable, "-P", "-c", PROGRAM, "someone/tiny", str(budget)]
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    model = bitstack.load(tiny_bstk, budget, "cpu", torch.float32)
    assert said["uri"] == f"hf://someone/tiny@{commit}/{FILE}"
    assert said["blocks"] == model.bitstack.plan.n_blocks
    with torch.inference_mode():
        total = model(torch.tensor(said["ids"])).logits.double().sum().item()
    assert said["sum"] == pytest.approx(total, rel=1e-6)
    # Of the .bstk no more than the head and the prefix was read, and the commit of config.json was asked for.
    asked = [r for r in hub.asked("hub") if r.path.endswith(FILE)]
    assert {r.path for r in asked} == {f"/someone/tiny/resolve/{commit}/{FILE}"}
    assert all(r.method == "GET" and "range" in r.headers for r in asked)
    stops = [int(r.headers["range"].split("-")[1]) for r in hub.asked("store") if "range" in r.headers]
    assert max(stops) < len(files[FILE]) // 4 * 3
    assert not any("authorization" in r.headers for r in hub.asked("store"))
    model.bitstack.close()


def test_load(hub: Hub, tiny_bstk: Path) -> None:
    import torch

    hub.large = 0
    hub.repository().commit({FILE: tiny_bstk.read_bytes()})
    ids = torch.tensor([[5, 9, 200, 31]])
    budget = middle(tiny_bstk)
    here = bitstack.load(tiny_bstk, budget, "cpu")
    there = bitstack.load("hf://someone/tiny", budget, "cpu", cache=False)
    hub.repositories["someone/tiny"].commit({FILE: b"something else"})
    hub.good += 1
    for wanted in (budget, "100%"):
        here.bitstack.resize(wanted)
        there.bitstack.resize(wanted)
        with torch.inference_mode():
            assert torch.equal(here(ids).logits, there(ids).logits)
    assert there.bitstack.tokenizer()("the sea").input_ids == here.bitstack.tokenizer()("the sea").input_ids


def test_the_command(hub: Hub, tiny_bstk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitstack.tools.cli import main

    def bstk(*args: str) -> Any:
        code = main([*args, "--json"])
        return code, capsys.readouterr()

    commit = hub.repository(private=True).commit({FILE: tiny_bstk.read_bytes()})
    option = ("--storage-option", f"token={TOKEN}")
    code, said = bstk("inspect", f"hf://someone/tiny/{FILE}", *option)
    assert (code, said.err) == (0, "")
    about = json.loads(said.out)
    with bsformat.open(tiny_bstk) as container:
        assert about["root"] == container.root
    assert f"hf://someone/tiny@{commit}/{FILE}" in said.out
    assert bstk("verify", "hf://someone/tiny", *option)[0] == 0
    code, said = bstk("inspect", "hf://someone/tiny")
    assert (code, said.out) == (1, "")
    assert the_line(said.err).startswith("hf://someone/tiny: no such repository or file, or a private one")
    code, said = bstk("plan", "hf://someone", "--budget", "60%")
    assert code == 1
    assert "expected hf://owner/name[@revision]/file.bstk" in the_line(said.err)
