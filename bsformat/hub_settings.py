"""What huggingface_hub knows of this user: token, downloads, endpoint, proxy. It is imported when asked for."""

import re
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .errors import AccessDeniedError, SourceError
from .hub_file import LOG_IN, HubFile
from .source import ByteSource, FileSource, SiblingSource, beside


def library_settings(file: HubFile) -> Any:
    """The constants of huggingface_hub, which come from the environment."""
    try:
        from huggingface_hub import constants
    except ImportError:
        raise SourceError("hf:// needs huggingface_hub: pip install huggingface_hub", where=file.uri) from None
    return constants


def authorization(token: str | bool | None, library: Any, file: HubFile) -> dict[str, str]:
    """The header with the token that was given, or the one that huggingface_hub has."""
    from huggingface_hub import get_token

    if token is True or (token is None and not library.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        wanted, token = token, None
        try:
            token = get_token()
        except Exception as error:  # it looks into files and secret stores and, in some places, asks a server
            text = " ".join(str(error).split())[:200]
            raise AccessDeniedError(f"no token can be had: {text}; {LOG_IN}", where=file.uri) from None
        if wanted and not token:
            raise AccessDeniedError(f"a token was asked for, and there is none: {LOG_IN}", where=file.uri)
    if not token:
        return {}
    text = str(token).strip()
    if not re.fullmatch(r"[!-~]+", text):  # and it is not shown
        raise AccessDeniedError(f"the token is no text without spaces: {LOG_IN}", where=file.uri)
    return {"Authorization": f"Bearer {text}"}


def usual_proxy(endpoint: str) -> str | None:
    """The proxy of the environment, as huggingface_hub uses it for everything else."""
    parts = urlsplit(endpoint)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def downloaded(file: HubFile) -> str | None:
    """The path of a file that huggingface_hub has downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if not file.path:
        return None
    kind = file.kind.removesuffix("s")
    try:
        path = try_to_load_from_cache(file.repository, file.path, revision=file.revision, repo_type=kind)
    except ValueError as error:  # of names that no repository can have
        raise SourceError(f"names no repository: {' '.join(str(error).split())[:200]}", where=file.uri) from None
    return path if isinstance(path, str) else None


class DownloadedFile(FileSource):
    """A file that huggingface_hub has downloaded. Of its other volumes those that were not are read from the hub.

    Args:
        file: which it is, at a commit. hub: the same, as the hub has it; closed with this one.
    """

    def __init__(self, path: str, file: HubFile, hub: "HubObject") -> None:
        self._file, self._hub = file, hub
        super().__init__(path)

    def sibling(self, name: str) -> ByteSource:
        """See `bsformat.source.SiblingSource`."""
        path = downloaded(self._file.at(path=beside(self._file.path, name)))
        return self._hub.sibling(name) if path is None else FileSource(path)

    def close(self) -> None:
        """Close the file, and connections to the hub."""
        super().close()
        self._hub.close()


class HubObject(ByteSource, SiblingSource, Protocol):
    """An object that has others beside it."""
