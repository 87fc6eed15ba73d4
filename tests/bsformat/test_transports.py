"""The ways to an http answer: through the standard library, through the session of fsspec, through obstore."""

import datetime
import socket
import threading
import time
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest

import bsformat
from bsformat.answers import Headers
from bsformat.errors import NotFoundError, RangeError, SourceChangedError, SourceError
from bsformat.http import HttpSource
from bsformat.stopping import Stop, reading_for
from bsformat.uri import open_source
from bsformat.watchdog import Watch
from tests.bsformat import faulty
from tests.bsformat.encoder import sample
from tests.bsformat.faulty import FaultyServer, serving
from tests.bsformat.test_faults import (
    DATA,
    IMPATIENT,
    LASTING,
    PASSING,
    SLOW,
    Clock,
    ended,
    network,
    one_line,
    read_all,
    watched,
)
from tests.servers import S3, Reply, Scripted

#: Any option of aiohttp's session: only that knows what to do with it.
THROUGH_SESSION: dict[str, Any] = {"client_kwargs": {"trust_env": True}, "skip_instance_cache": True}
FAULTS = [*PASSING, *SLOW, *LASTING]
needs_obstore = pytest.mark.skipif(find_spec("obstore") is None, reason="obstore is not installed (extra obstore)")


def fault_of(name: str) -> faulty.Fault:
    return LASTING[name][0] if name in LASTING else {**PASSING, **SLOW}[name]


def rate_of(name: str) -> float:
    """What is slow takes its time at every fault."""
    return 0.2 if name in SLOW else 0.5


@pytest.mark.parametrize("name", FAULTS)
def test_the_session_of_fsspec_at_a_rate(name: str) -> None:
    settings = network(Clock(), **(IMPATIENT | {"stall_timeout": 0.3} if name in SLOW else {}))
    with serving(FaultyServer(DATA, fault_of(name), rate_of(name), 3, spared=1)) as server:
        source: Any = open_source(server.url(), network=settings, **THROUGH_SESSION)
        assert source._requester._direct is None
        data, error = ended(lambda: watched(lambda: read_all(source, 10, threads=4)))
    check(name, server, data, error)


@needs_obstore
@pytest.mark.parametrize("name", FAULTS)
def test_obstore_at_a_rate(name: str) -> None:
    options: dict[str, Any] = {}
    if name in SLOW:  # its own timeouts are all there is
        options["client_options"] = {"timeout": datetime.timedelta(seconds=0.8)}
    settings = network(Clock(), backend="obstore", **(IMPATIENT | {"stall_timeout": 0.3} if name in SLOW else {}))
    with serving(FaultyServer(DATA, fault_of(name), rate_of(name), 3, spared=1)) as server:
        source: Any = open_source(server.url(), network=settings, **options)
        data, error = ended(lambda: watched(lambda: read_all(source, 10, threads=4)))
    check(name, server, data, error)


def check(name: str, server: FaultyServer, data: Any, error: Any) -> None:
    if error is None:
        assert data == DATA
        assert name not in LASTING or server.faults == 0
    else:
        one_line(error, server.url())
        assert name in LASTING
        assert isinstance(error, LASTING[name][1])


@pytest.mark.parametrize("options", [{}, THROUGH_SESSION], ids=["direct", "session"])
def test_both_count_and_reuse(options: dict[str, Any], nginx: Any) -> None:
    source: Any = open_source(nginx.put("x", DATA), network=network(Clock()), **options)
    assert read_all(source, 30) == DATA
    source.close()
    log = nginx.log()
    assert (source.requests, source.bytes_received) == (31, len(DATA))
    assert len({r.connection for r in log}) == 1
    assert source.signals.latency > 0
    assert source.signals.setbacks == 0


# --- the standard library ---------------------------------------------------------------------------------------------


