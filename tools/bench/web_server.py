"""An nginx on loopback, or on any address, for measuring what reads from it."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_CONF = """
daemon off;
user root;
worker_processes {workers};
pid {base}/nginx.pid;
error_log {base}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  default_type application/octet-stream;
  client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
  uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
  keepalive_requests 100000;
  server {{ listen {address}:{port}; root {folder}; }}
}}
"""


@contextmanager
def serving(
    folder: Path, *, address: str = "127.0.0.1", port: int = 0, workers: int = 1, inside: Sequence[str] = ()
) -> Iterator[str]:
    """Serve a folder; gives the URL of it, without a slash at its end.

    Args:
        port: 0 takes a free one.
        workers: processes of nginx.
        inside: a command that runs another one somewhere else, as in a network namespace.

    Raises:
        SystemExit: there is no nginx, or it does not start.
    """
    if NGINX is None:
        raise SystemExit("nginx is not installed (apt-get install nginx-light)")
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as base:
        conf = Path(base) / "nginx.conf"
        conf.write_text(_CONF.format(base=base, address=address, port=port, folder=folder.resolve(), workers=workers))
        process = subprocess.Popen([*inside, NGINX, "-p", base, "-c", str(conf)], stderr=subprocess.DEVNULL)
        try:
            _wait(address, port, process, inside)
            yield f"http://{address}:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(address: str, port: int, process: "subprocess.Popen[bytes]", inside: Sequence[str]) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        if inside:  # its address means nothing here
            time.sleep(0.5)
            return
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit("nginx does not start")
