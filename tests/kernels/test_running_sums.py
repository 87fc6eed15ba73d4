"""Sums and graphs, where the driver and streams are stand-ins: which of them are kept, and when."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from bitstack.kernels import running_sums

DEVICE = torch.device("cuda", 0)


class Stream:
    """Of a GPU that fills what it is asked to when somebody waits for it."""

    cuda_stream = 7

    def __init__(self):
        self.captures = False
        self.filling = []

    def zeros(self, count, **_):
        made = torch.full((count,), -1)
        self.filling.append(made)
        return made

    def synchronize(self):
        for tensor in self.filling:
            assert all(tensor is not spare for spare in running_sums._spare.values()), "it may be taken by now"
            tensor.zero_()
        self.filling.clear()


@pytest.fixture
def stream(monkeypatch):
    made = Stream()
    for name in ("_of_streams", "_of_graphs", "_spare"):
        monkeypatch.setattr(running_sums, name, {})
    monkeypatch.setattr(running_sums, "_most", running_sums._most.copy())
    monkeypatch.setattr(running_sums, "on_device", lambda _: nullcontext())
    cuda = SimpleNamespace(current_stream=lambda _: made, is_current_stream_capturing=lambda: made.captures)
    monkeypatch.setattr(running_sums, "torch", SimpleNamespace(zeros=made.zeros, cuda=cuda, int64=torch.int64))
    return made


def test_what_a_graph_may_take_is_filled(stream):
    running_sums.reserve_sums(100_000, DEVICE)
    assert len(running_sums._spare[DEVICE]) == 100_000
    assert not running_sums._spare[DEVICE].any()
    stream.zeros = None  # there are enough
    running_sums.reserve_sums(1, DEVICE)


def test_a_capture_leaves_nothing_that_is_filled_by_its_graph_alone(stream):
    stream.captures = True
    running_sums.reserve_sums(100_000, DEVICE)
    assert not running_sums._spare
    assert not stream.filling
    stream.captures = False
    running_sums.reserve_sums(1, DEVICE)
    assert len(running_sums._spare[DEVICE]) == 100_000
