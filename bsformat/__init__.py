"""The ``.bstk`` container: open, plan, read, verify and write. Needs no torch.

    container = bsformat.open("model.bstk")        # or an http(s)://, s3://, … URI
    container.root, container.plan("80MiB")

The bytes are specified in ``spec/bstk-v1.md``.
"""

from . import errors
from ._version import __version__
from .block import Block, Span
from .cache import BlockCache, CacheInfo
from .cache_place import default_cache
from .container import Container
from .errors import BstkError
from .fetch import Fetched, fetch
from .flow import Flow, Reading
from .metadata import Attachment, Curve, Form, Metadata, Tensor
from .network import Network
from .opening import open_container as open
from .plan import Plan
from .repack import Repacked, repack
from .signing import Signed, read_signature, sign
from .source import ByteSource, FileSource, FsspecSource, MemorySource
from .units import format_size, parse_size
from .verify import Report, verify
from .volumes import Extent
from .writer import Writer, rewrite

__all__ = [
    "Attachment",
    "Block",
    "BlockCache",
    "BstkError",
    "ByteSource",
    "CacheInfo",
    "Container",
    "Curve",
    "Extent",
    "Fetched",
    "FileSource",
    "Flow",
    "Form",
    "FsspecSource",
    "MemorySource",
    "Metadata",
    "Network",
    "Plan",
    "Reading",
    "Repacked",
    "Report",
    "Signed",
    "Span",
    "Tensor",
    "Writer",
    "__version__",
    "default_cache",
    "errors",
    "fetch",
    "format_size",
    "open",
    "parse_size",
    "read_signature",
    "repack",
    "rewrite",
    "sign",
    "verify",
]
