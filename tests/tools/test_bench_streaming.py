"""The benchmarks of reading: the file they make, what a case reports, and the link that they carry packets over."""

import os
from pathlib import Path

import pytest

import bsformat
from bitstack.tools.bench import random_file, streaming
from bitstack.tools.bench.link import Direction
from tests.servers import Nginx

MIB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "random.bstk"
    random_file.write_random(path, 3 * MIB, side=512)
    return path


def test_the_random_file_is_sound(file: Path) -> None:
    report = bsformat.verify(file)
    assert report.ok
    assert report.size >= 3 * MIB
    with bsformat.open(file) as container:
        levels = container.index.level[container.index.required :].tolist()
        assert levels == sorted(levels)  # first the first levels of all chains


def test_cases_read_all_of_it(file: Path, nginx: Nginx) -> None:
    (nginx.root / "r.bstk").symlink_to(file)
    with bsformat.open(file) as container:
        stop = container.block(len(container) - 1)
    for name, arguments in (
        ("blocks", (nginx.url("r.bstk"),)),
        ("blocks", (str(file), "fsspec", "2", str(MIB))),
        ("prefix", (str(file), str(2 * MIB))),
        ("raw_read", (str(file), str(MIB))),
    ):
        row = streaming.run_case(name, *arguments)
        assert row.get("error") is None
        assert row["bytes"] > (1 if name == "prefix" else 2.9) * MIB
        assert row["bytes"] <= max(stop.offset + stop.stored, file.stat().st_size)
        assert row["seconds"] > 0
    assert "no case" in streaming.run_case("nonsense")["error"]


def test_a_summary_says_what_failed_and_which_was_best() -> None:
    runs = [{"bytes": 10**9, "seconds": 2.0, "user": 1.0}, {"bytes": 10**9, "seconds": 1.0, "user": 0.5}]
    row = streaming.summary("x", [*runs, {"error": "gone"}], 2.0)
    assert (row["best_gb_per_s"], row["median_gb_per_s"], row["runs"], row["user"]) == (1.0, 0.75, 2, 0.5)
    assert row["of_yardstick"] == 0.5
    assert streaming.summary("x", [{"error": "gone"}]) == {"way": "x", "error": "gone"}


def test_a_direction_delays_and_limits_and_loses() -> None:
    near, source = os.pipe()
    os.set_blocking(near, False)
    far, target = os.pipe()
    os.set_blocking(far, False)
    way = Direction(near, target, rate=1000.0, delay=5.0, loss=0.0, room=250)
    os.write(source, b"x" * 100)
    way.take(10.0)
    assert [due for due, _ in way.queue] == [pytest.approx(15.1)]
    way.give(15.0)
    assert way.carried == 0
    way.give(15.2)
    assert (way.carried, os.read(far, 1000)) == (100, b"x" * 100)
    for _ in range(4):
        os.write(source, b"y" * 100)
        way.take(20.0)
    assert (len(way.queue), way.dropped) == (3, 1)  # no more room
    way.loss = 1.0
    os.write(source, b"z")
    way.take(99.0)
    assert (len(way.queue), way.dropped) == (3, 2)
    for fd in (near, source, far, target):
        os.close(fd)
