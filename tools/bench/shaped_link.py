"""Reading over slow links: ``python -m bitstack.tools.bench.shaped_link FILE.bstk --keep OUT.json``. As root, on Linux.

A web server stands in one network namespace and the reader in another. Between them is a link of 100 Mbit/s (a pair
of virtual devices, and the kernel's token bucket), and one of 1 Gbit/s with 50 ms there and back and 1 % loss (two TUN
devices and `bitstack.tools.bench.link`, with frames of 9000 bytes, which it can carry at that rate; few kernels have
netem). For each, the share of the link's rate that blocks come at, compared with their digests, with requests fixed in
number and adapted; and curl with as many connections.

With ``--generate BUDGET``, FILE is a model instead, and `bitstack.tools.bench.progressive` loads it over each link,
once whole and once progressively, several times, and generates; kept are all runs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import link
from .report import machine, printed
from .web_server import serving

MIB = 1 << 20
SERVER, CLIENT = "10.99.7.1", "10.99.7.2"
#: Of what a link carries, the part that is left for bytes of bodies: headers of Ethernet, IP and TCP.
PAYLOAD = {1500: 1448 / 1514, 9000: 8948 / 9000}


@dataclass(frozen=True)
class Shape:
    """A link: bytes per second, seconds there and back, share of packets lost.

    Attributes:
        size: bytes that are read over it. each: at most so many by each connection, where their number is fixed.
    """

    name: str
    rate: float
    round_trip: float
    loss: float
    size: int
    each: int
    mtu: int


SHAPES = [
    Shape("100 Mbit/s", 100e6 / 8, 0.0, 0.0, 96 * MIB, 96 * MIB, 1500),
    Shape("1 Gbit/s, 50 ms, 1 % loss", 1e9 / 8, 0.05, 0.01, 768 * MIB, 12 * MIB, 9000),
]


def ip(*arguments: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces: commands that run others in that of the server and of the client."""
    names = [f"bstk-{side}-{os.getpid()}" for side in ("server", "client")]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]


@contextmanager
def linked(shape: Shape, server: str, client: str) -> Iterator[None]:
    """A link between two namespaces."""
    names = ("bsa", "bsb")
    if shape.round_trip or shape.loss:
        ends = [link.open_tun(name) for name in names]
    else:
        ends = []
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
    pid = 0
    try:
        for name, space, address in zip(names, (server, client), (SERVER, CLIENT), strict=True):
            ip("link", "set", name, "netns", space)
            ip("-n", space, "address", "add", f"{address}/24", "dev", name)
            ip("-n", space, "link", "set", name, "mtu", str(shape.mtu), "up")
        if ends:
            ip("-n", server, "route", "replace", f"{CLIENT}/32", "dev", names[0])
            ip("-n", client, "route", "replace", f"{SERVER}/32", "dev", names[1])
            pid = os.fork()
            if pid == 0:
                try:
                    link.run_link(ends[0], ends[1], shape.rate, shape.round_trip / 2, shape.loss)
                finally:
                    os._exit(1)
        else:
            bucket = ["rate", f"{int(shape.rate * 8)}bit", "burst", "64kb", "latency", "50ms"]
            subprocess.run(["tc", "-n", server, "qdisc", "add", "dev", names[0], "root", "tbf", *bucket], check=True)
        time.sleep(0.3)
        yield
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in ends:
            os.close(end)
        if not ends:
            subprocess.run(["ip", "-n", server, "link", "del", names[0]], check=False)


