"""What each command prints when all is well."""

import fcntl
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bitstack.loader import useful_plan
from bitstack.tools import generate_command
from bitstack.tools.serve_ranges import RangeServer
from bsformat import format_size
from bsformat.errors import IntegrityError
from tests.bsformat.encoder import Block, Image, sample
from tests.models import PACK_OPTIONS
from tests.servers import Reply, Scripted
from tests.tools.conftest import Bstk


def test_pack_writes_the_file_that_the_library_writes(
    bstk: Bstk, tiny_model: Path, tiny_bstk: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.bstk"
    ended = bstk("pack", tiny_model, "-o", output, *PACK_OPTIONS, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert output.read_bytes() == tiny_bstk.read_bytes()
    with bsformat.open(output) as container:
        assert ended.json["root"] == container.root
    assert ended.json["size"] == output.stat().st_size
    assert (ended.json["packed_tensors"], ended.json["raw_tensors"]) == (16, 5)
    assert ended.json["large_raw_tensors"] == {}


def test_pack_says_what_came_out(bstk: Bstk, tiny_model: Path, tmp_path: Path, text_file: Path) -> None:
    output = tmp_path / "out.bstk"
    output.write_bytes(b"old")
    ended = bstk("pack", tiny_model, "-o", output, "--force", *PACK_OPTIONS, "--calib", text_file, "--no-linear-walk")
    assert (ended.code, ended.err) == (0, "")
    with bsformat.open(output) as container:
        assert container.root in ended.out
        assert container.metadata.extra["calibration"]["text"] == text_file.name
        assert container.metadata.extra["recipe"]["decompose"]["linear"]["walk"] is False
        assert container.metadata.extra["recipe"]["decompose"]["linear"]["designs"] == ["s2 b1 b2"]
    assert str(output) in ended.out
    assert f"{output.stat().st_size:,} bytes" in ended.out
    assert "16 tensors" in ended.out
    assert "5 tensors, none of them large" in ended.out


def test_inspect_is_a_page(bstk: Bstk, curved: Path) -> None:
    ended = bstk("inspect", curved)
    assert (ended.code, ended.err) == (0, "")
    with bsformat.open(curved) as container:
        assert f"root          {container.root}\n" in ended.out
        assert f"{container.minimum_bytes:,} bytes" in ended.out
        assert f"{container.total_bytes:,} bytes" in ended.out
        assert re.search(rf"^all +{len(container)} ", ended.out, re.MULTILINE)
    for text in (
        "tiny-llama",
        "LlamaForCausalLM",
        "112,448 in 21 tensors",
        "tokenizer.json",
        "sparse, level 0",
        "plane, level 3",
        "test, 64 t",
    ):
        assert text in ended.out
    assert all(len(line) <= 100 for line in ended.out.splitlines())
    # Three measured points, each a star on the picture.
    assert sum(line.count("*") for line in ended.out.splitlines() if "|" in line) == 3
    assert ended.out.splitlines()[-1].split()[0] == "100%"


def test_inspect_as_json_has_every_tensor_and_point(bstk: Bstk, curved: Path) -> None:
    out = bstk("inspect", curved, "--json").json
    with bsformat.open(curved) as container:
        assert out["root"] == container.root
        assert [t["name"] for t in out["tensors"]] == [t.name for t in container.tensors]
        assert sum(t["resident_bytes"] for t in out["tensors"]) == container.total_bytes == out["total_bytes"]
        assert sum(t["blocks"] for t in out["tensors"]) == len(container) == out["n_blocks"]
        assert sum(g["resident_bytes"] for g in out["groups"]) == container.total_bytes
        assert sum(g["count"] for g in out["groups"]) == len(container)
        points = out["curves"][0]["points"]
        assert [p["value"] for p in points] == [80.0, 40.0, 20.0]
        assert points[-1]["resident_bytes"] == container.total_bytes
        assert points[-1]["file_bytes"] == container.size == curved.stat().st_size
        assert points[0]["resident_bytes"] == container.minimum_bytes
    head = next(t for t in out["tensors"] if t["name"] == "lm_head.weight")
    assert (head["role"], head["levels"], head["shape"][1], head["row_scale"]) == (
        "packed",
        3,
        64,
        "lm_head.weight#row_scale",
    )
    assert out["fits"][-1]["perplexity"] == {"expected": 20.0, "text": "test", "dense": 18.0}


def with_many_tensors(count: int) -> bytes:
    image = sample()
    image.meta["curves"] = []
    image.meta["tensors"] += [{"name": f"t{i}", "shape": [4], "dtype": "U8"} for i in range(count)]
    image.blocks[4:4] = [Block(i.to_bytes(4, "little"), 5 + i, 0, 0) for i in range(count)]
    image.required = 4 + count
    return image.seal()


@pytest.mark.parametrize(("tensors", "requests"), [(0, 1), (2000, 2)], ids=["small", "large"])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["page", "json"])
def test_inspect_reads_only_the_head(
    bstk: Bstk, tmp_path: Path, tensors: int, requests: int, options: tuple[str, ...]
) -> None:
    path = tmp_path / "a.bstk"
    path.write_bytes(with_many_tensors(tensors))
    with bsformat.open(path) as container:
        head = container.superblock.head_length
    with RangeServer(path) as server:
        assert bstk("inspect", server.url, *options).code == 0
    assert server.requests == requests
    assert server.bytes_sent == max(head, min(1 << 14, path.stat().st_size))


def test_inspect_shows_nothing_that_moves_the_cursor(bstk: Bstk, tiny_image: Image, tmp_path: Path) -> None:
    path = tmp_path / "evil.bstk"
    tiny_image.meta["writer"] = "\x1b[2Jevil\r\n"
    tiny_image.meta["extra"]["model"]["name"] = "name\x1b]0;title\x07"
    path.write_bytes(tiny_image.seal())
    out = bstk("inspect", path).out
    assert "evil" in out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_inspect_of_a_prefix_file(bstk: Bstk, curved: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix.bstk"
    with bsformat.open(curved) as container:
        plan = container.plan("75%")
        end = plan.offset + plan.length
    data = bytearray(curved.read_bytes()[:end])
    data[80:88] = end.to_bytes(8, "little")
    prefix.write_bytes(data)
    ended = bstk("inspect", prefix)
    assert (ended.code, ended.err) == (0, "")
    assert f"holds {plan.n_blocks} of " in ended.out
    out = bstk("inspect", prefix, "--json").json
    assert [p["resident_bytes"] is None for p in out["curves"][0]["points"]] == [False, False, True]


def test_verify(bstk: Bstk, tiny_bstk: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        root, blocks = container.root, len(container)
    size = tiny_bstk.stat().st_size
    ended = bstk("verify", tiny_bstk, "--root", root.upper())
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"OK root {root}, {blocks} blocks, {size} bytes checked\n"
    assert bstk("verify", tiny_bstk, "--json").json == {
        "ok": True,
        "file": str(tiny_bstk),
        "root": root,
        "format_version": "1.0",
        "n_blocks": blocks,
        "bytes_checked": size,
        "signed": None,
        "problems": [],
    }


def test_verify_names_each_damaged_part(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.bstk"
    data = bytearray(tiny_bstk.read_bytes())
    with bsformat.open(tiny_bstk) as container:
        for number in (0, len(container) - 1):
            data[container.block(number).offset] ^= 1
    path.write_bytes(data)
    ended = bstk("verify", path)
    assert ended.code == 1
    assert [line.rsplit("[", 1)[1] for line in ended.out.splitlines()] == ["block-digest]", "block-digest]"]
    assert ended.err.startswith(f"bstk: error: {path}: 2 parts are damaged")
    assert ended.err.count("\n") == 1
    as_json = bstk("verify", path, "--json")
    assert as_json.code == 1
    assert [p["reason"] for p in as_json.json["problems"]] == ["block-digest"] * 2


@pytest.mark.parametrize("budget", ["30KiB", "50%", "20000", "1GiB"])
def test_plan_for_a_budget(bstk: Bstk, curved: Path, budget: str) -> None:
    out = bstk("plan", curved, "--budget", budget, "--json").json
    with bsformat.open(curved) as container:
        plan = container.plan(budget)
        assert out["plan"] == plan.to_json()
        assert out["download_bytes"] == container.superblock.head_length + plan.length
        assert out["bits_per_parameter"] == 8 * plan.resident_bytes / 112448
        assert sum(out["levels"].values()) == 16
        assert sum(int(level) * chains for level, chains in out["levels"].items()) == plan.n_blocks - 37
        if plan.next_bytes is None:
            assert out["next_block"] is None
        else:
            assert out["next_block"]["resident_bytes"] == plan.next_bytes > plan.budget
        text = bstk("plan", curved, "--budget", budget).out
    assert f"{plan.budget:,} bytes" in text
    assert f"{plan.resident_bytes:,} bytes" in text
    assert ("estimate" in text) == (len(out["measured"]) == 2)
    assert "measured on test" in text


def test_plan_for_a_perplexity(bstk: Bstk, curved: Path) -> None:
    with bsformat.open(curved) as container:
        first, last = container.index.required, len(container)
        for wanted, low, high in ((1000, first, first), (56.6, first + 1, (first + last) // 2), (20, last, last)):
            out = bstk("plan", curved, "--perplexity", wanted, "--json").json
            n = out["plan"]["n_blocks"]
            assert low <= n <= high
            assert out["perplexity"]["expected"] <= wanted
            if n > first:  # one block less does not reach it
                assert container.planner.resident_bytes(n - 1) < out["plan"]["resident_bytes"]
                less = bstk("plan", curved, "--budget", container.planner.resident_bytes(n - 1), "--json").json
                assert less["perplexity"]["expected"] > wanted


def test_plan_says_between_which_points_its_answer_lies(bstk: Bstk, curved: Path) -> None:
    with bsformat.open(curved) as container:
        first, last = container.index.required, len(container)
        sizes = [container.planner.resident_bytes(n) for n in (first, (first + last) // 2, last)]
    points = [{"resident_bytes": size, "perplexity": p} for size, p in zip(sizes, (80.0, 40.0, 20.0), strict=True)]
    assert bstk("plan", curved, "--perplexity", 60, "--json").json["measured"] == points[:2]
    assert bstk("plan", curved, "--perplexity", 20, "--json").json["measured"] == points[2:]
    assert bstk("plan", curved, "--budget", sizes[0], "--json").json["measured"] == points[:1]
    between = bstk("plan", curved, "--perplexity", 60).out
    assert f"between 80.00 at {format_size(sizes[0])} and 40.00 at {format_size(sizes[1])}, measured on test" in between
    assert "begins here" not in between
    exact = bstk("plan", curved, "--perplexity", 20).out
    assert "perplexity    20.00, measured on test; dense 18.00" in exact
    assert " between 40" not in exact
    above = bstk("plan", curved, "--perplexity", 1000).out
    assert "perplexity    80.00, measured on test" in above
    assert "the curve begins here: fewer bytes may be enough, but were not measured" in above


def test_generate_prints_the_text_and_nothing_else(bstk: Bstk, tiny_bstk: Path) -> None:
    command = ("generate", tiny_bstk, "--budget", "100%", "--prompt", "the wide sea", "--max-new-tokens", 4)
    ended = bstk(*command)
    assert (ended.code, ended.err) == (0, "")
    out = bstk(*command, "--json").json
    assert ended.out == out["text"] + "\n"
    assert 1 <= out["tokens"] <= 4
    with bsformat.open(tiny_bstk) as container:
        assert out["budget_bytes"] == container.total_bytes
        assert out["n_blocks"] == len(container)
        # The five norms, 64 wide, take 2 bytes an element in the file and 4 in a model that computes in float32.
        assert out["resident_bytes"] == container.total_bytes + 640
        assert out["bytes_read"] <= container.size
    assert out["requests"] >= 2


def test_generate_takes_the_chat_template_unless_told_not_to(bstk: Bstk, tiny_bstk: Path) -> None:
    common = ("generate", tiny_bstk, "--budget", "100%", "--max-new-tokens", 6, "--json")
    chat = bstk(*common, "--prompt", "the wide sea").json
    same = bstk(*common, "--raw", "--prompt", "<user> the wide sea <assistant>").json
    raw = bstk(*common, "--raw", "--prompt", "the wide sea").json
    assert chat["text"] == same["text"] != raw["text"]


def test_generate_samples_by_its_seed(bstk: Bstk, tiny_bstk: Path) -> None:
    common = ("generate", tiny_bstk, "--budget", "100%", "--prompt", "the", "--max-new-tokens", 8, "--temperature", 1.5)
    texts = [bstk(*common, "--seed", seed, "--json").json["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generate_within_auto(bstk: Bstk, tiny_bstk: Path) -> None:
    out = bstk("generate", tiny_bstk, "--prompt", "the", "--max-new-tokens", 1, "--json").json
    assert out["budget"] == "auto"
    assert out["resident_bytes"] > 0


def test_generate_while_the_model_grows(bstk: Bstk, tiny_bstk: Path) -> None:
    command = ("generate", tiny_bstk, "--budget", "100%", "--prompt", "the wide sea", "--progressive")
    ended = bstk(*command, "--max-new-tokens", 8)
    assert ended.code == 0
    assert ended.out.endswith("\n")  # the text depends on how much was there at each token, and may be blank
    line = (
        r"bstk: began with ([\d,]+) bytes \(.*\), (\d+) blocks; "
        r"ended with ([\d,]+) bytes \(.*\), (\d+) of (\d+) blocks\n"
    )
    match = re.fullmatch(line, ended.err)
    assert match, ended.err
    size, blocks, now, more, target = (int(text.replace(",", "")) for text in match.groups())
    assert 0 < size <= now
    assert 0 < blocks <= more <= target
    out = bstk(*command, "--max-new-tokens", 1, "--json").json
    with bsformat.open(tiny_bstk) as container:
        first = useful_plan(container, container.plan("100%"))
        assert target == out["progressive"]["target_blocks"] == len(container)
    assert out["progressive"]["began_with_blocks"] == blocks == first.n_blocks < len(container)
    assert out["progressive"]["began_with_bytes"] == size == first.resident_bytes + 640
    assert out["progressive"]["error"] is None
    assert out["tokens"] == 1
    assert blocks <= out["n_blocks"] <= len(container)


def test_generate_says_that_the_stream_failed(
    bstk: Bstk, tiny_bstk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is that of what there is, and the command did what it was asked for."""

    def late(model: Any, *args: Any, **options: Any) -> tuple[str, int]:
        with pytest.raises(IntegrityError):
            model.bitstack.growth.wait(60)
        return complete(model, *args, **options)

    complete = generate_command.complete
    monkeypatch.setattr(generate_command, "complete", late)
    damaged = tmp_path / "damaged.bstk"
    data = bytearray(tiny_bstk.read_bytes())
    with bsformat.open(tiny_bstk) as container:
        data[container.block(len(container) - 1).offset] ^= 1
    damaged.write_bytes(data)
    command = ("generate", damaged, "--budget", "100%", "--prompt", "the wide sea", "--progressive")
    ended = bstk(*command, "--max-new-tokens", 2, "--json")
    assert ended.code == 0
    assert ended.json["n_blocks"] < len(container)
    assert "does not match its digest" in ended.json["progressive"]["error"]
    (record,) = caplog.records
    assert record.getMessage().startswith(ended.json["progressive"]["error"])


def test_eval_measures_each_budget_once_in_ascending_order(bstk: Bstk, tiny_bstk: Path, text_file: Path) -> None:
    command = ("eval", tiny_bstk, "--text", text_file, "--budgets", "60KiB,20KiB,40KiB,20480", "--window", 64)
    ended = bstk(*command, "--windows", 2, "--json")
    assert (ended.code, ended.err) == (0, "")
    out = ended.json
    assert [p["budget"] for p in out["points"]] == [20480, 40960, 61440]
    assert all(p["resident_bytes"] <= p["budget"] and 1 < p["perplexity"] < 1e5 for p in out["points"])
    assert out["text"]["name"] == text_file.name
    assert (out["text"]["windows"], out["text"]["window"], out["text"]["tokens"]) == (2, 64, 128)
    assert len(out["text"]["blake3"]) == 64
    assert set(out["versions"]) == {"bitstack", "python", "torch", "transformers"}
    assert out["hardware"]["cpu"]
    assert out["hardware"]["threads"] >= 1
    # The model only grows: every byte is read once.
    assert sum(p["bytes_read"] for p in out["points"]) <= tiny_bstk.stat().st_size
    table = bstk(*command).out.splitlines()
    assert [line.split()[:2] for line in table[2:5]] == [["20.0", "KiB"], ["40.0", "KiB"], ["60.0", "KiB"]]


def test_eval_at_a_budget_is_what_a_fresh_load_gives(bstk: Bstk, tiny_bstk: Path, text_file: Path) -> None:
    common = ("eval", tiny_bstk, "--text", text_file, "--window", 64, "--json", "--budgets")
    grown = bstk(*common, "20KiB,40KiB").json["points"][1]
    fresh = bstk(*common, "40KiB").json["points"][0]
    assert grown["perplexity"] == pytest.approx(fresh["perplexity"], rel=1e-9)
    assert grown["n_blocks"] == fresh["n_blocks"]


def test_eval_draws_its_curve(bstk: Bstk, tiny_bstk: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitstack[plot]'")
    png = tmp_path / "curve.png"
    ended = bstk("eval", tiny_bstk, "--text", text_file, "--budgets", "20KiB,60KiB", "--window", 64, "--plot", png)
    assert (ended.code, ended.err) == (0, "")
    assert png.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("command", ["inspect", "verify", "plan", "generate", "eval"])
def test_a_pipe_gets_nothing_on_stderr(bstk_process: Bstk, curved: Path, text_file: Path, command: str) -> None:
    more = {
        "plan": ["--budget", "50%"],
        "generate": ["--prompt", "the sea", "--budget", "50%", "--max-new-tokens", "2"],
        "eval": ["--text", text_file, "--budgets", "50%", "--window", "64", "--windows", "1"],
    }
    ended = bstk_process(command, curved, *more.get(command, []))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out


def test_packing_in_a_pipe_is_silent(bstk_process: Bstk, tiny_model: Path, tmp_path: Path) -> None:
    ended = bstk_process("pack", tiny_model, "-o", "out.bstk", *PACK_OPTIONS, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["file"] == "out.bstk"
    assert os.listdir(tmp_path) == ["out.bstk"]


@pytest.mark.parametrize("columns", [0, 80], ids=["unknown", "80"])
def test_a_terminal_sees_progress(tiny_bstk: Path, columns: int) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    done = subprocess.Popen(
        [sys.executable, "-P", "-m", "bitstack.tools.cli", "verify", str(tiny_bstk)],
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    out, _ = done.communicate()
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says EIO where a terminal has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert done.returncode == 0
    assert out.startswith(b"OK root ")
    assert b"verify: 100%" in shown


def test_reads_from_s3_with_storage_options(bstk: Bstk, s3: "object", tiny_bstk: Path) -> None:
    uri = s3.put("tiny.bstk", tiny_bstk.read_bytes())  # type: ignore[attr-defined]
    endpoint = s3.endpoint  # type: ignore[attr-defined]
    ended = bstk("verify", uri, "--storage-option", f"endpoint_url={endpoint}", "--storage-option", "anon=false")
    assert (ended.code, ended.err) == (0, "")


def test_reads_a_stream_where_that_is_allowed(bstk: Bstk, scripted: Scripted, tiny_bstk: Path) -> None:
    scripted.data = tiny_bstk.read_bytes()
    scripted.reply = lambda request: Reply(200, scripted.data)
    for command in (("verify",), ("inspect",), ("generate", "--prompt", "the sea", "--raw", "--max-new-tokens", 2)):
        ended = bstk(command[0], scripted.url(), "--allow-stream", *command[1:])
        assert ended.code == 0
        assert ended.err == "" or (command[0] == "generate" and ended.err.startswith("auto: "))
    # Each command finds out that ranges are ignored, and then reads once.
    assert len(scripted.requests) == 6
    growing = (
        "generate",
        scripted.url(),
        "--allow-stream",
        "--prompt",
        "the sea",
        "--max-new-tokens",
        2,
        "--progressive",
    )
    assert bstk(*growing).code == 0
    assert len(scripted.requests) == 8


def test_the_network_s_settings_are_flags(bstk: Bstk, scripted: Scripted) -> None:
    scripted.reply = lambda request: Reply(503)
    ended = bstk("inspect", scripted.url(), "--attempts", 2)
    assert ended.code == 1
    assert "503" in ended.err
    assert "given up after 2 attempts" in ended.err
    assert len(scripted.requests) == 2
    scripted.reply = lambda request: Reply(503, b"", {"Retry-After": "9"})
    assert "deadline of 0.5 s" in bstk("inspect", scripted.url(), "--deadline", 0.5).err
    for flag, value in (("--attempts", 0), ("--deadline", 0), ("--stall-timeout", -1), ("--minimum-rate", "x")):
        assert bstk("inspect", scripted.url(), flag, value).code == 2


def test_json_holds_what_is_not_finite_as_null(capsys: pytest.CaptureFixture[str]) -> None:
    from bitstack.tools.console import print_json

    print_json({"a": math.inf, "b": [math.nan, 1.5], "c": {"d": b"\x01"}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": "01"}}


def test_a_copy_elsewhere_is_the_same_file(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ü ö.bstk"
    shutil.copy(tiny_bstk, copy)
    assert bstk("inspect", copy, "--json").json["root"] == bstk("inspect", tiny_bstk.as_uri(), "--json").json["root"]


def test_pack_goes_on_in_its_work_folder(bstk: Bstk, tiny_model: Path, tiny_bstk: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = bstk("pack", tiny_model, "-o", tmp_path / "a.bstk", *PACK_OPTIONS, "--work", work, "--keep-work")
    assert (first.code, first.err) == (0, "")
    kept = {p.name: p.stat().st_mtime_ns for p in work.iterdir()}
    assert {"manifest.json", "draft.bstk", "curve.json"} <= set(kept)
    options = (*PACK_OPTIONS, "--work", work, "--keep-work", "--device", "cpu", "--json")
    again = bstk("pack", tiny_model, "-o", tmp_path / "b.bstk", *options)
    assert again.json["whole_model"] is None
    assert (tmp_path / "b.bstk").read_bytes() == (tmp_path / "a.bstk").read_bytes() == tiny_bstk.read_bytes()
    steps = {p.name: p.stat().st_mtime_ns for p in work.iterdir() if p.name != "lock"}
    assert steps == {name: when for name, when in kept.items() if name != "lock"}
    fresh = bstk("pack", tiny_model, "-o", tmp_path / "c.bstk", *PACK_OPTIONS, "--work", work, "--restart")
    assert fresh.code == 0
    assert (tmp_path / "c.bstk").read_bytes() == tiny_bstk.read_bytes()
    assert not work.exists()


def test_pack_takes_gradients_of_part_of_the_text(
    bstk: Bstk, tiny_model: Path, tiny_bstk: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.bstk"
    assert bstk("pack", tiny_model, "-o", output, *PACK_OPTIONS, "--calib-gradient-tokens", "32").code == 0
    with bsformat.open(output) as container:
        assert container.metadata.extra["recipe"]["calib"]["gradient_tokens"] == 32
    assert output.read_bytes() != tiny_bstk.read_bytes()
