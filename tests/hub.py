"""A model hub on loopback: what huggingface_hub and bsformat ask one for, and the host that it sends them to for bytes.

The fixture `hub` gives a `Hub` and points huggingface_hub of this process, and of child processes, to it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_sesame"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: ``place`` is ``hub`` or ``store``, ``path`` has its query."""

    place: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class Repository:
    """``commits`` by their names, each with its files; ``branches`` lead to commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files on a branch, and give the name of the commit."""
        name = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[name] = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        self.branches[branch] = name
        return name


class Hub:
    """A hub, and the store of its large files on another port.

    Attributes:
        repositories: by ``owner/name``, datasets as ``datasets/owner/name``.
        requests: all that came, in their order.
        large: files of so many bytes lie in the store; smaller ones the hub sends itself.
        ranges: whether the hub serves ranges of those.
        good: the signature that the store accepts; changing it lets all links expire.
        uses: how often a link may be used; None: as often as one likes.
        trouble: statuses that the hub, or the store, answers first, each once.
        wrong: headers that replace those of the hub's links.
        page: files on a page of a list; pages: the URL of the pages after the first, the usual one if it is "".
    """

    def __init__(self, hub_port: int, store_port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{hub_port}"
        self.store = f"http://localhost:{store_port}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Asked] = []
        self.large, self.ranges, self.good, self.uses = 4096, True, 1, None
        self.trouble: dict[str, list[int]] = {"hub": [], "store": []}
        self.wrong: dict[str, str] = {}
        self.page, self.pages = 1000, ""
        self.lock = threading.Lock()
        self.blobs: dict[str, bytes] = {}
        self._used = 0

    def repository(self, name: str = "someone/tiny", **settings: bool) -> Repository:
        """Make one."""
        self.repositories[name] = Repository(**settings)
        return self.repositories[name]

    def asked(self, place: str) -> list[Asked]:
        """The requests to one of the two."""
        return [request for request in self.requests if request.place == place]

    def link(self, data: bytes) -> str:
        """A signed link to bytes in the store."""
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return f"{self.store}/blobs/{name}?signature={self.good}"

    def may_use(self) -> bool:
        """Count a use of a link; one too many lets it expire."""
        if self.uses is not None and self._used >= self.uses:
            self._used = 0
            self.good += 1
            return False
        self._used += 1
        return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    place = "hub"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, text: str = "") -> None:
        self.reply(status, b"no", **({"X_Error_Code": code} if code else {}), X_Error_Message=text or code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.requests.append(Asked(self.place, self.command, self.path, headers))
            trouble = self.hub.trouble[self.place]
            status = trouble.pop(0) if trouble else None
        if status is not None:
            self.reply(status)
        else:
            self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        api = path.startswith("/api/")
        parts = path.removeprefix("/api").removeprefix("/models").strip("/").split("/")
        kind = parts.pop(0) + "/" if parts[0] == "datasets" else ""
        name, rest = kind + "/".join(parts[:2]), [unquote(part) for part in parts[2:]]
        sent = self.headers.get("Authorization", "")
        repository = self.hub.repositories.get(name)
        if sent and sent != f"Bearer {TOKEN}":
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not sent):
            self.refuse(404 if sent else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and not api:
            self.refuse(403, "GatedRepo", "Access to it is restricted")
        elif api:
            self.describe(repository, name, rest)
        elif rest[0] == "resolve" and (files := self.files(repository, rest[1])) is not None:
            commit, known = files
            self.send(commit, known.get("/".join(rest[2:])))

    def files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, repository.commits[commit]

    def describe(self, repository: Repository, name: str, rest: list[str]) -> None:
        what, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        if (found := self.files(repository, revision)) is None:
            return
        commit, files = found
        if what == "revision":
            about = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in sorted(files)]}
            self.reply(200, json.dumps(about).encode())
            return
        rows = [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in sorted(files.items())]
        if what == "tree":
            if "/".join(rest[2:]):
                self.refuse(404, "EntryNotFound")
                return
            folders = {p.split("/")[0] for p in files if "/" in p}
            rows = [row for row in rows if "/" not in row["path"]]
            rows += [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in sorted(folders)]
            start = int(urlsplit(self.path).query.partition("cursor=")[2] or 0)
            page, more = rows[start : start + self.hub.page], start + self.hub.page < len(rows)
            pages = self.hub.pages or self.hub.endpoint + urlsplit(self.path).path
            following = f"{pages}?cursor={start + self.hub.page}"
            self.reply(200, json.dumps(page).encode(), **({"Link": f'<{following}>; rel="next"'} if more else {}))
        else:
            self.reply(200, json.dumps(rows).encode())

    def send(self, commit: str, data: bytes | None) -> None:
        if data is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif self.headers.get("If-Match") or self.headers.get("If-Unmodified-Since"):
            self.reply(412)  # the ETag of a link is not that of what it leads to
        elif len(data) >= self.hub.large:
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            headers = {"X-Repo-Commit": commit, "ETag": '"a-link"', "Location": self.hub.link(data), **linked}
            self.reply(302, b"over there", **{**headers, **self.hub.wrong})
        else:
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.part(data, self.hub.ranges, **{"X-Repo-Commit": commit, "ETag": etag})

    def part(self, data: bytes, ranges: bool, **headers: str) -> None:
        """The range that is asked for, or all."""
        asked = self.headers.get("Range", "")
        if asked and ranges and not data:
            self.reply(416, **{"Content-Range": "bytes */0", **headers})
            return
        if not asked or not ranges:
            self.reply(200, data, **headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        body = data[int(first) : int(last or len(data)) + 1]
        place = f"bytes {first}-{int(first) + len(body) - 1}/{len(data)}"
        self.reply(206, body, **{"Content-Range": place, **headers})


class _Store(_Handler):
    place = "store"

    def answer(self) -> None:
        parts = urlsplit(self.path)
        if parts.query != f"signature={self.hub.good}" or not self.hub.may_use():
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        data = self.hub.blobs[parts.path.rpartition("/")[2]]
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if self.headers.get("If-Match", etag) != etag:
            self.reply(412)
        else:
            self.part(data, True, ETag=etag)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that closes its connection is no failure."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub without repositories; nobody is logged in, and nothing was downloaded."""
    from huggingface_hub import constants

    handlers = [type("Handler", (kind,), {}) for kind in (_Handler, _Store)]
    servers = [_Server(("127.0.0.1", 0), kind) for kind in handlers]
    hub = Hub(*(server.server_address[1] for server in servers))
    threads = []
    for server, kind in zip(servers, handlers, strict=True):
        kind.hub = hub  # type: ignore[attr-defined]
        threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}))
        threads[-1].start()
    home = tmp_path_factory.mktemp("hub")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(home))
    # huggingface_hub reads the environment when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    yield hub
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


def downloaded(folder: Path, name: str, commit: str, files: dict[str, bytes]) -> Path:
    """Put files where huggingface_hub keeps what it downloaded, in ``folder``, and give their folder."""
    place = folder / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for path, data in files.items():
        (snapshot / path).parent.mkdir(exist_ok=True)
        (snapshot / path).write_bytes(data)
    return snapshot
