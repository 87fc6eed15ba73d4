"""Ways to get the bytes of a large file into memory, each of them run by itself in a new process.

``python -m bitstack.tools.bench.streaming_cases NAME ARGUMENT`` prints as JSON the bytes, the seconds, the seconds of
processor time and the peak of memory above what it was before. Imports, opening what is not read, and collecting the
garbage of both, which would take a tenth of a second at some moment, do not count.
"""

import gc
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

Case = Callable[..., int]
CASES: Final[dict[str, Case]] = {}
_measured: dict[str, Any] = {}


def case(work: Case) -> Case:
    """Make a function one of the cases; it measures with `measured`, and gives the number of bytes."""
    CASES[work.__name__] = work
    return work


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        found = re.search(field + r":\s+(\d+) kB", file.read())
    return int(found[1]) * 1024 if found else 0


@contextmanager
def measured() -> Iterator[None]:
    """What happens within it is measured."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, memory = resource.getrusage(resource.RUSAGE_SELF), _memory("VmRSS")
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    _measured.update(
        seconds=seconds,
        user=after.ru_utime - before.ru_utime,
        system=after.ru_stime - before.ru_stime,
        peak=_memory("VmHWM") - memory,
    )


def _parts(size: int, length: int) -> list[tuple[int, int]]:
    return [(at, min(at + length, size)) for at in range(0, size, length)]


def _size(url: str) -> int:
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        return int(answer.headers["Content-Length"])


def _fixed(requests: str, request_bytes: str) -> dict[str, Any]:
    return {"requests": int(requests), "request_bytes": int(request_bytes)} if requests else {}


@case
def blocks(uri: str, backend: str = "fsspec", requests: str = "", request_bytes: str = "") -> int:
    """Every block, compared with its digest, decoded and checked, in order; requests adapted, or fixed."""
    import bsformat
    from bitstack.loader import stream_blocks

    network = bsformat.Network(backend=backend)
    with bsformat.open(uri, cache=False, network=network) as container:
        before = container.source.bytes_read
        with measured():
            for _, payload in stream_blocks(container, 0, len(container), **_fixed(requests, request_bytes)):
                del payload
        return container.source.bytes_read - before


@case
def prefix(uri: str, size: str, requests: str = "", request_bytes: str = "") -> int:
    """As `blocks`, of a prefix of so many bytes; and how many requests ran at once at the end."""
    import bsformat
    from bitstack.loader import stream_blocks

    last: list[bsformat.Reading] = []
    with bsformat.open(uri, cache=False) as container:
        stop = container.planner.plan(int(size)).n_blocks
        before = container.source.bytes_read
        with measured():
            for _, payload in stream_blocks(container, 0, stop, watch=last.append, **_fixed(requests, request_bytes)):
                del payload
        most = max(reading.requests for reading in last)
        _measured["note"] = f"at most {most} requests, at the end {last[-1].requests} of {last[-1].request_bytes} bytes"
        return container.source.bytes_read - before


@case
def tensors(uri: str, backend: str = "fsspec") -> int:
    """As `blocks`, and every payload kept, in a tensor of its own: what a load on a CPU does."""
    import torch

    import bsformat
    from bitstack.loader import stream_blocks
    from bitstack.staging import uploads_to

    network, kept = bsformat.Network(backend=backend), []
    upload = uploads_to(torch.device("cpu"))
    with bsformat.open(uri, cache=False, network=network) as container:
        before = container.source.bytes_read
        with measured():
            for _, payload in stream_blocks(container, 0, len(container)):
                kept.append(upload(payload))
                del payload
        return container.source.bytes_read - before


@case
def cat_ranges(url: str, length: str, batch: str) -> int:
    """fsspec, its own ``cat_ranges``: nothing is checked; ``batch`` requests of ``length`` bytes at once."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    parts = _parts(_size(url), int(length))
    total = 0
    with measured():
        for i in range(0, len(parts), int(batch)):
            some = parts[i : i + int(batch)]
            out: list[Any] = fs.cat_ranges([path] * len(some), [a for a, _ in some], [b for _, b in some])
            total += sum(map(len, out))
    return total


@case
def obstore_ranges(url: str, length: str, threads: str) -> int:
    """obstore, its own ``get_range`` from threads: nothing is checked."""
    import obstore
    from obstore.store import HTTPStore

    base, _, name = url.rpartition("/")
    store = HTTPStore.from_url(base, client_options={"allow_http": True})
    parts = _parts(_size(url), int(length))
    with measured(), ThreadPoolExecutor(int(threads)) as pool:
        return sum(pool.map(lambda part: len(obstore.get_range(store, name, start=part[0], end=part[1])), parts))


@case
def safetensors_load(path: str) -> int:
    """safetensors, a dense file of this disk into tensors: nothing is compared with a digest."""
    from safetensors.torch import load_file

    with measured():
        # The tensors are views of a mapped file until their bytes are touched.
        out = {name: tensor.clone() for name, tensor in load_file(path).items()}
    return sum(t.nbytes for t in out.values())


@case
def runai_streamer(path: str, threads: str) -> int:
    """Run:ai's streamer, the same dense file: nothing is compared with a digest."""
    import os

    os.environ["RUNAI_STREAMER_CONCURRENCY"] = threads
    os.environ["RUNAI_STREAMER_LOG_LEVEL"] = "ERROR"
    from runai_model_streamer import SafetensorsStreamer

    kept = {}
    with measured(), SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        for name, tensor in streamer.get_tensors():
            kept[name] = tensor.clone()
    return sum(t.nbytes for t in kept.values())


@case
def tensorizer_load(uri: str, verify: str) -> int:
    """tensorizer, its own format, over http or from a disk, with its hashes compared or not."""
    import torch
    from tensorizer import TensorDeserializer

    with measured():
        with TensorDeserializer(uri, device="cpu", verify_hash=verify == "verify", lazy_load=False) as loaded:
            kept = {name: loaded[name] for name in loaded}
        return sum(t.nbytes for t in kept.values() if isinstance(t, torch.Tensor))


@case
def raw_read(path: str, length: str) -> int:
    """The bytes of a local file, read into one buffer again and again."""
    import os

    buffer = memoryview(bytearray(int(length)))
    fd, total = os.open(path, os.O_RDONLY), 0
    with measured():
        while count := os.preadv(fd, [buffer], total):
            total += count
    os.close(fd)
    return total


def main() -> None:
    """Run one case and print."""
    name, *arguments = sys.argv[1:]
    if name not in CASES:
        raise SystemExit(f"no case {name!r}; there are: {', '.join(CASES)}")
    size = CASES[name](*arguments)
    print(json.dumps({"bytes": size} | {k: v if isinstance(v, str) else round(v, 4) for k, v in _measured.items()}))


if __name__ == "__main__":
    main()