def measure(shape: Shape, url: str, inside: list[str], requests: str) -> dict[str, Any]:
    """One way to read over the link; ``requests`` as `streaming_cases.prefix` takes it."""
    command = [sys.executable, "-P", "-m", "bitstack.tools.bench.streaming_cases"]
    size = min(shape.size, int(requests) * shape.each) if requests else shape.size
    fixed = (requests, str(4 * MIB)) if requests else ()
    done = subprocess.run(
        [*inside, *command, "prefix", url, str(size), *fixed], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        return {"link": shape.name, "requests": requests or "adapted", "error": done.stderr.strip()[-300:]}
    row = json.loads(done.stdout)
    rate = row["bytes"] / row["seconds"]
    out = {
        "link": shape.name,
        "requests": int(requests) if requests else "adapted",
        "mbit_per_s": round(rate * 8e-6, 1),
    }
    out["share_of_link"] = round(rate / (shape.rate * PAYLOAD[shape.mtu]), 3)
    return out | {"seconds": row["seconds"], "end": row.get("note")}


def measure_curl(shape: Shape, url: str, inside: list[str], connections: int) -> dict[str, Any]:
    """curl with several connections, each for one part."""
    size = min(shape.size, connections * shape.each)
    share = size // connections
    arguments: list[str] = []
    for i in range(connections):
        part = f"{i * share}-{(i + 1) * share - 1}"
        arguments += [*(["--next"] if i else []), "-s", "-o", os.devnull, "-r", part, url]
    started = time.perf_counter()
    subprocess.run([*inside, "curl", "-Z", "--parallel-immediate", "--parallel-max", "300", *arguments], check=True)
    seconds = time.perf_counter() - started
    rate = share * connections / seconds
    return {
        "link": shape.name,
        "curl_connections": connections,
        "mbit_per_s": round(rate * 8e-6, 1),
        "share_of_link": round(rate / (shape.rate * PAYLOAD[shape.mtu]), 3),
        "seconds": round(seconds, 2),
    }


def measure_generating(shape: Shape, url: str, inside: list[str], budget: str) -> dict[str, Any]:
    """When the first token is there, and the whole budget: loaded whole, and progressively."""
    command = [*inside, sys.executable, "-P", "-m", "bitstack.tools.bench.progressive", url, "--budget", budget]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        return {"link": shape.name, "error": done.stderr.strip()[-300:]}
    row = json.loads(done.stdout)
    return {"link": shape.name, "budget": budget, "whole": row["whole"], "progressive": row["progressive"]}


def measure_streams(shape: Shape, url: str, inside: list[str]) -> Iterator[dict[str, Any]]:
    """All ways to read over one link."""
    for connections in (1, 4, 16, 64):
        yield measure_curl(shape, url, inside, connections)
    for requests in ("", "1", "4", "16", "64"):
        yield measure(shape, url, inside, requests)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.bstk", help="at least 800 MiB, as random_file makes it")
    parser.add_argument(
        "--congestion", default="reno", help="the server's congestion control; most kernels let a namespace choose few"
    )
    parser.add_argument("--only", type=int, metavar="N", help="the N-th link alone, from 0")
    parser.add_argument("--generate", metavar="BUDGET", help="measure the first token of a model loaded at this budget")
    parser.add_argument("--repeats", type=int, default=3, help="of --generate (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    rows = []
    for shape in SHAPES if args.only is None else [SHAPES[args.only]]:
        with namespaces() as (server, client), linked(shape, server[-1], client[-1]):
            setting = f"net.ipv4.tcp_congestion_control={args.congestion}"
            subprocess.run([*server, "sysctl", "-qw", setting], check=True)
            with serving(args.file.resolve().parent, address=SERVER, port=8080, inside=server) as base:
                url = f"{base}/{args.file.name}"
                ways: Iterable[dict[str, Any]] = measure_streams(shape, url, client)
                if args.generate is not None:
                    ways = (measure_generating(shape, url, client, args.generate) for _ in range(args.repeats))
                for row in ways:
                    rows.append(row)
                    print(row, file=sys.stderr)
    result = {"congestion_control": args.congestion, "rows": rows, "load_average": os.getloadavg()}
    result |= machine(torch.device("cpu"))
    print(printed(result))
    if args.keep:
        args.keep.write_text(printed(result) + "\n")


if __name__ == "__main__":
    main()
