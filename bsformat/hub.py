"""Files of a Hugging Face hub, ``hf://owner/name[@revision]/file``: ranges of them, of one commit.

The hub says which commit a revision is and where the bytes are, as a rule with a signed URL of another host. That host
is asked directly from then on, until it refuses: then the hub is asked anew, for the same commit. A token goes to the
hub alone. Every answer is checked as any other over http (`bsformat.http`).

Endpoint, token, offline mode and the folder of downloaded files are those of huggingface_hub, and imported from it when
a URI asks for them.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import fsspec
import yarl

from .answers import Answer, Headers, LinkError
from .errors import SourceChangedError, SourceError
from .forward import KEPT_BYTES
from .http import HttpSource
from .http_failures import Refused, failure_of
from .hub_file import HubFile, is_commit
from .hub_settings import DownloadedFile, authorization, downloaded, library_settings, usual_proxy
from .network import TRANSIENT, Network, Patience, Transient, retry_after, without_secrets
from .only_file import the_only
from .redirects import MAX_REDIRECTS, REDIRECTS, Requester
from .source import ByteSource, FileSource, beside

_Result = TypeVar("_Result")
#: Bytes of one page of a list of files, and pages.
_PAGE: Final = 4 << 20
_PAGES: Final = 20
#: Conditions on an object: the hub answers for a link, whose ETag is not that of what it leads to.
_CONDITIONS: Final = frozenset({"If-Match", "If-Unmodified-Since"})
_NEXT: Final = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')


def open_hub(uri: str, network: Network | None, options: Mapping[str, Any]) -> ByteSource:
    """A source for a file of a hub, pinned to the commit that its revision is now.

    A URI without a file means the only ``.bstk`` at the top of the repository. A file that huggingface_hub has
    downloaded, of that commit, is read where it is; volumes of it that were not come from the hub.

    Args:
        options: ``token`` (a text, or False for none), ``endpoint``, and those of fsspec's HTTP file system.

    Raises:
        SourceError: no such repository, revision or file; no access; no answer; or huggingface_hub is offline.
    """
    file, rest = HubFile.parse(uri), dict(options)
    library = library_settings(file)
    endpoint = str(rest.pop("endpoint", None) or os.environ.get("HF_ENDPOINT") or library.ENDPOINT).rstrip("/")
    if library.HF_HUB_OFFLINE:
        if (local := downloaded(file)) is None:
            raise SourceError(
                "huggingface_hub is offline (HF_HUB_OFFLINE), and has not downloaded this file: go online, or name a "
                "local file",
                where=file.uri,
            )
        return FileSource(local)
    sent = authorization(rest.pop("token", None), library, file)
    headers = {**dict(rest.pop("headers", {})), **sent}
    if not {"proxy", "client_kwargs"} & set(rest) and (proxy := usual_proxy(endpoint)):
        rest["proxy"] = proxy
    fs = fsspec.filesystem("http", headers=headers, skip_instance_cache=True, **rest)
    hub = _Hub(fs, endpoint, network or Network(), "Authorization" in headers)
    if not file.path:
        file = file.at(path=hub.only_file(file))
    source = hub.find(file)
    local = downloaded(source.file)
    return source if local is None else DownloadedFile(local, source.file, source)


class _HubRequester(Requester):
    """Sends requests for one file to a hub, and to where it leads.

    Attributes:
        commit: that the hub answers for; "" if it never said. size: bytes of the file, if it said so.
    """

    def __init__(self, fs: Any, url: str, file: HubFile, network: Network) -> None:
        super().__init__(fs, url, file.uri, network)
        self.commit = file.revision if is_commit(file.revision) else ""
        self.size: int | None = None
        self._linked = ""
        self._leads_away = False  # unless the hub was, or is to be, asked where
        self._asking = threading.Lock()

    def is_hub(self, url: yarl.URL) -> bool:
        """Whether a URL is the hub's, and not of where it leads to."""
        return bool(url.origin() == self._url.origin())

    def get(self, headers: Mapping[str, str], seconds: float) -> tuple[Answer, yarl.URL]:
        """See `Requester.get`. Of several threads whose link has expired one asks the hub; the others wait for it."""
        if self._leads_away and self._target is None and self._asking.acquire(timeout=max(0.0, seconds)):
            try:
                if self._target is None:
                    answer, there = self.ask(headers, seconds)
                    if there is None:
                        return answer, self._url
                    self._target = there
            finally:
                self._asking.release()
        return super().get(headers, seconds)

    def ask(self, headers: Mapping[str, str], seconds: float) -> tuple[Answer, yarl.URL | None]:
        """The hub's own answer, its body unread; and where it leads, if that is another host, which is not asked.

        Raises:
            LinkError, SourceError: as `Requester.get`.
        """
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._send(url, headers, seconds)
            if answer.status not in REDIRECTS:
                return answer, None
            answer.close()
            url = self._next(url, answer.headers.get("Location", ""), answer.status)
            if not self.is_hub(url):
                return answer, url
        raise SourceError(f"more than {MAX_REDIRECTS} redirects within the hub", where=self._name)

    def leads_away(self) -> None:
        """The hub is to be asked where the file is before its bytes are."""
        self._leads_away = True

    def pin(self, file: HubFile, url: str, there: yarl.URL | None) -> None:
        """Ask for the file of one commit from now on, and where it is first."""
        self.replace(url)
        self._name, self._target, self._leads_away = file.uri, there, there is not None

    def _send(self, url: yarl.URL, headers: Mapping[str, str], seconds: float) -> Answer:
        if not self.is_hub(url):
            return super()._send(url, headers, seconds)
        answer = super()._send(url, {k: v for k, v in headers.items() if k not in _CONDITIONS}, seconds)
        try:
            self._note(answer.headers)
        except BaseException:
            answer.close()
            raise
        return answer

    def _note(self, headers: Headers) -> None:
        """Hold the hub to what it said before: a commit does not change."""
        commit, size = headers.get("X-Repo-Commit", ""), headers.get("X-Linked-Size", "")
        linked = headers.get("X-Linked-ETag", "")
        for before, now, what in ((self.commit, commit, "commit"), (self._linked, linked, "ETag")):
            if before and now and before != now:
                raise SourceChangedError(
                    f"the hub answered for {what} {before} before and for {now} now; open it again", where=self._name
                )
        self.commit = commit if is_commit(commit) else self.commit
        self._linked = linked or self._linked
        self.size = int(size) if re.fullmatch(r"[0-9]{1,18}", size) else self.size


