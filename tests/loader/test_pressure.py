"""A governor under real pressure: in a control group whose memory another process takes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bitstack.tools.bench.pressure import Hog, LimitedGroup, NoGroupError, limited_group

MIB = 1 << 20
#: Holds what a governor says, in real bytes; says what it holds after every tick that changes something.
_WORKER = """
import json, sys
import torch
from bitstack.loader import Driver, Governor, Marks, free_memory

class Pages:
    def __init__(self):
        self.held = []

    @property
    def resident_bytes(self):
        return len(self.held) << 20

    def resize(self, budget):
        del self.held[budget >> 20:]
        while len(self.held) < budget >> 20:
            self.held.append(torch.full((1 << 20,), 1, dtype=torch.uint8))

device, model = torch.device("cpu"), Pages()
print(json.dumps({"bound": "none"}), flush=True)
sys.stdin.readline()
model.resize(150 << 20)
marks = Marks(floor=20 << 20, ceiling=150 << 20, low=40 << 20, target=70 << 20, high=100 << 20, step=40 << 20,
              dwell=0.2, backoff=0.2)
print(json.dumps({"bound": free_memory(device).bound}), flush=True)
driver = Driver(Governor(marks, 150 << 20), model, lambda: free_memory(device).bytes)
for line in sys.stdin:
    decision = driver.tick()
    print(json.dumps({**decision.to_json(), "after": model.resident_bytes}), flush=True)
"""


@pytest.fixture
def group() -> Iterator[LimitedGroup]:
    try:
        with limited_group(2 << 30) as made:
            yield made
    except NoGroupError as error:
        pytest.skip(f"no control group can be made: {error}")


class Worker:
    def __init__(self, group: LimitedGroup) -> None:
        self.process = group.start([sys.executable, "-P", "-c", _WORKER], stdin=subprocess.PIPE)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        out: dict[str, Any] = json.loads(line)
        return out

    def tick(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_it_gives_way_to_another_process_and_comes_back(group: LimitedGroup) -> None:
    with Worker(group) as worker, Hog(group) as hog:
        worker.answer()
        assert hog.hold(0)
        group.limit(group.used + 260 * MIB)
        assert worker.tick()["bound"] == f"cgroup {group.folder}"
        assert worker.tick()["reason"] == "ceiling"
        taken, changes = 0, []
        while taken < 180:  # with 150 MiB of the model, 180 more do not fit into 260
            taken += 10
            assert hog.hold(taken)
            changes.append(worker.tick())
        assert group.killed == 0
        shrunk = [c for c in changes if c["action"] == "shrink"]
        assert shrunk
        for change in changes:
            assert 20 * MIB <= change["after"] <= 150 * MIB
            assert (change["action"] == "shrink") == (change["free"] < 40 * MIB)
        assert changes[-1]["after"] <= (260 - 180) * MIB
        assert hog.hold(0)
        after = [worker.tick() for _ in range(200)]
        while after[-1]["after"] < 150 * MIB and len(after) < 20_000:
            after.append(worker.tick())
        assert after[-1]["after"] == 150 * MIB
        assert {c["action"] for c in after} == {"hold", "grow"}
        assert all(c["target"] - c["budget"] <= 40 * MIB for c in after)
        assert group.killed == 0


def test_without_it_a_process_is_killed(group: LimitedGroup) -> None:
    """That the pressure above is real: nobody gives way, and the kernel ends one of the two."""
    with Worker(group) as worker, Hog(group) as hog:
        worker.answer()
        assert hog.hold(0)
        group.limit(group.used + 260 * MIB)
        worker.tick()
        for taken in range(10, 190, 10):
            if not hog.hold(taken):
                break
        worker.process.poll()
        assert group.killed >= 1
