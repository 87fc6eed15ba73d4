"""`bstk fetch`, `bstk cache`, and other commands on a URL with a cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import bsformat
from bsformat.superblock import SIZE
from tests.servers import Scripted
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


@pytest.fixture
def url(scripted: Scripted, tiny_bstk: Path) -> str:
    scripted.data = tiny_bstk.read_bytes()
    return scripted.url("tiny.bstk")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, switched on."""
    monkeypatch.setenv("BSTK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_fetch_grow_and_run(bstk: Bstk, url: str, tiny_bstk: Path, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    with bsformat.open(tiny_bstk) as container:
        total, root = len(container), container.root
        budget = (container.minimum_bytes + container.total_bytes) // 2
    ended = bstk("fetch", url, "-o", path, "--budget", budget, "--root", root, "--json")
    assert (ended.code, ended.err) == (0, "")
    out = ended.json
    assert (out["root"], out["total_blocks"], out["whole"]) == (root, total, False)
    assert out["size"] == path.stat().st_size < out["file_length"] == tiny_bstk.stat().st_size
    assert bstk("verify", path, "--root", root).code == 0
    assert bstk("inspect", path).code == 0
    assert bstk("generate", path, "--budget", budget, "--prompt", "the sea", "--device", "cpu").code == 0
    ended = bstk("fetch", url, "-o", path)
    assert ended.code == 0
    assert "the whole file" in ended.out
    assert root in ended.out
    assert path.read_bytes() == tiny_bstk.read_bytes()


def test_fetch_refuses_another_root(failed: Failed, url: str, curved: Path, tmp_path: Path) -> None:
    path = tmp_path / "local.bstk"
    path.write_bytes(curved.read_bytes())
    with bsformat.open(curved) as container:
        ended = bsformat.parse_size("100%", container.total_bytes)
    assert ended
    line = failed("fetch", url, "-o", path)
    # The curve is in the head, so the root of the file with the curve is another one.
    assert line.endswith("[root-mismatch]")
    assert "name another output" in line
    assert path.read_bytes() == curved.read_bytes()


@pytest.mark.parametrize("args", [(), ("-o", "a.bstk", "--budget", "auto"), ("-o", "a.bstk", "--budget", "much")])
def test_wrong_usage_of_fetch(bstk: Bstk, args: tuple[str, ...]) -> None:
    assert bstk("fetch", "a.bstk", *args).code == 2


def test_generate_twice(bstk: Bstk, url: str, place: Path) -> None:
    command = ("generate", url, "--budget", "100%", "--prompt", "the sea", "--device", "cpu", "--json")
    first, second = bstk(*command).json, bstk(*command).json
    assert first["text"] == second["text"]
    assert first["bytes_read"] > second["bytes_read"] == SIZE
    assert (second["requests"], second["bytes_cached"] > 0, first["bytes_cached"]) == (1, True, 0)


def test_plan_and_inspect_read_the_superblock(bstk: Bstk, url: str, place: Path, scripted: Scripted) -> None:
    assert bstk("plan", url, "--budget", "100%").code == 0
    scripted.requests.clear()
    for command in (("plan", url, "--budget", "100%"), ("inspect", url)):
        assert bstk(*command).code == 0
    assert [(r.start, r.stop) for r in scripted.requests] == [(0, SIZE)] * 2


def test_verify_reads_the_object_itself(bstk: Bstk, url: str, place: Path, scripted: Scripted) -> None:
    assert bstk("verify", url).code == 0
    assert sum(r.stop - r.start for r in scripted.requests) >= len(scripted.data)
    assert not place.exists()


def test_cache_commands(bstk: Bstk, url: str, place: Path) -> None:
    assert bstk("cache", "--json").json["n_blocks"] == 0
    bstk("generate", url, "--budget", "100%", "--prompt", "the sea", "--device", "cpu")
    info = bstk("cache", "info", "--json").json
    assert info["folder"] == str(place)
    assert info["n_blocks"] > 0
    assert info["n_heads"] == 1
    assert f"{info['n_blocks']} blocks" in bstk("cache").out
    assert bstk("cache", "verify", "--json").json == {
        "folder": str(place),
        "n_blocks": info["n_blocks"],
        "n_removed": 0,
    }
    assert json.loads(bstk("cache", "clear", "--json").out)["bytes_freed"] == info["size"]
    assert bstk("cache", "info", "--json").json["size"] == 0


def test_a_cache_that_is_off(failed: Failed) -> None:
    assert failed("cache").endswith("[cache-off]")