def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    def close_after(x: faulty.Exchange) -> None:
        x.good()
        x.close()

    clock = Clock()
    with serving(FaultyServer(DATA, close_after, 1.0)) as server:
        source: Any = open_source(server.url(), network=network(clock))
        assert watched(lambda: read_all(source, 20)) == DATA
    assert clock.slept == []
    assert source.bytes_received == len(DATA)


def test_connections_of_several_threads_are_kept_apart() -> None:
    with serving(FaultyServer(DATA)) as server:
        source: Any = open_source(server.url(), network=network(Clock()))
        assert watched(lambda: read_all(source, 100, threads=16)) == DATA
        assert 1 <= len(source._requester._direct._idle) <= 16
        source.close()
        assert source._requester._direct._idle == []
        assert bytes(source.get(5, 5)) == DATA[5:10]
        source.close()


def test_a_body_in_chunks(scripted: Scripted) -> None:
    scripted.data = DATA

    def chunked(request: Any) -> Reply:
        reply = scripted.good(request)
        half = len(reply.body) // 2
        parts = [reply.body[:half], reply.body[half:], b""]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part or part is parts[-1])
        return Reply(206, body, reply.headers | {"Transfer-Encoding": "chunked"})

    scripted.reply = chunked
    source: Any = open_source(scripted.url(), network=network(Clock()))
    assert watched(lambda: read_all(source, 5)) == DATA
    assert source.bytes_received == len(DATA)
    source.close()


@pytest.mark.parametrize("status", [100, 103, 204, 206, 304, 999])
def test_answers_without_a_body(scripted: Scripted, status: int) -> None:
    scripted.data = DATA
    source = open_source(scripted.url(), network=network(Clock(), attempts=2, stall_timeout=0.3))
    source.start(100)
    scripted.reply = lambda request: Reply(status)
    with pytest.raises(SourceError) as caught:
        watched(lambda: source.get(100, 100))
    one_line(caught.value, scripted.url())
    source.close()


def test_headers_in_any_case_and_on_one_line() -> None:
    headers = Headers([("ETag", '"a"'), ("X-Long", "one\r\n two"), ("etag", '"b"')])
    assert (headers["ETAG"], headers.get("x-long"), headers.get("none")) == ('"a"', "one two", None)
    assert len(headers) == len(list(headers)) == 2


def test_a_watch_ends_what_takes_too_long_and_nothing_else() -> None:
    slow, other = socket.socketpair()
    with slow, other:
        with Watch(slow, 60.0) as watch:
            other.send(b"x")
            assert slow.recv(10) == b"x"
        assert not watch.ended
        with Watch(other, 60.0), Watch(slow, 0.05) as watch:
            assert slow.recv(10) == b""  # shut down
        assert watch.ended


def test_a_stop_ends_reads_of_its_threads_only() -> None:
    one, two, far = Stop(), Stop(), []
    came: list[bytes] = []
    started = threading.Barrier(3)

    def read(stop: Stop) -> None:
        near, other = socket.socketpair()
        far.append(other)
        with near, reading_for(stop), Watch(near, 60.0):
            started.wait(10)
            came.append(near.recv(10))

    threads = [threading.Thread(target=read, args=(stop,)) for stop in (one, two)]
    for thread in threads:
        thread.start()
    started.wait(10)
    time.sleep(0.05)
    one.set()
    threads[0].join(10)
    assert came == [b""]
    for end in far:
        end.close()
    threads[1].join(10)


def test_what_needs_the_session_goes_through_it() -> None:
    for options, direct in (
        ({}, True),
        ({"headers": {"X": "y"}}, True),
        ({"client_kwargs": {"headers": {"X": "y"}}}, False),
        ({"cookies": {"a": "b"}}, False),
        ({"ssl": False}, False),
        ({"proxy": "http://127.0.0.1:1"}, False),
    ):
        source = open_source("http://127.0.0.1:1/x", skip_instance_cache=True, **options)
        assert isinstance(source, HttpSource)
        assert (source._requester._direct is not None) == direct


# --- obstore ----------------------------------------------------------------------------------------------------------


