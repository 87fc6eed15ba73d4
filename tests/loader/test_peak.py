"""Host memory while blocks are read, as the system counts it: what becomes resident, and the bound, and little more."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitstack.tools.bench.random_file import write_random
from tests.servers import Nginx

MIB = 1 << 20
#: What a process takes beside its buffers: stacks of threads, numpy's temporary arrays, pages of code.
SLACK = 12 * MIB
SIZE = 96 * MIB

#: Imports once, and forks a child for each line: no thread has run when it forks.
_SERVER = """
import json, os, re, sys, time
import torch
import bsformat
from bitstack.loader import stream_blocks

def memory(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+) kB", file.read())[1]) << 10

def child(uri, bound, keep):
    with bsformat.open(uri, cache=False, memory=bound) as container:
        for _ in stream_blocks(container, 0, 30):  # what is loaded once, and threads that were there once
            pass
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, kept, held = memory("VmRSS"), [], 0
        for number, (block, payload) in enumerate(stream_blocks(container, 0, len(container))):
            if keep:
                kept.append(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
            held += len(payload) if keep else 0
            del payload
            if number % 10 == 0:
                time.sleep(0.01)  # slower than the link: everything that may be read ahead is
        return {"above": memory("VmHWM") - before, "resident": held, "read": container.source.bytes_read}

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            print(json.dumps(child(*json.loads(line))), flush=True)
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def measure() -> Iterator[Measure]:
    """Reads in a process that has done nothing else."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(*arguments: object) -> dict[str, Any]:
            print(json.dumps(arguments), file=server.stdin, flush=True)
            row: dict[str, Any] = json.loads(server.stdout.readline())
            assert "error" not in row, row
            return row

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peak") / "random.bstk"
    write_random(path, SIZE, side=1024)
    return path


@pytest.mark.parametrize("bound", [4 * MIB, 16 * MIB, 48 * MIB])
@pytest.mark.parametrize(("place", "keep"), [("http", "keep"), ("http", "drop"), ("file", "keep")])
def test_the_peak_is_what_is_resident_and_the_bound(
    file: Path, nginx: Nginx, measure: Measure, place: str, keep: str, bound: int
) -> None:
    uri = str(file)
    if place == "http":
        (nginx.root / file.name).symlink_to(file)
        uri = nginx.url(file.name)
    row = measure(uri, bound, keep == "keep")
    assert row["read"] > SIZE
    assert (row["resident"] > SIZE) == (keep == "keep")
    assert row["above"] - row["resident"] <= bound + SLACK
