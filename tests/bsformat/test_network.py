"""How long reads wait, whom they ask again, what they tell whom, and what they say when they give up."""

import datetime
import email.utils
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import bsformat
from bsformat import Network
from bsformat.errors import AccessDeniedError, RangeError, SourceChangedError, SourceError
from bsformat.identity import Identity
from bsformat.network import Transient, retry_after, without_secrets
from bsformat.uri import open_source
from tests.bsformat import faulty
from tests.bsformat.faulty import FaultyServer, serving, status
from tests.bsformat.test_faults import DATA, Clock, network, one_line, watched
from tests.servers import S3, Reply, Request, Scripted

# --- settings and what is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"deadline": 0}, {"stall_timeout": -1}, {"pause": -1}, {"minimum_rate": float("nan")}]
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Network.{next(iter(wrong))}"):
        Network(**wrong)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://a/b.bstk", "http://a/b.bstk"),
        ("https://user:pw@a:1/b?X-Sig=s&b=c", "https://a:1/b?…"),
        ("https://user:p@w@a/b", "https://a/b"),
        ("at https://u@a/b?k=v, and http://c/d?e", "at https://a/b?… and http://c/d?…"),
        ("GET /b?sig=x", "GET /b?…"),
        ("(http://a/b?k)(/c?l)?(http://d/e?f)", "(http://a/b?…)(/c?…)?(http://d/e?…)"),
        ("a?k=/b?l", "a?k=/b?…"),
        ("why? because", "why? because"),
        ("", ""),
    ],
)
def test_secrets_of_urls_are_not_told(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("part", ["/", "a", "a://", "a@", "?", "a?", "/?b)", "://a@"])
def test_texts_that_servers_choose_take_no_longer_than_others(part: str) -> None:
    """In time that grew with the square of the length this would take an hour each."""
    assert len(without_secrets(part * 200_000)) <= 1_000_000


def test_no_error_tells_a_secret(scripted: Scripted) -> None:
    scripted.data = DATA
    host = scripted.base.removeprefix("http://")
    url = f"http://me:s3cr3t@{host}/m.bstk?sig=s3cr3t"
    replies: list[Callable[[Request], Reply]] = [
        lambda r: Reply(403),
        lambda r: Reply(404),
        lambda r: Reply(200, DATA),
        lambda r: Reply(500),
        lambda r: Reply(302, b"", {"Location": "/x?sig=s3cr3t"}),
        lambda r: Reply(302, b"", {"Location": "ftp://me:s3cr3t@h/x?s3cr3t"}),
        lambda r: Reply(302, b"", {"Location": "http://me:s3cr3t@h:99999/?s3cr3t"}),
        lambda r: Reply(206, b"", {}),
    ]
    for reply in replies:
        scripted.reply = reply
        with pytest.raises(SourceError) as caught:
            open_source(url, network=network(Clock(), attempts=2)).start(100)
        one_line(caught.value, f"http://{host}/m.bstk?…")
    with pytest.raises(SourceError) as caught:
        bsformat.open("http://me:s3cr3t@127.0.0.1:1/a?sig=s3cr3t", network=network(Clock(), attempts=1))
    one_line(caught.value, "http://127.0.0.1:1/a?…")
    source = open_source(url)
    assert source.name == f"http://{host}/m.bstk?…"


def test_user_and_password_of_a_url_and_its_query_reach_the_server(scripted: Scripted) -> None:
    scripted.data = DATA
    host = scripted.base.removeprefix("http://")
    source = open_source(f"http://me:s3cr3t@{host}/m.bstk?sig=a%2Fb")
    source.start(100)
    source.get(100, 100)
    assert [r.path for r in scripted.requests] == ["/m.bstk?sig=a%2Fb"] * 2
    assert {r.headers["authorization"] for r in scripted.requests} == {"Basic bWU6czNjcjN0"}


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_and_are_drawn() -> None:
    drawn = iter([0.0, 0.5, 1.0, 0.25, 1.0, 1.0])
    clock = Clock()
    with serving(FaultyServer(DATA, status(503), 1.0)) as server:
        source = open_source(server.url(), network=network(clock, attempts=7, random=lambda: next(drawn)))
        with pytest.raises(SourceError, match="given up after 7 attempts"):
            source.start(100)
    assert clock.slept == [0.0, 0.25, 1.0, 0.5, 4.0, 8.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 99 Oct 2015"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_by_our_own_clock() -> None:
    seconds = retry_after({"Retry-After": email.utils.formatdate(time.time() + 100, usegmt=True)})
    assert seconds is not None
    assert 90 < seconds <= 100


def test_what_the_server_asks_is_waited() -> None:
    clock = Clock()
    with serving(FaultyServer(DATA, status(429, "20"), 1.0)) as server:
        source = open_source(server.url(), network=network(clock, attempts=3, pause=0))
        with pytest.raises(SourceError, match="429"):
            source.start(100)
    assert clock.slept == [20.0, 20.0]


def test_more_than_the_deadline_is_not_waited() -> None:
    clock = Clock()
    with serving(FaultyServer(DATA, status(503, "86400"), 1.0)) as server:
        source = open_source(server.url(), network=network(clock))
        with pytest.raises(SourceError) as caught:
            source.start(100)
        text = one_line(caught.value, server.url())
    assert "asks to wait 86400 s" in text
    assert "deadline of 400 s" in text
    assert (clock.slept, server.requests) == ([], 1)


def test_a_host_that_never_answered_is_given_up_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        clock = Clock()
        with pytest.raises(SourceError, match="given up after 4 attempts"):
            bsformat.open(f"http://127.0.0.1:{taken.getsockname()[1]}/a", network=network(clock))
    assert len(clock.slept) == 3


def test_attempts_that_bring_much_do_not_count() -> None:
    """A link that breaks every 1.5 MiB gets a large range through, whatever the number of attempts."""
    data = bytes(9 << 20)

    def every(x: faulty.Exchange) -> None:
        x.begin(206, x.good_headers(x.start, x.stop))
        x.body(x.part()[: 3 << 19])
        x.close()

    clock = Clock()
    with serving(FaultyServer(data, every, 1.0, spared=1)) as server:
        source: Any = open_source(server.url(), network=network(clock, attempts=2))
        source.start(1 << 10)
        assert watched(lambda: source.get(1 << 20, 8 << 20)) == data[1 << 20 :]
    assert source.bytes_received == (8 << 20) + (1 << 10)
    assert server.requests == 1 + 6


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pinned", "later", "size", "changed"),
    [
        ({"ETag": '"a"'}, {"ETag": '"a"'}, 9, None),
        ({"ETag": '"a"'}, {"ETag": '"b"'}, 9, 'ETag was "a" and is "b"'),
        ({"ETag": '"a"'}, {}, 9, "not given"),
        ({"ETag": '"a"'}, {"ETag": 'W/"a"'}, 9, 'W/"a"'),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"a"'}, 9, None),
        ({"ETag": 'W/"a"'}, {"ETag": '"a"'}, 9, None),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}, None, 'W/"b"'),
        ({"ETag": '"a"', "Last-Modified": "Mon"}, {"ETag": '"a"', "Last-Modified": "Tue"}, 9, None),
        ({"ETag": 'W/"a"', "Last-Modified": "Mon"}, {"ETag": 'W/"a"', "Last-Modified": "Tue"}, 9, "Tue"),
        ({"Last-Modified": "Mon"}, {"Last-Modified": "Mon"}, 9, None),
        ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}, 9, "modified Mon, and is Tue"),
        ({"Last-Modified": "Mon"}, {}, 9, "without a time"),
        ({}, {"ETag": '"a"'}, 9, None),
        ({}, {}, 8, "size was 9 and is 8"),
        ({}, {}, None, None),
    ],
)
def test_identity(pinned: dict[str, str], later: dict[str, str], size: int | None, changed: str | None) -> None:
    how = Identity.of(pinned, 9).difference(later, size)
    assert (how is None) == (changed is None)
    assert changed is None or changed in (how or "")


