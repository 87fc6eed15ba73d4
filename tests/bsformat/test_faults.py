"""Reading from servers that go wrong at 5, 20 and 50 % of the requests.

Each read ends in the bytes of the file or in one error that says what was wrong; never in other bytes, and never not
at all. ``BSTK_FAULT_SEEDS=200 pytest tests/bsformat/test_faults.py -k rate`` draws 200 times as many servers.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

import bsformat
from bsformat import Network
from bsformat.errors import (
    AccessDeniedError,
    BstkError,
    IntegrityError,
    NotFoundError,
    SourceChangedError,
    SourceError,
)
from bsformat.uri import open_source
from tests.bsformat import faulty
from tests.bsformat.encoder import Image
from tests.bsformat.faulty import Fault, FaultyServer, serving, status

RATES = (0.05, 0.2, 0.5)
SEEDS = range(int(os.environ.get("BSTK_FAULT_SEEDS", "1")))
DATA = random.Random(5).randbytes(120_000)

#: Faults that pass: the bytes must come.
PASSING: dict[str, Fault] = {
    "200 in place of 206": faulty.ignores_range,
    "short 206": faulty.short_answer,
    "short body": faulty.short_body,
    "wrong offset": faulty.wrong_offset,
    "no Content-Range": faulty.no_content_range,
    "wrong Content-Range": faulty.garbage_content_range,
    "gzip": faulty.gzipped,
    "longer body": faulty.longer,
    "cut": faulty.cut,
    "reset": faulty.reset,
    "hang up": faulty.hang_up,
    "no http": faulty.no_http,
    "408": status(408),
    "425": status(425),
    "429, Retry-After seconds": status(429, "2"),
    "429, Retry-After date": status(429, "date"),
    "500": status(500),
    "502": status(502),
    "503, Retry-After seconds": status(503, "3"),
    "503, Retry-After nonsense": status(503, "soon"),
    "504": status(504),
    "redirect": faulty.redirect_once,
}
#: Faults that take time to notice.
SLOW: dict[str, Fault] = {"stall": faulty.stall, "slow drip": faulty.drip, "slow drip of the head": faulty.drip_head}
#: Faults that do not pass: an error of this kind, unless the read was over before.
LASTING: dict[str, tuple[Fault, type[BstkError]]] = {
    "wrong size": (faulty.wrong_size, SourceChangedError),
    "other ETag": (faulty.other_etag, SourceChangedError),
    "ETag gone": (faulty.no_etag, SourceChangedError),
    "replaced": (faulty.replaced, SourceChangedError),
    "truncated": (faulty.truncated, SourceChangedError),
    "deleted": (faulty.gone, NotFoundError),
    "denied": (faulty.denied, AccessDeniedError),
    "redirect loop": (faulty.redirect_loop, SourceError),
}


class Clock:
    """A clock that pauses move, and that otherwise goes as the real one: tests need not wait for pauses."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self) -> float:
        return time.monotonic() + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


#: Settings that notice soon what is slow.
IMPATIENT = {"stall_timeout": 0.1, "connect_timeout": 0.4, "minimum_rate": 500.0, "rate_window": 0.1, "pause": 0.0}


def network(clock: Clock, **changes: Any) -> Network:
    """Settings with which nothing takes long: 16 attempts are enough for any seed at a rate of 50 %."""
    settings: dict[str, Any] = {
        "attempts": 16,
        "stall_timeout": 10.0,
        "connect_timeout": 10.0,
        "minimum_rate": 0.0,  # pauses of other threads move the clock, and would look like slowness
        "deadline": 400.0,
        "clock": clock,
        "sleep": clock.sleep,
    }
    return Network(**(settings | changes))


