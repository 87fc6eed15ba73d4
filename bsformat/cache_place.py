"""Where the user's cache is, and which URIs it is for."""

import os
from typing import Final

from .cache import BlockCache
from .errors import BstkError
from .units import parse_size

#: Names the folder of the cache, or is ``off``; and the size that it may have.
PLACE_VARIABLE: Final = "BSTK_CACHE"
SIZE_VARIABLE: Final = "BSTK_CACHE_SIZE"
#: URIs of these protocols are read over a network. Chained URIs are not named: who writes one has a cache in it.
_REMOTE: Final = frozenset(
    {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "github", "gitlab"}
    | {"ftp", "sftp", "ssh", "webdav", "webhdfs", "hdfs", "dbfs"}
)


def default_cache() -> BlockCache | None:
    """The cache of this user: in ``$BSTK_CACHE``, else ``$XDG_CACHE_HOME/bitstack``, else ``~/.cache/bitstack``.

    ``BSTK_CACHE=off`` means none; ``BSTK_CACHE_SIZE`` is its size limit.

    Raises:
        BudgetError: ``BSTK_CACHE_SIZE`` is no size.
    """
    place = os.environ.get(PLACE_VARIABLE, "").strip()
    if place.lower() in ("off", "0", "no", "none"):
        return None
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    try:
        limit = parse_size(text) if text else None
    except BstkError as error:
        raise error.at(SIZE_VARIABLE) from None
    if limit == 0:
        return None
    if not place:
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = home if os.path.isabs(home) else os.path.join(os.path.expanduser("~"), ".cache")
        place = os.path.join(base, "bitstack")
    return BlockCache(os.path.abspath(os.path.expanduser(place)), limit)


def is_remote(uri: object) -> bool:
    """Whether a URI names something that is read over a network, so that keeping a copy saves something."""
    text = os.fspath(uri) if isinstance(uri, (str, os.PathLike)) else ""
    scheme, separator, _ = str(text).partition("://")
    return bool(separator) and "::" not in scheme and scheme.lower() in _REMOTE


def choose_cache(cache: BlockCache | bool, uri: object) -> BlockCache | None:
    """The cache that goes with what a caller asked for: True is the user's, for what is read over a network.

    Raises:
        BudgetError: as `default_cache`.
    """
    if isinstance(cache, BlockCache):
        return cache
    return default_cache() if cache and is_remote(uri) else None