# --- redirects and credentials ----------------------------------------------------------------------------------------


def test_a_target_that_expires_is_asked_for_anew(scripted: Scripted) -> None:
    """As a hub does it: one name that redirects to a signed URL, which is good for three requests."""
    scripted.data = DATA
    signed = [0]

    def reply(request: Request) -> Reply:
        if request.path == "/model.bstk":
            signed[0] += 1
            return Reply(302, b"", {"Location": f"/signed?{signed[0]}"})
        uses = sum(r.path == request.path for r in scripted.requests)
        return scripted.good(request) if uses <= 3 else Reply(403)

    scripted.reply = reply
    source = open_source(scripted.url(), network=network(Clock()))
    source.start(1000)
    for i in range(1, 8):
        assert bytes(source.get(1000 * i, 1000)) == DATA[1000 * i : 1000 * i + 1000]
    one, two, three = (["/model.bstk"] + [f"/signed?{n}"] * k for n, k in ((1, 4), (2, 4), (3, 2)))
    assert [r.path for r in scripted.requests] == one + two + three


@pytest.mark.parametrize("granted", [True, False])
def test_access_that_ends_is_named(scripted: Scripted, granted: bool) -> None:
    scripted.data = DATA
    source = open_source(scripted.url(), network=network(Clock()))
    if granted:
        source.start(100)
    scripted.reply = lambda request: Reply(403)
    with pytest.raises(AccessDeniedError) as caught:
        source.get(100, 100) if granted else source.start(100)
    assert ("expired" in one_line(caught.value, scripted.url())) == granted
    assert len(scripted.requests) == 1 + granted