def watched(work: Callable[[], Any], seconds: float = 40.0) -> Any:
    """What ``work`` gives or raises; a test that hangs fails."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"nothing came within {seconds} s"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def ended(work: Callable[[], Any]) -> tuple[Any, BstkError | None]:
    """What ``work`` gives, and the error of this project that it ends with."""
    try:
        return work(), None
    except BstkError as error:
        return None, error


def ranges(count: int) -> list[tuple[int, int]]:
    """``count`` ranges that tile what follows the first read of 1000 bytes."""
    edges = [1000 + (len(DATA) - 1000) * i // count for i in range(count + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]


def read_all(source: Any, count: int, threads: int = 1) -> bytes:
    """The object, read in ``count`` ranges after its start."""
    first, size = source.start(1000)
    assert size == len(DATA)
    if threads == 1:
        return bytes(first) + b"".join(bytes(source.get(*r)) for r in ranges(count))
    with ThreadPoolExecutor(threads) as pool:
        return bytes(first) + b"".join(bytes(part) for part in pool.map(lambda r: source.get(*r), ranges(count)))


def one_line(error: BstkError, url: str) -> str:
    """The text of an error: one line that begins with the URL."""
    text = str(error)
    assert "\n" not in text
    assert text.startswith(url)
    assert "s3cr3t" not in text
    assert len(text) > len(url) + 25
    return text


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[FaultyServer, Any], None]:
    """Add what a read cost to the file that ``BSTK_FAULT_REPORT`` names, one line of JSON each."""

    def keep(server: FaultyServer, source: Any) -> None:
        if path := os.environ.get("BSTK_FAULT_REPORT"):
            row = {
                "case": request.node.name,
                "requests": server.requests,
                "faults": server.faults,
                "bytes_sent": server.sent,
                "bytes_received": source.bytes_received,
                "bytes_of_the_object": len(DATA),
            }
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")

    return keep


def test_without_faults_every_byte_comes_once() -> None:
    with serving(FaultyServer(DATA)) as server:
        source: Any = open_source(server.url(), network=network(Clock()))
        assert watched(lambda: read_all(source, 30, threads=4)) == DATA
    assert (server.requests, source.requests) == (31, 31)
    assert (server.sent, source.bytes_received) == (len(DATA), len(DATA))
    assert [h.get("if-match") for h in server.seen] == [None] + ['"one"'] * 30


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_at_a_rate(name: str, threads: int, rate: float, seed: int, report: Any) -> None:
    clock = Clock()
    with serving(FaultyServer(DATA, PASSING[name], rate, seed, spared=1)) as server:
        source: Any = open_source(server.url(), network=network(clock))
        assert watched(lambda: read_all(source, 30, threads)) == DATA
    report(server, source)
    if name == "redirect":
        # Where it led is asked from then on; each fault is one request more.
        assert server.requests == 31 + server.faults
        assert clock.slept == []
        return
    # Each fault cost one request and one pause, and no sound byte was asked for twice.
    if name in ("reset", "hang up", "no http"):
        # aiohttp asks once more by itself where a connection that was kept turns out to be dead.
        assert 31 + len(clock.slept) <= server.requests <= 31 + server.faults
    else:
        assert server.requests == 31 + server.faults
        assert len(clock.slept) == server.faults
    if name in ("short 206", "short body", "cut", "reset", "hang up", "no http") or name[0] in "45":
        assert source.bytes_received == len(DATA)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_at_a_rate(name: str, rate: float, seed: int, report: Any) -> None:
    clock = Clock()
    with serving(FaultyServer(DATA, SLOW[name], rate, seed, spared=1)) as server:
        source: Any = open_source(server.url(), network=network(clock, **IMPATIENT))
        assert watched(lambda: read_all(source, 10, threads=4)) == DATA
    report(server, source)
    assert server.requests >= 11 + server.faults
    assert source.bytes_received == len(DATA)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_at_a_rate(name: str, threads: int, rate: float, seed: int, report: Any) -> None:
    fault, kind = LASTING[name]
    clock = Clock()
    with serving(FaultyServer(DATA, fault, rate, seed, spared=1)) as server:
        source: Any = open_source(server.url(), network=network(clock))
        data, error = ended(lambda: watched(lambda: read_all(source, 30, threads)))
        if error is None:
            assert data == DATA
            assert server.faults == 0
        else:
            assert isinstance(error, kind)
            one_line(error, server.url())
            assert server.faults > 0
    report(server, source)
    assert clock.slept == []  # none of these is worth another attempt
    assert server.requests <= 31 * 12


#: s3fs with nothing of its own between us and the server: botocore would try again by itself, and wait.
S3_OPTIONS: dict[str, Any] = {
    "anon": True,
    "config_kwargs": {"retries": {"max_attempts": 0}, "s3": {"addressing_style": "path"}},
    "client_kwargs": {"region_name": "us-east-1"},
    "skip_instance_cache": True,
}
#: s3fs and botocore follow redirects themselves, and repeat what fails in them.
S3_FAULTS = [n for n in [*PASSING, *SLOW, *LASTING] if n not in ("redirect loop", "slow drip of the head")]


@pytest.fixture(scope="module")
def s3_session() -> Any:
    """What botocore reads from its own data once, for all file systems."""
    from aiobotocore.session import AioSession

    return AioSession()


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # botocore's, on Python 3.12 and up
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", S3_FAULTS)
def test_s3_at_a_rate(name: str, rate: float, seed: int, report: Any, s3_session: Any) -> None:
    """The same servers as S3: GetObject is a GET with a range."""
    fault = LASTING[name][0] if name in LASTING else {**PASSING, **SLOW}[name]
    settings = network(Clock(), **(IMPATIENT if name in SLOW else {}))
    with serving(FaultyServer(DATA, fault, rate, seed, spared=1)) as server:
        source: Any = open_source(
            "s3://b/k.bin", network=settings, endpoint_url=server.base, session=s3_session, **S3_OPTIONS
        )
        data, error = ended(lambda: watched(lambda: read_all(source, 10)))
        report(server, source)
    if error is None:
        assert data == DATA
        assert name not in LASTING or server.faults == 0
    else:
        one_line(error, "s3://b/k.bin")
        assert name in LASTING
        assert isinstance(error, LASTING[name][1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["wrong bytes", "replaced quietly"])
def test_what_only_digests_see_at_a_rate(name: str, rate: float, seed: int, image: Image) -> None:
    data = image.seal()
    fault = {"wrong bytes": faulty.wrong_bytes, "replaced quietly": faulty.replaced_quietly}[name]
    with serving(FaultyServer(data, fault, rate, seed)) as server:

        def blocks(source: Any, **options: Any) -> list[bytes]:
            with bsformat.open(source, **options) as container:
                return [container.read_block(i) for i in range(len(container))]

        got, error = ended(lambda: blocks(server.url(), network=network(Clock())))
        if error is None:
            assert got == blocks(bsformat.MemorySource(data))
        else:
            assert isinstance(error, bsformat.errors.FormatError)
            one_line(error, server.url())


# A sound redirect is no fault; a circle of them is among LASTING.
@pytest.mark.parametrize("name", [name for name in [*PASSING, *SLOW] if name != "redirect"])
def test_a_fault_at_every_request_is_an_error_within_the_deadline(name: str) -> None:
    """What gets nowhere ends: by attempts, or by the deadline."""
    fault = {**PASSING, **SLOW}[name]
    clock = Clock()
    with serving(FaultyServer(DATA, fault, 1.0, 1, spared=1)) as server:
        source: Any = open_source(
            server.url(), network=network(clock, attempts=5, **(IMPATIENT if name in SLOW else {}))
        )
        source.start(1000)
        with pytest.raises(SourceError) as caught:
            watched(lambda: source.get(1000, 100_000))
        text = one_line(caught.value, server.url())
        assert "byte" in text
        assert "5 attempts" in text
        assert caught.value.reason in ("source", "short-read", "range-unsupported")
    assert len(clock.slept) == 4
    assert server.requests <= 1 + 5 * 2


def test_a_mixture_is_never_given_out(image: Image) -> None:
    """A file replaced by another valid one, of the same size and layout, between any two of its reads."""
    old = image.seal()
    with bsformat.open(bsformat.MemorySource(old)) as sound:
        expected = [sound.read_block(i) for i in range(len(sound))]
    kinds = (SourceChangedError, IntegrityError)
    for honours in (True, False):
        for spared in range(1, 6):
            fault = faulty.replaced if honours else faulty.replaced_quietly
            with (
                serving(FaultyServer(old, fault, 1.0, spared=spared)) as server,
                bsformat.open(server.url(), network=network(Clock())) as container,
            ):
                for number in range(len(container)):
                    container.source.get(0, 1) if server.requests < spared else None
                    got, error = ended(lambda n=number, c=container: c.read_block(n))  # type: ignore[misc]
                    assert got == expected[number] if error is None else isinstance(error, kinds)


def test_the_deadline_ends_a_read_that_drips() -> None:
    """Bytes come all the time, and too slowly for the deadline: no rate is demanded, so only the deadline ends it."""
    with serving(FaultyServer(DATA, faulty.drip, 1.0, spared=1)) as server:
        source = open_source(server.url(), network=Network(minimum_rate=0, deadline=0.5))
        source.start(1000)
        began = time.monotonic()
        with pytest.raises(SourceError) as caught:
            watched(lambda: source.get(1000, 50_000))
        assert time.monotonic() - began < 10
        assert "within the deadline of 0.5 s" in one_line(caught.value, server.url())
    assert server.requests == 2
