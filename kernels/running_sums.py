"""Memory for sums that several programs of a kernel add to: zeros, which every kernel leaves as zeros again.

Kernels of a stream run one after the other, so they share it. A CUDA graph may run on any stream, beside others: what
is captured has its own, for as long as the graph lives.
"""

from collections import defaultdict

import torch

from .cuda_graphs import capture_number, when_graph_ends
from .devices import on_device

_LEAST = 1 << 15
_of_streams: dict[tuple[torch.device, int], torch.Tensor] = {}
_of_graphs: dict[tuple[torch.device, int, int], list[torch.Tensor]] = {}
_spare: dict[torch.device, torch.Tensor] = {}
_most: defaultdict[torch.device, int] = defaultdict(lambda: _LEAST)


def reserve_sums(count: int, device: torch.device) -> None:
    """Have `count` zeros ready for the next graph, since a capture cannot make any that are not made at each replay.

    While the current stream captures, none are made: they would be zeros only once the graph has run.
    """
    _most[device] = max(_most[device], count)
    spare = _spare.get(device)
    if spare is not None and len(spare) >= _most[device]:
        return
    with on_device(device):
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        spare = torch.zeros(_most[device], dtype=torch.int64, device=device)
        if device.type == "cuda":
            # A graph on another stream takes them without waiting for this one.
            torch.cuda.current_stream(device).synchronize()
    _spare[device] = spare


def running_sums(count: int, device: torch.device) -> torch.Tensor:
    """At least `count` zeros, int64, for a kernel that is launched next on the current stream."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int64, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    if torch.cuda.is_current_stream_capturing():
        return _captured_sums(count, device, stream)
    reserve_sums(count, device)
    held = _of_streams.get((device, stream))
    if held is None or len(held) < count:
        held = _of_streams[device, stream] = torch.zeros(_most[device], dtype=torch.int64, device=device)
    return held


def _captured_sums(count: int, device: torch.device, stream: int) -> torch.Tensor:
    key = (device, stream, capture_number(stream))
    if key not in _of_graphs:
        _of_graphs[key] = []
        when_graph_ends(stream, lambda: _of_graphs.pop(key, None))
    ours = _of_graphs[key]
    if ours and len(ours[-1]) >= count:
        return ours[-1]
    spare = _spare.pop(device, None)
    if spare is None or len(spare) < count:
        # Of the graph itself, which clears it at each replay.
        return torch.zeros(count, dtype=torch.int64, device=device)
    ours.append(spare)
    return spare
