"""From a path or URI to an open container."""

import os
from typing import Any

from .cache import BlockCache
from .cache_place import choose_cache
from .container import Container
from .network import Network, memory_of
from .source import ByteSource, FileSource
from .uri import open_source


def open_container(
    uri: str | os.PathLike[str] | ByteSource,
    *,
    root: str | None = None,
    network: Network | None = None,
    cache: BlockCache | bool = True,
    memory: int | str | None = None,
    **storage_options: Any,
) -> Container:
    """Open a ``.bstk`` file in at most two reads.

    Args:
        uri: a path, ``file://``, ``http(s)://``, ``s3://``, ``hf://``, anything fsspec opens, or a `ByteSource`.
        root: the root digest (64 hexadecimal digits) that the file must have; None takes any.
        network: timeouts, attempts and deadlines of reads over http(s) and s3; None: those of `Network()`.
        cache: where blocks of remote files are kept on this machine; True: the user's cache (`default_cache`) for URIs
            of a network protocol, none for anything else; False: none.
        memory: bytes, or a size as ``64MiB``, of host memory that reading many blocks may take, from a local file too;
            None: that of ``network`` (`Network.memory`).
        storage_options: given to the fsspec file system.

    Raises:
        SourceError: it cannot be read. FormatError: it is no valid file, or not the one of that root. BudgetError:
            ``memory`` is no size above 0.
    """
    most = memory_of(memory, network)
    source = open_source(uri, network=network, **storage_options)
    try:
        # A URI of a hub may mean a file that was downloaded before: that needs no second copy.
        place = source.name if isinstance(source, FileSource) else uri
        return Container(source, root=root, cache=choose_cache(cache, place), memory=most)
    except BaseException:
        source.close()
        raise
