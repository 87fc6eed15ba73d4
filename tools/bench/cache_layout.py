"""Why the cache has segments: ``python -m bitstack.tools.bench.cache_layout --folder DIR``.

Writes the same blocks as one file each, in folders of two hexadecimal digits, and as the cache does, in segments of
what one request brings; reads them back; and prints as JSON what both took: files, bytes on disk, opens, seconds.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from bsformat import BlockCache
from bsformat.cache_heads import write_whole

from .report import machine, printed

Block = tuple[bytes, bytes]


def make_blocks(count: int, size: int) -> list[Block]:
    """Random blocks of about one size, each with its digest."""
    draw = np.random.default_rng(0)
    blocks = [draw.bytes(int(n)) for n in draw.integers(size // 2, size * 3 // 2, count)]
    return [(blake3.blake3(data).digest(), data) for data in blocks]


@contextmanager
def timed(row: dict[str, Any], name: str) -> Iterator[None]:
    """Note the seconds that something took."""
    started = time.perf_counter()
    yield
    row[name] = round(time.perf_counter() - started, 3)


def each_block_a_file(folder: Path, blocks: list[Block], request: int) -> dict[str, Any]:
    """Two levels: 256 folders of files named by digest."""
    row: dict[str, Any] = {"layout": "a file for each block"}

    def path(digest: bytes) -> str:
        return str(folder / digest.hex()[:2] / digest.hex())

    with timed(row, "write_seconds"):
        for i in range(256):
            (folder / f"{i:02x}").mkdir(parents=True)
        for digest, data in blocks:
            write_whole(path(digest), [data])
    with timed(row, "read_seconds"):
        for digest, _ in blocks:
            with open(path(digest), "rb") as file:
                if blake3.blake3(file.read()).digest() != digest:
                    raise SystemExit("a block was damaged")
    return row | {"opens_to_read": len(blocks)}


def segments(folder: Path, blocks: list[Block], request: int) -> dict[str, Any]:
    """As `BlockCache` does."""
    row: dict[str, Any] = {"layout": "segments"}
    cache = BlockCache(folder, 1 << 50)
    cache.prepare()
    known = cache.catalogue([digest for digest, _ in blocks])
    with timed(row, "write_seconds"):
        at = 0
        while at < len(blocks):
            stop, size = at, 0
            while stop < len(blocks) and size + len(blocks[stop][1]) <= request:
                size += len(blocks[stop][1])
                stop += 1
            cache.put(blocks[at:stop], known, set())
            at = stop
    opens = 0
    with timed(row, "read_seconds"):
        known.refresh()
        places = sorted((place, digest) for digest, _ in blocks if (place := known.find(digest)))
        fd, current = -1, 0
        for (segment, offset, length), digest in places:
            if segment != current:
                if fd >= 0:
                    os.close(fd)
                fd, current = cache.open_segment(segment), segment
                opens += 1
            if blake3.blake3(os.pread(fd, length, offset)).digest() != digest:
                raise SystemExit("a block was damaged")
        os.close(fd)
    with timed(row, "catalogue_seconds"):
        cache.catalogue([digest for digest, _ in blocks]).refresh()
    return row | {"opens_to_read": opens + 1}


def used(folder: Path) -> dict[str, int]:
    """What a folder takes: files and folders, and bytes of the disk."""
    stats = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return {"inodes": len(stats), "bytes_on_disk": sum(stat.st_blocks * 512 for stat in stats)}


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder on the disk to be measured")
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=16_384, help="bytes of a block, on average")
    parser.add_argument("--request", type=int, default=4 << 20, help="bytes of a segment")
    args = parser.parse_args()
    blocks = make_blocks(args.blocks, args.size)
    layouts: list[Callable[[Path, list[Block], int], dict[str, Any]]] = [each_block_a_file, segments]
    rows = []
    for layout in layouts:
        folder = args.folder / layout.__name__
        row = layout(folder, blocks, args.request)
        rows.append(row | used(folder))
        shutil.rmtree(folder)
    size = sum(len(data) for _, data in blocks)
    result = {"n_blocks": len(blocks), "bytes": size, "layouts": rows} | machine(torch.device("cpu"))
    print(printed(result))


if __name__ == "__main__":
    main()