def test_a_fresh_url_may_be_given(scripted: Scripted) -> None:
    scripted.data = DATA
    scripted.reply = lambda r: scripted.good(r) if r.path == f"/m?sig={valid[0]}" else Reply(401)
    valid, asked = [1], []

    def renew(url: str) -> str:
        asked.append(url)
        return f"{scripted.base}/m?sig={valid[0]}"

    source = open_source(f"{scripted.base}/m?sig=1", network=network(Clock(), renew=renew))
    source.start(100)
    valid[0] = 2
    assert bytes(source.get(100, 100)) == DATA[100:200]
    assert asked == [f"{scripted.base}/m?sig=1"]
    scripted.reply = lambda r: Reply(401)
    with pytest.raises(AccessDeniedError):
        source.get(100, 100)
    assert len(asked) == 3  # twice for one read, then it is named


def test_a_fresh_url_that_does_not_come(scripted: Scripted) -> None:
    scripted.data = DATA

    def renew(url: str) -> str:
        raise RuntimeError("the vault is\nclosed")

    source = open_source(scripted.url(), network=network(Clock(), renew=renew))
    source.start(100)
    scripted.reply = lambda r: Reply(403)
    with pytest.raises(AccessDeniedError, match="the vault is closed"):
        source.get(100, 100)


SECRET_OPTIONS: list[dict[str, Any]] = [
    {"headers": {"Authorization": "Bearer s3cr3t", "Cookie": "c=s3cr3t", "X-Plain": "p"}},
    {"headers": {"X-Api-Key": "s3cr3t", "PRIVATE-TOKEN": "s3cr3t", "X-Auth": "s3cr3t", "X-Plain": "p"}},
    {"client_kwargs": {"headers": {"Authorization": "Bearer s3cr3t", "Cookie": "c=s3cr3t"}}},
    {"cookies": {"c": "s3cr3t"}},
]


@pytest.mark.parametrize("options", SECRET_OPTIONS, ids=["headers", "own", "session", "cookies"])
def test_credentials_stay_with_their_host(scripted: Scripted, options: dict[str, Any]) -> None:
    """Another port is another origin already."""
    with serving(FaultyServer(DATA)) as other:
        scripted.reply = lambda request: Reply(302, b"", {"Location": other.url("there")})
        source = open_source(scripted.url(), network=network(Clock()), skip_instance_cache=True, **options)
        source.start(100)
        assert bytes(source.get(100, 100)) == DATA[100:200]
    assert "s3cr3t" in str(scripted.requests[0].headers)
    assert len(scripted.requests) == 1
    assert len(other.seen) == 2
    assert "s3cr3t" not in str(other.seen)
    assert other.seen[1]["if-match"] == '"one"'
    if "headers" in options:
        assert other.seen[0]["x-plain"] == "p"


