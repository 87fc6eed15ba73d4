"""The bench of very many blocks, with few."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import bsformat
from bitstack.tools.bench import large_index
from bitstack.tools.serve_ranges import RangeServer


def test_the_file_is_sound_and_read_as_the_bench_says(tmp_path: Path, repo_root: Path) -> None:
    path = tmp_path / "large.bstk"
    large_index.make(path, 300, 4)
    with bsformat.open(path) as file:
        assert len(file) == 300 * 6
        assert file.index.required == 600
        head = file.superblock.head_length
    commands = [[sys.executable, "-c", large_index.PROGRAM]]
    if shutil.which("node"):
        commands.append(["node", str(repo_root / "spec" / "readers" / "js" / "bench.js")])
    with RangeServer(path) as server:
        for command in commands:
            for place in (str(path), server.url):
                row = large_index.measured([*command, place], 1)
                assert (row["blocks"], row["requests"], row["bytes"]) == (1800, 2, head)
                assert set(row) >= {"open_seconds", "first_plan_seconds", "slowest_plan_seconds", "peak_bytes"}
        assert server.requests == 2 * len(commands)


def test_a_run_that_fails_ends_the_bench() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        large_index.measured([sys.executable, "-c", "raise SystemExit('no such thing')"], 1)


def test_a_median_of_what_varies(tmp_path: Path) -> None:
    counter = tmp_path / "n"
    program = (
        "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); n = int(p.read_text() or 0) if p.exists() else 0; "
        "p.write_text(str(n + 1)); print(json.dumps({'open_seconds': [3, 1, 2][n], 'requests': 2}))"
    )
    row = large_index.measured([sys.executable, "-c", program, str(counter)], 3)
    assert row == json.loads('{"open_seconds": 2.0, "requests": 2}')
