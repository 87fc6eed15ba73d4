"""How fast blocks come from the disk to a GPU: ``python -m bitstack.tools.bench.to_device FILE.bstk --device cuda``.

Each block is compared with its digest and put into memory of its own on the device: through pinned buffers that are
used again, and, beside it, by copies from ordinary memory. Beside those the same blocks into host memory, a plain read
of the file, and copies of one large pinned tensor, the most that the link to the device gives. What of the process is
resident afterwards shows that nothing of the blocks stays on the host. `random_file` makes a file of any size.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import bsformat
from bitstack.loader import stream_blocks
from bitstack.staging import CudaRuntime, HostCopies, Staging

from .report import machine, printed

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def load(path: Path, upload: Staging | HostCopies) -> list[torch.Tensor]:
    """All blocks of a file, checked, where ``upload`` puts them."""
    with bsformat.open(path, cache=False) as container:
        kept = [upload(payload) for _, payload in stream_blocks(container, 0, len(container))]
        upload.finish()
    return kept


def read(path: Path) -> None:
    """All bytes of a file, 8 MiB at a time."""
    buffer = bytearray(8 * MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def measure(path: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """GB/s of each way, in turn."""
    size = path.stat().st_size
    pinned, there = (
        torch.empty(64 * MIB, dtype=torch.uint8, pin_memory=True),
        torch.empty(64 * MIB, dtype=torch.uint8, device=device),
    )

    def link() -> None:
        for _ in range(-(-size // there.numel())):
            there.copy_(pinned, non_blocking=True)

    ways: dict[str, Callable[[], Any]] = {
        "plain read": lambda: read(path),
        "pinned copies": link,
        "blocks to host memory": lambda: load(path, HostCopies(torch.device("cpu"))),
        "blocks to the device": lambda: load(path, Staging(CudaRuntime(device))),
        "blocks to the device, without pinned buffers": lambda: load(path, HostCopies(device)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):  # the first time nothing is warm
        for name, way in ways.items():
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            kept = way()
            torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
            del kept
    before, allocated = resident(), torch.cuda.memory_allocated(device)
    kept = load(path, Staging(CudaRuntime(device)))
    rows = [
        {
            "way": name,
            "best_gb_per_s": round(size / min(all_[1:]) / 1e9, 2),
            "median_gb_per_s": round(size / statistics.median(all_[1:]) / 1e9, 2),
        }
        for name, all_ in seconds.items()
    ]
    return {
        "what": "GB/s of the file, which the system holds in its cache",
        "bytes": size,
        "rows": rows,
        "host_bytes_after": resident() - before,
        "device_bytes_after": torch.cuda.memory_allocated(device) - allocated,
        "blocks": len(kept),
        "load_average": os.getloadavg(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.bstk")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(printed(measure(args.file, args.device, args.repeats) | machine(args.device)))


if __name__ == "__main__":
    main()