class HubSource(HttpSource):
    """A file of a hub, of one commit.

    Attributes:
        file: which, at that commit; `name` is its URI.
    """

    def __init__(self, fs: Any, file: HubFile, endpoint: str, network: Network, requester: _HubRequester) -> None:
        super().__init__(fs, file.uri, network, requester)
        self.file, self._endpoint, self._links = file, endpoint, requester
        self._token = "Authorization" in fs.kwargs["headers"]

    def sibling(self, name: str) -> "HubSource":
        """See `bsformat.source.SiblingSource`: of the same commit. The hub is asked where it is when it is read."""
        file = self.file.at(path=beside(self.file.path, name))
        requester = _HubRequester(self._fs, file.resolve_url(self._endpoint), file, self.network)
        requester.leads_away()
        requester.share(self._links)
        other = HubSource(self._fs, file, self._endpoint, self.network, requester)
        other.signals = self.signals
        return other

    def _check_status(self, response: Answer, url: yarl.URL, offset: int) -> None:
        status, at_hub = response.status, self._links.is_hub(url)
        if at_hub and 400 <= status < 500 and status != 416 and status not in TRANSIENT:
            later = self._identity is not None
            error = self.file.refused(status, response.headers, self._endpoint, token=self._token, later=later)
            raise Refused(error, url)
        if not at_hub and status == 400:  # of a signature that is no longer good, from some stores
            raise Refused(SourceError("the host that the hub leads to answers HTTP 400", where=self.name), url)
        super()._check_status(response, url, offset)

    def _renewed(self, refused: Refused) -> bool:
        # A link may have expired before its first use: the hub is asked anew then too.
        return self._links.forget(refused.url) or super()._renewed(refused)

    def _check_headers(self, headers: Headers, start: int, stop: int) -> int:
        got = super()._check_headers(headers, start, stop)
        said, size = self._links.size, self._identity.size if self._identity else 0
        if said is not None and said != size:
            raise SourceChangedError(
                f"the hub says that it has {said} bytes, and where it leads to there are {size}", where=self.name
            )
        return got