@needs_obstore
def test_obstore_reads_from_nginx_and_pins_the_object(nginx: Any) -> None:
    url = nginx.put("x", DATA)
    source: Any = open_source(url, network=network(Clock(), backend="obstore"))
    assert watched(lambda: read_all(source, 30, threads=4)) == DATA
    log = nginx.log()
    assert (len(log), source.requests, source.bytes_received) == (31, 31, len(DATA))
    assert [bool(r.if_match) for r in log] == [False] + [True] * 30
    nginx.put("x", DATA[::-1] + b".")  # nginx makes its ETag of the second and the size
    with pytest.raises(SourceChangedError, match="replaced"):
        source.get(500, 100)
    with pytest.raises(NotFoundError):
        open_source(nginx.url("none"), network=network(Clock(), backend="obstore")).start(10)
    with pytest.raises(SourceError, match="the object has"):
        source.get(len(DATA), 1)


@needs_obstore
def test_obstore_reads_from_s3(s3: S3) -> None:
    uri = s3.put("o", DATA)
    source: Any = open_source(uri, network=network(Clock(), backend="obstore"), **s3.storage_options)
    assert watched(lambda: read_all(source, 10)) == DATA
    s3.put("o", DATA[::-1])
    with pytest.raises(SourceChangedError):
        source.get(500, 100)


@needs_obstore
def test_what_obstore_cannot_do_is_said(scripted: Scripted) -> None:
    settings = network(Clock(), backend="obstore")
    with pytest.raises(SourceError, match="sends no query") as caught:
        open_source(scripted.url("m?sig=s3cr3t"), network=settings)
    assert "s3cr3t" not in str(caught.value)
    scripted.reply = lambda request: Reply(200, DATA, {"ETag": '"a"'})
    with pytest.raises(RangeError, match="ignores byte ranges"):
        open_source(scripted.url(), network=settings).start(10)
    scripted.data = DATA
    scripted.reply = lambda request: scripted.good(request, Content_Encoding="gzip")
    with pytest.raises(RangeError, match="Content-Encoding"):
        open_source(scripted.url(), network=settings).start(10)


def test_obstore_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsformat.obstore_source.available", lambda: False)
    with pytest.raises(SourceError, match=r"pip install 'bitstack\[obstore\]'"):
        open_source("http://127.0.0.1:1/x", network=network(Clock(), backend="obstore"))


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSTK_MEMORY", "24MiB")
    monkeypatch.setenv("BSTK_BACKEND", "obstore")
    settings = bsformat.Network()
    assert (settings.memory, settings.backend) == (24 << 20, "obstore")
    small = bsformat.MemorySource(sample().seal())
    for given, settings_of, found in (
        (None, None, 24 << 20),
        (None, bsformat.Network(memory=5), 5),
        ("1MiB", bsformat.Network(memory=5), 1 << 20),
        (7, None, 7),
    ):
        assert bsformat.open(small, memory=given, network=settings_of).memory == found
    for wrong in (0, "0", "-3", "60%", "a lot"):
        for function in (bsformat.open, bsformat.verify, partial(bsformat.fetch, output="never")):
            with pytest.raises(bsformat.errors.BudgetError) as caught:
                function(small, memory=wrong)
            assert repr(wrong) in str(caught.value)
    monkeypatch.setenv("BSTK_BACKEND", "carrier-pigeon")
    with pytest.raises(SourceError, match="BSTK_BACKEND is 'carrier-pigeon'"):
        bsformat.Network()
    with pytest.raises(ValueError, match=r"Network.backend is 'carrier-pigeon'"):
        bsformat.Network(backend="carrier-pigeon")
    monkeypatch.setenv("BSTK_BACKEND", "")
    for text in ("a lot", "0", "-3"):
        monkeypatch.setenv("BSTK_MEMORY", text)
        with pytest.raises(bsformat.BstkError, match="BSTK_MEMORY is") as refused:
            bsformat.Network()
        assert "\n" not in str(refused.value)
