"""Which file of which repository of a Hugging Face hub a URI names, and what the hub means when it refuses it.

    hf://[models/|datasets/|spaces/]OWNER/NAME[@REVISION][/FILE]

A revision is a branch, a tag or a commit; a ``/`` in it is written ``%2F``, unless it is one of the hub's own
references as ``refs/pr/1``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, unquote

from .errors import AccessDeniedError, NotFoundError, SourceError

SCHEME: Final = "hf://"
#: The revision where none is named.
MAIN: Final = "main"
#: How to come by a token.
LOG_IN: Final = "set HF_TOKEN or run hf auth login"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_KINDS: Final = ("models", "datasets", "spaces")
_NAME: Final = re.compile(r"\w[\w.-]*", re.ASCII)
#: References of the hub that have slashes of their own.
_REFERENCE: Final = re.compile(r"refs/(?:convert/[\w.-]+|pr/[0-9]+)(?=/|$)", re.ASCII)


def is_commit(text: str) -> bool:
    """Whether it is the whole name of a commit."""
    return _COMMIT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, at a revision.

    Attributes:
        kind: ``models``, ``datasets`` or ``spaces``.
        repository: ``owner/name``.
        revision: a branch, a tag or a commit.
        path: of the file within the repository; "" where the URI names none.
    """

    kind: str
    repository: str
    revision: str = MAIN
    path: str = ""

    @classmethod
    def parse(cls, uri: str) -> "HubFile":
        """From a URI.

        Raises:
            SourceError: it names no repository, or no file that can be in one.
        """
        rest = uri.removeprefix(SCHEME)
        kind = "models"
        if rest.partition("/")[0] in _KINDS:
            kind, _, rest = rest.partition("/")
        owner, _, rest = rest.partition("/")
        name, at, rest = _split(rest)
        revision, path = _revision(rest) if at else (MAIN, rest)
        if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name) or not revision:
            raise SourceError("names no repository: expected hf://owner/name[@revision]/file.bstk", where=uri)
        path = path.removesuffix("/")
        if path and not all(part not in ("", ".", "..") for part in path.split("/")):
            raise SourceError("names no file of a repository: its path has empty parts, or dots", where=uri)
        return cls(kind, f"{owner}/{name}", revision, path)

    def at(self, *, revision: str | None = None, path: str | None = None) -> "HubFile":
        """The same with another revision, or another path."""
        return replace(self, revision=revision or self.revision, path=self.path if path is None else path)

    @property
    def uri(self) -> str:
        """``hf://…``, without a revision if it is the usual one."""
        start = SCHEME + self._place
        if self.revision != MAIN:
            start += "@" + (self.revision if _REFERENCE.fullmatch(self.revision) else quote(self.revision, safe=""))
        return f"{start}/{self.path}" if self.path else start

    @property
    def _place(self) -> str:
        return self.repository if self.kind == "models" else f"{self.kind}/{self.repository}"

    def page(self, endpoint: str) -> str:
        """The repository's page for people."""
        return f"{endpoint}/{self._place}"

    def resolve_url(self, endpoint: str) -> str:
        """Where the hub gives the bytes of the file, or says where they are."""
        return f"{endpoint}/{self._place}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"

    def tree_url(self, endpoint: str) -> str:
        """Where the hub lists what lies at the top of the repository."""
        return f"{endpoint}/api/{self.kind}/{self.repository}/tree/{quote(self.revision, safe='')}"

    def refused(
        self, status: int, headers: Mapping[str, str], endpoint: str, *, token: bool, later: bool = False
    ) -> SourceError:
        """What an answer of the hub means that is neither bytes nor a place of bytes.

        Args:
            token: whether one was sent. later: whether the file was found before.
        """
        code, where = headers.get("X-Error-Code", ""), self.uri
        if later:
            error = NotFoundError if status in (404, 410) else AccessDeniedError
            return error(f"the hub gave it before and refuses it now (HTTP {status}): open it again", where=where)
        if code == "RevisionNotFound":
            return NotFoundError(f"the repository has no revision {self.revision!r}", where=where)
        if code == "EntryNotFound":
            return NotFoundError(f"no such file in the repository at revision {self.revision!r}", where=where)
        if code == "GatedRepo":
            how = "with the account of your token" if token else f"and {LOG_IN}"
            return AccessDeniedError(f"a gated repository: ask for access on {self.page(endpoint)} {how}", where=where)
        if code == "RepoNotFound" or status in (401, 403, 404, 410):
            # Of a private repository a hub says the same as of one that is not there.
            if not token:
                return AccessDeniedError(
                    f"no such repository or file, or a private one (HTTP {status}): check the name; for a private one "
                    f"{LOG_IN}",
                    where=where,
                )
            if status == 401 and not code:
                return AccessDeniedError(f"the token is not accepted (HTTP 401): {LOG_IN} again", where=where)
            if status == 404:
                return NotFoundError(
                    "no such repository or file, or one that the token gives no access to (HTTP 404)", where=where
                )
            return AccessDeniedError(
                f"no such repository, or one that the token gives no access to (HTTP {status})", where=where
            )
        said = headers.get("X-Error-Message", "")[:200]
        return SourceError(f"the hub answers HTTP {status}{f' ({said})' if said else ''}", where=where)


def _split(text: str) -> tuple[str, str, str]:
    """The name of a repository, ``@`` or what else follows it, and the rest."""
    match = re.search(r"[@/]", text)
    if match is None:
        return text, "", ""
    return text[: match.start()], "@" if match[0] == "@" else "", text[match.end() :]


def _revision(text: str) -> tuple[str, str]:
    if match := _REFERENCE.match(text):
        return match[0], text[match.end() + 1 :]
    revision, _, path = text.partition("/")
    return unquote(revision), path
