"""Servers on loopback that tests read from: a real nginx, an S3 server, and one that answers whatever a test wants.

`tests/conftest.py` loads this module as a plugin, so the fixtures `nginx`, `s3` and `scripted` are there everywhere.
Helpers are imported as `from tests.servers import …`: pytest makes the folder `tests` importable while it runs.
"""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_CONF = """
daemon off;
{user}
worker_processes 1;
pid {base}/nginx.pid;
error_log {base}/error.log warn;
events {{ worker_connections 512; }}
http {{
  default_type application/octet-stream;
  types {{ text/html html; text/css css; text/javascript js mjs; }}
  log_format record escape=json '{{"method":"$request_method","uri":"$uri","status":$status,"range":"$http_range",'
    '"if_match":"$http_if_match","bytes":$body_bytes_sent,"connection":$connection}}';
  access_log {base}/access.log record;
  client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
  uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port};
    root {base}/root;
    location = /.sync {{ return 204; }}
    location /private/ {{ return 403; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One request as nginx logged it; ``range`` and ``if_match`` are "" where the client sent none.

    ``bytes`` is the length of the body that was sent; requests of one ``connection`` share its number.
    """

    method: str
    uri: str
    status: int
    range: str
    if_match: str
    bytes: int
    connection: int


class Nginx:
    """A real nginx: what lies in ``root`` is served under `url`, and every request is in `log`."""

    def __init__(self, base: Path, port: int) -> None:
        self.base, self.port = base, port
        self.root = base / "root"
        self._skip = self._seen = self._syncs = 0

    def url(self, name: str) -> str:
        """The URL of a file in ``root``."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Store a file and give its URL."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return self.url(name)

    def log(self) -> list[Record]:
        """The requests since `clear`, complete: a request is logged before a later one is answered."""
        with urllib.request.urlopen(self.url(".sync")) as answer:
            assert answer.status == 204
        self._syncs += 1
        deadline = time.monotonic() + 10
        while True:
            text = (self.base / "access.log").read_text()
            records = [Record(**json.loads(line)) for line in text.splitlines()] if text.endswith("\n") else []
            if sum(record.uri == "/.sync" for record in records) == self._syncs:
                break
            assert time.monotonic() < deadline, "nginx does not write its log"
            time.sleep(0.005)
        self._seen = len(records)
        return [record for record in records[self._skip :] if record.uri != "/.sync"]

    def clear(self) -> None:
        """Forget the requests so far."""
        self.log()
        self._skip = self._seen


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start_nginx(base: Path) -> tuple[Nginx, "subprocess.Popen[bytes]"]:
    (base / "root").mkdir()
    for _ in range(5):  # another program may take the port between the probe and the start
        port = _free_port()
        user = "user root;" if os.getuid() == 0 else ""
        (base / "nginx.conf").write_text(_CONF.format(base=base, port=port, user=user))
        process = subprocess.Popen(
            [NGINX or "", "-p", str(base), "-c", str(base / "nginx.conf")], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return Nginx(base, port), process
        process.kill()
        process.wait()
    raise RuntimeError(f"nginx does not start: {(base / 'error.log').read_text()}")


@pytest.fixture(scope="session")
def _nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    if NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    server, process = _start_nginx(tmp_path_factory.mktemp("nginx"))
    yield server
    process.terminate()
    process.wait()


@pytest.fixture
def nginx(_nginx: Nginx) -> Nginx:
    """A real nginx with an empty folder and an empty log."""
    shutil.rmtree(_nginx.root)
    _nginx.root.mkdir()
    _nginx.clear()
    return _nginx


class S3:
    """An S3 server: `put` objects, read them as ``bsformat.open(uri, **s3.storage_options)``.

    The environment names it too (AWS_ENDPOINT_URL and dummy credentials), so that the URI alone is enough, in child
    processes as well.
    """

    bucket = "models"

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.endpoint = endpoint
        self.storage_options: dict[str, Any] = {"endpoint_url": endpoint}
        self._client = boto3.client("s3", endpoint_url=endpoint)
        self._client.create_bucket(Bucket=self.bucket)

    def put(self, name: str, data: bytes) -> str:
        """Store an object and give its URI."""
        self._client.put_object(Bucket=self.bucket, Key=name, Body=data)
        return f"s3://{self.bucket}/{name}"

    def close(self) -> None:
        """Release the connections of the client that stores objects."""
        self._client.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server in this process: moto's, spoken to by s3fs with real signing."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = S3(f"http://{host}:{port}")
        yield store
        store.close()
    server.stop()


@dataclass(slots=True)
class Reply:
    """What `Scripted` answers: a Content-Length of the whole body is sent unless ``headers`` has one.

    ``sent`` cuts the body: so many bytes go out, then the connection is closed.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One GET as the scripted server got it: ``number`` counts from 0, ``start`` and ``stop`` are its range."""

    number: int
    path: str
    headers: dict[str, str]
    start: int
    stop: int


class Scripted:
    """A server that answers as it is told; every request that it got is in ``requests``.

    ``reply`` is called with each `Request`; by default it is `good`, which does what a sound server does.
    """

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.data = b""
        self.etag = '"one"'
        self.requests: list[Request] = []
        self.reply: Callable[[Request], Reply] = self.good
        self.lock = threading.Lock()

    def url(self, name: str = "model.bstk") -> str:
        """Any name: the script decides what it means."""
        return f"{self.base}/{name}"

    def good(self, request: Request, **changes: Any) -> Reply:
        """A right 206 for the request, with some of its headers replaced: ``Content_Range="…"``; None drops one."""
        body = self.data[request.start : request.stop]
        headers = {
            "Content-Range": f"bytes {request.start}-{request.start + len(body) - 1}/{len(self.data)}",
            "ETag": self.etag,
        }
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return Reply(206, body, {name: value for name, value in headers.items() if value is not None})

    def answer(self, path: str, headers: dict[str, str]) -> Reply:
        """Note the request and ask the script."""
        first, _, last = headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        with self.lock:
            request = Request(len(self.requests), path, headers, int(first), int(last) + 1 if last else len(self.data))
            self.requests.append(request)
        return self.reply(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Scripted

    def do_GET(self) -> None:
        reply = self.script.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.send_response(reply.status)
        headers = {"Content-Length": str(len(reply.body))} | reply.headers
        if "Transfer-Encoding" in headers:
            del headers["Content-Length"]
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body if reply.sent is None else reply.body[: reply.sent])
        self.close_connection = reply.sent is not None

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up before the whole answer came is no news."""


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers as it is told."""
    handler = type("Handler", (_Handler,), {})
    server = _QuietServer(("127.0.0.1", 0), handler)
    script = handler.script = Scripted(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()
