"""What a URI or a path names: a source of bytes for it."""

import os
from typing import Any
from urllib.parse import urlsplit

import fsspec

from .errors import BstkError, SourceError
from .network import Network, without_secrets
from .only_file import the_only
from .source import ByteSource, FileSource, FsspecSource, translated

#: Connections to one S3 endpoint, unless the storage options say otherwise.
S3_CONNECTIONS = 64


def open_source(
    uri: str | os.PathLike[str] | ByteSource, *, network: Network | None = None, **storage_options: Any
) -> ByteSource:
    """A source for a path or URI.

    Args:
        uri: a local path, ``file://``, ``http(s)://``, ``s3://``, ``hf://``, or anything else that fsspec opens.
            A directory, or a repository of a hub without the name of a file, means the only ``.bstk`` in it.
            A `ByteSource` is returned as it is.
        network: timeouts, attempts and deadlines of reads over http(s) and s3; None: those of `Network()`.
        storage_options: given to the fsspec file system.

    Raises:
        SourceError: no such file, no access, or no file system for that protocol.
    """
    if isinstance(uri, ByteSource):
        return uri
    name = os.fspath(uri)
    try:
        return _opened(name, network, storage_options)
    except BstkError:
        raise
    except Exception as error:  # of a URI that is none, or of a file system, which may raise anything
        kind = "" if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: "
        raise SourceError(
            f"cannot be opened: {kind}{without_secrets(str(error))}", where=without_secrets(name)
        ) from None


def _opened(name: str, network: Network | None, storage_options: dict[str, Any]) -> ByteSource:
    scheme = urlsplit(name).scheme if "://" in name or "::" in name else ""
    if scheme in ("", "file", "local"):
        path = fsspec.utils.stringify_path(name).split("://", 1)[-1] if scheme else name
        return FileSource(_within_folder(path) if os.path.isdir(path) else path)
    if scheme == "hf" and not name.startswith("hf://buckets/"):
        from .hub import open_hub

        return open_hub(name, network, storage_options)
    if scheme in ("http", "https", "s3", "s3a") and (network or Network()).backend == "obstore":
        from .obstore_source import open_store

        return open_store(name, network or Network(), storage_options)
    if scheme in ("s3", "s3a"):
        # botocore keeps 10 connections by itself; a read that waits for one would look like a server that stalls.
        given = storage_options.get("config_kwargs") or {}
        storage_options["config_kwargs"] = {"max_pool_connections": S3_CONNECTIONS, **given}
    fs, path = fsspec.core.url_to_fs(name, **storage_options)
    if scheme in ("http", "https"):
        from .http import HttpSource

        return HttpSource(fs, name, network)
    if scheme in ("s3", "s3a"):
        from .s3 import S3Source

        return S3Source(fs, path, without_secrets(name), network)
    return FsspecSource(fs, path, without_secrets(name))


def _within_folder(folder: str) -> str:
    with translated(folder):
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".bstk") and entry.is_file()]
    return os.path.join(folder, the_only(names, folder, "directory"))