class _Hub:
    """What is asked of a hub before bytes are read."""

    def __init__(self, fs: Any, endpoint: str, network: Network, token: bool) -> None:
        self._fs, self._endpoint, self._network, self._token = fs, endpoint, network, token

    def find(self, file: HubFile) -> HubSource:
        """The file at the commit that its revision is now: one request.

        Raises:
            SourceError: see `open_hub`.
        """
        requester = _HubRequester(self._fs, file.resolve_url(self._endpoint), file, self._network)
        network = self._network

        def ask(seconds: float) -> HubSource:
            nonlocal network
            answer, there = requester.ask({"Range": "bytes=0-0", "Accept-Encoding": "identity"}, seconds)
            try:
                if there is None:
                    self._check(answer, file, (200, 206, 416))
                    length = answer.headers.get("Content-Length", "")
                    if answer.status == 200 and length.isdecimal() and int(length) <= KEPT_BYTES:
                        network = replace(network, allow_stream=True)  # all of it is kept, in whatever order it is read
            finally:
                answer.close()
            pinned = file.at(revision=requester.commit)
            requester.pin(pinned, pinned.resolve_url(self._endpoint), there)
            return HubSource(self._fs, pinned, self._endpoint, network, requester)

        return self._patiently(file, ask)

    def only_file(self, file: HubFile) -> str:
        """The path of the only ``.bstk`` at the top of a repository.

        Raises:
            NotFoundError: there is none, or there are several. SourceError: see `open_hub`.
        """
        names: list[str] = []
        url = file.tree_url(self._endpoint)
        for _ in range(_PAGES):
            requester = _HubRequester(self._fs, url, file, self._network)

            def ask(seconds: float, requester: _HubRequester = requester) -> tuple[Any, str]:
                answer, there = requester.ask({"Accept-Encoding": "identity"}, seconds)
                try:
                    if there is not None:
                        raise self._nonsense(file, "a redirect to another host")
                    self._check(answer, file, (200,))
                    return self._page(answer, file, seconds), answer.headers.get("Link", "")
                finally:
                    answer.close()

            page, link = self._patiently(file, ask)
            names += page
            if (match := _NEXT.search(link)) is None:
                return the_only(names, file.uri, "repository")
            url = self._next_page(requester, url, match[1], file)
        raise SourceError(f"lists more than {_PAGES} pages of files: name the .bstk", where=file.uri)

    def _page(self, answer: Answer, file: HubFile, seconds: float) -> list[str]:
        body = bytearray(_PAGE)
        count = answer.receive(memoryview(body), lambda n: None, seconds)
        if count == len(body):
            raise self._nonsense(file, f"more than {_PAGE} bytes")
        try:
            rows = json.loads(body[:count])
            files = [row["path"] for row in rows if row["type"] == "file"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._nonsense(file, "no such list") from None
        return [path for path in files if isinstance(path, str) and path.endswith(".bstk") and "/" not in path]

    def _next_page(self, requester: _HubRequester, url: str, link: str, file: HubFile) -> str:
        try:
            there = yarl.URL(url, encoded=True).join(yarl.URL(link, encoded=True))
            if requester.is_hub(there):
                return str(there)
        except ValueError:
            raise self._nonsense(file, "a next page that is no URL") from None
        raise self._nonsense(file, "a next page on another host")

    def _nonsense(self, file: HubFile, what: str) -> SourceError:
        return SourceError(f"the hub was asked for a list of files and answers with {what}", where=file.uri)

    def _check(self, answer: Answer, file: HubFile, good: tuple[int, ...]) -> None:
        if answer.status in good:
            return
        if answer.status in TRANSIENT:
            error = SourceError(f"cannot be read: the hub answers HTTP {answer.status}", where=file.uri)
            raise Transient(error, retry_after(answer.headers), pressed=True)
        raise file.refused(answer.status, answer.headers, self._endpoint, token=self._token)

    def _patiently(self, file: HubFile, ask: Callable[[float], _Result]) -> _Result:
        """Call ``ask``, with the seconds that an answer may take, until it does not fail in a way that may pass."""
        network, patience = self._network, Patience(self._network, 1)
        while True:
            try:
                return ask(min(network.connect_timeout + network.stall_timeout, max(patience.left, 0.0)))
            except Transient as error:
                failure = error
            except LinkError as error:
                failure = failure_of(error, network.stall_timeout, file.uri, 0)
                failure.error.offset = None
            except (OSError, ValueError) as error:
                text = without_secrets(f"{type(error).__name__}: {error}")
                raise SourceError(f"cannot be read: {text}", where=file.uri) from None
            fsspec.asyn.sync(self._fs.loop, patience.wait, failure, 0, answered=False)
