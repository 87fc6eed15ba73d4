"""The reader of `spec/readers/js`: its tests pass where there is nothing of this repository but `spec/`."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")


def _node_version() -> int:
    if NODE is None:
        return 0
    done = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=False)
    return int((re.match(r"v(\d+)", done.stdout) or ["", "0"])[1])


needs_node = pytest.mark.skipif(
    _node_version() < 18, reason="Node 18 or newer is not installed (apt-get install nodejs)"
)


@needs_node
def test_an_outsider_with_the_folder_spec_alone(repo_root: Path, tmp_path: Path) -> None:
    shutil.copytree(repo_root / "spec", tmp_path / "spec", ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    reader = tmp_path / "spec" / "readers" / "js"
    command = [NODE or "", "--test", "--test-reporter=tap"]
    done = subprocess.run(command, cwd=reader, capture_output=True, text=True, check=False, timeout=500)
    assert "\nnot ok" not in done.stdout, done.stdout[-5000:]
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    counted = re.search(r"^# pass (\d+)$", done.stdout, re.M)
    listed = json.loads((reader / ".." / ".." / "vectors" / "vectors.json").read_text(encoding="utf-8"))
    assert counted
    assert int(counted[1]) > sum(listed["counts"].values())


def test_the_reader_uses_two_packages_and_nothing_else(repo_root: Path) -> None:
    reader = repo_root / "spec" / "readers" / "js"
    own = [p for p in reader.rglob("*.js") if not {"vendor", "test"} & set(p.relative_to(reader).parts)]
    outside = set()
    for path in own:
        for name in re.findall(
            r"""^(?:import|export) .*from "([^"]+)"|import\("([^"]+)"\);$""", path.read_text("utf-8"), re.M
        ):
            target = name[0] or name[1]
            if target.startswith("node:"):
                outside.add(target)
            else:
                place = (path.parent / target).resolve().relative_to(reader.resolve())
                outside |= {place.as_posix()} if place.parts[0] == "vendor" else set()
    assert len(own) > 15
    assert outside == {
        "vendor/noble-hashes/blake3.js",
        "vendor/zstddec/zstddec.mjs",
        # Only where there is Node: of files on disk, of the tests, of the bench.
        "node:fs",
        "node:fs/promises",
        "node:path",
        # Cryptography of Node 18, which has it elsewhere than browsers.
        "node:crypto",
        "node:url",
    }


def test_what_is_vendored_is_as_it_was_published(repo_root: Path) -> None:
    vendor = repo_root / "spec" / "readers" / "js" / "vendor"
    text = (vendor / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", text, re.M))
    there = {
        path.relative_to(vendor).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert there == listed