@pytest.mark.parametrize(
    "location", ["", "ftp://h/a", "file:///etc/passwd", "http://", "http://[::1", "//", "javascript:1", "data:,x"]
)
def test_redirects_that_lead_nowhere(scripted: Scripted, location: str) -> None:
    scripted.reply = lambda request: Reply(302, b"", {"Location": location})
    with pytest.raises(SourceError) as caught:
        open_source(scripted.url(), network=network(Clock())).start(100)
    one_line(caught.value, scripted.url())
    # Without a host it is the same place again.
    assert len(scripted.requests) == (11 if location in ("http://", "//") else 1)


def test_a_chain_of_redirects_has_an_end(scripted: Scripted) -> None:
    scripted.data = DATA

    def hops(limit: int) -> Callable[[Request], Reply]:
        def reply(request: Request) -> Reply:
            at = int(request.path[1:])
            return scripted.good(request) if at == limit else Reply(307, b"", {"Location": f"/{at + 1}"})

        return reply

    scripted.reply = hops(10)
    assert open_source(f"{scripted.base}/0", network=network(Clock())).start(100)[1] == len(DATA)
    assert len(scripted.requests) == 11
    scripted.reply = hops(11)
    with pytest.raises(SourceError, match="more than 10 redirects"):
        open_source(f"{scripted.base}/0", network=network(Clock())).start(100)
    assert len(scripted.requests) == 22


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody signed but itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate: Path) -> Iterator[FaultyServer]:
    """A sound server behind TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # The handshake is made by the thread of the connection, not by the one that accepts.
    with serving(
        FaultyServer(DATA), lambda s: context.wrap_socket(s, server_side=True, do_handshake_on_connect=False)
    ) as server:
        yield server


def test_a_certificate_that_nobody_signed(tls: FaultyServer) -> None:
    clock = Clock()
    with pytest.raises(SourceError) as caught:
        watched(lambda: open_source(tls.url(), network=network(clock, connect_timeout=5)).start(100))
    assert "certificate is not trusted" in one_line(caught.value, tls.url())
    assert (tls.requests, clock.slept) == (0, [])


def test_a_certificate_for_another_name(tls: FaultyServer, certificate: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    url = tls.url().replace("127.0.0.1", "localhost")
    with pytest.raises(SourceError) as caught:
        watched(lambda: open_source(url, network=network(Clock(), connect_timeout=5), ssl=trusted).start(100))
    assert "certificate" in one_line(caught.value, url)
    assert tls.requests == 0


def test_a_trusted_certificate_and_no_way_back_to_http(
    tls: FaultyServer, certificate: Path, scripted: Scripted
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    source = open_source(tls.url(), network=network(Clock(), stall_timeout=5, connect_timeout=5), ssl=trusted)
    source.start(100)
    assert bytes(source.get(100, 100)) == DATA[100:200]
    tls.rate = 1.0
    tls.fault = lambda x: x.begin(302, {"Content-Length": "0", "Location": scripted.url("there")})
    with pytest.raises(SourceError) as caught:
        source.get(100, 100)
    assert "from https to" in one_line(caught.value, tls.url())
    assert scripted.requests == []


def test_a_server_without_tls_where_tls_is_asked_for() -> None:
    with serving(FaultyServer(DATA)) as server:
        url = server.url().replace("http:", "https:")
        with pytest.raises(SourceError) as caught:
            watched(lambda: open_source(url, network=network(Clock(), attempts=3)).start(100))
        one_line(caught.value, url)


# --- S3 ---------------------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # botocore's


def test_an_s3_object_that_is_replaced(s3: S3) -> None:
    source = open_source(s3.put("replaced.bin", DATA), **s3.storage_options)
    source.start(100)
    assert bytes(source.get(100, 100)) == DATA[100:200]
    s3.put("replaced.bin", DATA[::-1])
    with pytest.raises(SourceChangedError) as caught:
        source.get(200, 100)
    one_line(caught.value, f"s3://{s3.bucket}/replaced.bin")


def test_an_s3_object_that_is_truncated(s3: S3) -> None:
    source = open_source(s3.put("truncated.bin", DATA), **s3.storage_options)
    source.start(100)
    s3.put("truncated.bin", DATA[:150])
    with pytest.raises(SourceChangedError):
        source.get(200, 100)


def test_an_s3_version_stays_readable(s3: S3) -> None:
    s3._client.create_bucket(Bucket="versions")
    s3._client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    s3._client.put_object(Bucket="versions", Key="a.bin", Body=DATA)
    source = open_source("s3://versions/a.bin", **s3.storage_options)
    source.start(100)
    s3._client.put_object(Bucket="versions", Key="a.bin", Body=DATA[::-1])
    assert bytes(source.get(100, 1000)) == DATA[100:1100]
    s3._client.delete_object(Bucket="versions", Key="a.bin")
    assert bytes(source.get(2000, 1000)) == DATA[2000:3000]


def test_an_s3_read_is_one_request_each(s3: S3) -> None:
    source: Any = open_source(s3.put("counted.bin", DATA), **s3.storage_options)
    source.start(100)
    source.get(1000, 500)
    source.get(3000, 500)
    assert (source.requests, source.bytes_received) == (3, 1100)


def test_an_s3_folder_and_an_empty_object(s3: S3) -> None:
    with pytest.raises(SourceError):
        bsformat.open(f"s3://{s3.bucket}", **s3.storage_options)
    assert open_source(s3.put("empty.bin", b""), **s3.storage_options).start(100) == (b"", 0)


class FlakyS3:
    """A file system of s3fs whose answers fail first: what `S3Source` uses of it."""

    def __init__(self, failures: list[BaseException | bytes]) -> None:
        self.loop = fsspec.asyn.get_loop()
        self.failures = failures
        self.calls: list[dict[str, Any]] = []
        self.sessions = 0

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    async def set_session(self, refresh: bool) -> None:
        self.sessions += refresh

    async def _call_s3(self, method: str, **kwargs: Any) -> dict[str, Any]:
        assert method == "get_object"
        self.calls.append(kwargs)
        first, last = (int(n) for n in kwargs["Range"].removeprefix("bytes=").split("-"))
        data = DATA[first : last + 1]
        body = data
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, BaseException):
                raise failure
            body = data[: len(failure)]

        class Body:
            left = body

            async def read(self, count: int) -> bytes:
                chunk, self.left = self.left[:count], self.left[count:]
                return chunk

            def close(self) -> None:
                pass

        return {
            "Body": Body(),
            "ETag": '"e"',
            "ContentRange": f"bytes {first}-{first + len(data) - 1}/{len(DATA)}",
            "ResponseMetadata": {"HTTPStatusCode": 206},
        }


def s3_error(code: str, http: int, kind: type[Exception] = OSError, **headers: str) -> Exception:
    """What s3fs raises for an answer of S3."""
    cause = Exception(code)
    cause.response = {  # type: ignore[attr-defined]
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": http, "HTTPHeaders": headers},
    }
    error = kind(code)
    error.__cause__ = cause
    return error


def flaky(failures: list[Any], **changes: Any) -> tuple[FlakyS3, Any, Clock]:
    from bsformat.s3 import S3Source

    clock, fs = Clock(), FlakyS3([])
    source = S3Source(fs, "bucket/a.bin", "s3://bucket/a.bin", network(clock, **changes))
    source.start(100)
    fs.failures = failures
    fs.calls.clear()
    return fs, source, clock


def test_an_s3_read_goes_on_where_it_was_cut() -> None:
    fs, source, clock = flaky([b"x" * 30, ConnectionResetError("reset"), b"x" * 50])
    assert bytes(source.get(100, 100)) == DATA[100:200]
    assert [c["Range"] for c in fs.calls] == ["bytes=100-199", "bytes=130-199", "bytes=130-199", "bytes=180-199"]
    assert {c["IfMatch"] for c in fs.calls} == {'"e"'}
    assert len(clock.slept) == 3
    assert source.bytes_received == 200


def test_s3_says_slow_down() -> None:
    slow = s3_error("SlowDown", 503, OSError, **{"retry-after": "5"})
    _, source, clock = flaky([slow, s3_error("InternalError", 500), TimeoutError()], pause=0)
    assert bytes(source.get(100, 100)) == DATA[100:200]
    assert clock.slept == [5.0, 0.0, 0.0]


def test_s3_credentials_that_expire_are_renewed_once() -> None:
    expired = [s3_error("ExpiredToken", 400, PermissionError) for _ in range(3)]
    fs, source, clock = flaky(expired[:1])
    assert bytes(source.get(100, 100)) == DATA[100:200]
    assert fs.sessions == 1
    fs.failures = expired[1:]
    with pytest.raises(AccessDeniedError) as caught:
        source.get(100, 100)
    one_line(caught.value, "s3://bucket/a.bin")
    assert (fs.sessions, clock.slept) == (2, [])


def test_s3_gives_up() -> None:
    _, source, _ = flaky([s3_error("SlowDown", 503) for _ in range(9)], attempts=3)
    with pytest.raises(SourceError, match="given up after 3 attempts"):
        source.get(100, 100)


# --- read once as a stream --------------------------------------------------------------------------------------------


def rangeless(data: bytes, **changes: Any) -> FaultyServer:
    return FaultyServer(data, faulty.ignores_range, 1.0, **changes)


def test_a_stream_is_read_once(sealed: bytes) -> None:
    with serving(rangeless(sealed)) as server:
        with pytest.raises(RangeError) as caught:
            bsformat.open(server.url(), network=network(Clock()))
        assert "stream" in one_line(caught.value, server.url())
        before = server.requests
        allowed = network(Clock(), allow_stream=True)
        assert bsformat.verify(server.url(), network=allowed).ok
        # One answer that is thrown away shows that ranges are ignored.
        assert server.requests == before + 2


def stream(server: FaultyServer, **changes: Any) -> Any:
    return open_source(server.url(), network=network(Clock(), allow_stream=True, **changes))


def test_a_stream_takes_reads_of_threads_in_any_order() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with serving(rangeless(DATA)) as server:
        source = stream(server)
        assert source.start(1000) == (DATA[:1000], len(DATA))
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i: bytes(source.get(100 * i, 100)), [*range(1000, 10, -7), *range(11, 1000, 3)]))
        source.close()
    assert got == [DATA[100 * i : 100 * i + 100] for i in [*range(1000, 10, -7), *range(11, 1000, 3)]]
    assert server.requests == 2


def test_a_stream_holds_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsformat.forward.KEPT_BYTES", 10_000)
    monkeypatch.setattr("bsformat.forward.WINDOW_BYTES", 5_000)
    with serving(rangeless(DATA * 8)) as server:
        source = stream(server)
        source.start(100)
        inner = source._stream
        most = 0
        for at in range(0, len(DATA) * 8 - 3000, 3000):
            assert bytes(source.get(at, 3000)) == (DATA * 8)[at : at + 3000]
            most = max(most, len(inner._window) + len(inner._kept))
        assert bytes(source.get(9_000, 1000)) == DATA[9_000:10_000]
        with pytest.raises(RangeError) as caught:
            source.get(20_000, 100)
        assert "have passed" in one_line(caught.value, server.url())
        with pytest.raises(SourceError) as caught_end:
            source.get(len(DATA) * 8 - 10, 11)
        assert caught_end.value.reason == "short-read"
    # What is kept, two windows, and two chunks.
    assert most <= 10_000 + 10_000 + (2 << 16)
    assert server.requests == 2


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_that_breaks_is_passed_over_again(rate: float, seed: int) -> None:
    def broken(x: faulty.Exchange) -> None:
        if x.number == 0 or x.draw.random() >= rate:
            faulty.ignores_range(x)
            return
        x.begin(200, {"Content-Length": str(len(DATA)), "ETag": x.etag})
        x.body(DATA[: x.draw.randrange(len(DATA))])
        x.close()

    with serving(FaultyServer(DATA, broken, 1.0, seed)) as server:
        source = stream(server)
        parts = [bytes(source.start(1000)[0])]
        parts += [bytes(source.get(at, 1000)) for at in range(1000, len(DATA), 1000)]
        source.close()
    assert b"".join(parts) == DATA


def test_a_stream_of_another_object_is_refused() -> None:
    def first_half_then_other(x: faulty.Exchange) -> None:
        if x.number == 1:
            x.begin(200, {"Content-Length": str(len(DATA)), "ETag": '"one"'})
            x.body(DATA[:50_000])
            x.close()
        else:
            x.begin(200, {"Content-Length": str(len(DATA)), "ETag": '"one"' if x.number < 2 else '"two"'})
            x.body(DATA)

    with serving(FaultyServer(DATA, first_half_then_other, 1.0)) as server:
        source = stream(server)
        source.start(100)
        with pytest.raises(SourceChangedError, match="ETag"):
            source.get(60_000, 100)


def test_a_stream_that_stalls_ends() -> None:
    def stalls(x: faulty.Exchange) -> None:
        if x.number == 0:
            faulty.ignores_range(x)
            return
        x.begin(200, {"Content-Length": str(len(DATA)), "ETag": '"one"'})
        x.body(DATA[:5000])
        x.server.closing.wait(20)

    with serving(FaultyServer(DATA, stalls, 1.0)) as server:
        source = stream(server, attempts=3, stall_timeout=0.1)
        source.start(100)
        with pytest.raises(SourceError, match="3 attempts"):
            watched(lambda: source.get(6000, 100))
        source.close()
    assert server.requests <= 1 + 3


@pytest.mark.parametrize("how", ["direct", "session", "stream"])
def test_a_body_whose_end_drips_does_not_last_for_ever(how: str) -> None:
    """All bytes are there, and then the last chunk, byte by byte, each soon enough for a timeout of silence."""
    lasted = threading.Event()

    def fault(x: faulty.Exchange) -> None:
        if how == "stream" and x.number == 0:
            faulty.ignores_range(x)
            return
        headers = x.good_headers(0, len(DATA)) | {"Transfer-Encoding": "chunked"}
        if how == "session":  # which takes one of the two
            del headers["Content-Length"]
        x.begin(200 if how == "stream" else 206, headers)
        x.body(b"%x\r\n%s\r\n0;" % (len(DATA), DATA))
        for _ in range(300):
            x.body(b"x")
            if x.server.closing.wait(0.01):
                return
        lasted.set()

    options: dict[str, Any] = {"client_kwargs": {"headers": {"X-Plain": "p"}}} if how == "session" else {}
    with serving(FaultyServer(DATA, fault, 1.0)) as server:
        settings = network(Clock(), allow_stream=how == "stream", stall_timeout=0.2)
        source = open_source(server.url(), network=settings, skip_instance_cache=True, **options)
        data, size = watched(lambda: source.start(len(DATA)))
        assert (bytes(data), size, lasted.is_set()) == (DATA, len(DATA), False)
        source.close()


def test_transient_failures_carry_their_error() -> None:
    failure = Transient(SourceError("what", where="here"), 3.0)
    assert (str(failure), failure.wait, failure.error.where) == ("what", 3.0, "here")


def test_reads_from_threads_end_when_the_object_goes(scripted: Scripted) -> None:
    """Sixteen readers at once, one error each, none left behind."""
    scripted.data = DATA
    source = open_source(scripted.url(), network=network(Clock()))
    source.start(100)
    scripted.reply = lambda r: Reply(404)
    errors: list[BaseException] = []

    def read(i: int) -> None:
        try:
            source.get(1000 * i, 100)
        except SourceError as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 16
