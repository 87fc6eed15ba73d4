"""What a model that grows while it is used saves: ``python -m bitstack.tools.bench.progressive FILE --rate 12.5MB``.

Loads a file over a link of so many bytes a second, once whole and once progressively, and generates from the moment
there is a model. Prints as JSON when the first token was there, when the whole budget was, and how long tokens took.
The link is simulated: reads of a local file are answered no sooner than the link could have. `--rate` may be left out
for a real URI.
"""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch

import bitstack
import bsformat
from bsformat import ByteSource
from bsformat.source import Buffer
from bsformat.uri import open_source


class Link:
    """A `ByteSource` behind a link that all of its reads share.

    Args:
        source: the bytes.
        rate: bytes a second.
        delay: seconds from a request to its first byte.
    """

    def __init__(self, source: ByteSource, rate: float, delay: float) -> None:
        self.name = source.name
        self._source, self._rate, self._delay = source, rate, delay
        self._lock, self._free = threading.Lock(), 0.0

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        data, size = self._source.start(length)
        self._carry(len(data))
        return data, size

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`."""
        data = self._source.get(offset, length)
        self._carry(length)
        return data

    def close(self) -> None:
        """See `ByteSource.close`."""
        self._source.close()

    def _carry(self, length: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic() + self._delay) + length / self._rate
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


class Steps:
    """When the passes of a model ended; made before it is loaded."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.ended: list[float] = []
        self.target: float | None = None

    def watch(self, model: Any) -> None:
        """Note every pass from now on."""
        model.register_forward_hook(lambda *_: self.ended.append(time.monotonic() - self.started))

    def summary(self) -> dict[str, Any]:
        """Seconds to the first token and to the whole budget; milliseconds for each token, the prompt left out."""
        took = [1e3 * (b - a) for a, b in zip(self.ended, self.ended[1:], strict=False)]
        target = self.target if self.target is not None else float("inf")
        return {
            "seconds_to_first_token": round(self.ended[0], 3),
            "seconds_to_whole_budget": None if self.target is None else round(self.target, 3),
            "tokens_before_whole_budget": sum(end < target for end in self.ended),
            "tokens": len(self.ended),
            "token_ms": {"median": round(statistics.median(took), 1), "max": round(max(took), 1)},
        }


def measure(
    source: ByteSource | str, budget: str, device: torch.device, progressive: bool, after: int
) -> dict[str, Any]:
    """One load, and tokens until the whole budget has been there for ``after`` of them."""
    steps = Steps()
    with bsformat.open(source, cache=False) as container:
        model = bitstack.load(container, budget, device, progressive=progressive)
        elastic = model.bitstack
        began = elastic.growth.started.resident_bytes if progressive else elastic.plan.resident_bytes
        steps.watch(model)
        if not progressive:
            steps.target = time.monotonic() - steps.started
        ids = torch.tensor([[1, 5, 3, 8]], device=device)
        cache, left = None, after
        with torch.inference_mode():
            while left:
                out = model(input_ids=ids, past_key_values=cache, use_cache=True)
                ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                if steps.target is None and elastic.growth.done:
                    elastic.growth.wait()
                    steps.target = time.monotonic() - steps.started
                left -= steps.target is not None
    return {"began_with_bytes": began, "resident_bytes": elastic.plan.resident_bytes} | steps.summary()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--budget", default="100%")
    parser.add_argument("--rate", help="bytes a second of a simulated link, as 12.5MB")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds to the first byte (default: %(default)s)")
    parser.add_argument("--device")
    parser.add_argument("--tokens", type=int, default=20, help="tokens after the whole budget is there")
    args = parser.parse_args()
    from bitstack.tools.console import quiet_libraries
    from bitstack.tools.devices import find_device, hardware, versions

    quiet_libraries()
    device = find_device(args.device)

    def source() -> ByteSource | str:
        if args.rate is None:
            return str(args.uri)
        return Link(open_source(args.uri), bsformat.parse_size(args.rate, 0), args.delay)

    measure(args.uri, args.budget, device, False, 2)  # imports and compiles
    rows = {name: measure(source(), args.budget, device, name == "progressive", args.tokens) for name in _WAYS}
    link = None if args.rate is None else {"bytes_per_second": bsformat.parse_size(args.rate, 0), "delay": args.delay}
    about = {"file": Path(args.uri).name, "budget": args.budget, "link": link}
    print(json.dumps(about | rows | {"hardware": hardware(device), "versions": versions()}, indent=2))


_WAYS = ("whole", "progressive")

if __name__ == "__main__":
    main()
