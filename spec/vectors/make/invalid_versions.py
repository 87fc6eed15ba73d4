"""Invalid vectors of §3.1: what a reader of 1.0 refuses in a file that says that it is of 1.1."""

from .bits import Spliced
from .file import File
from .invalid_head import head
from .invalid_metadata import put
from .samples import NORM, sample
from .vector import Invalid, Refusals


def newer() -> File:
    """The sample, of version 1.1."""
    file = sample()
    file.head["minor"] = 1
    return file


def versions() -> list[Invalid]:
    """One vector for each thing that a minor version may bring, or may not."""
    r = Refusals(newer)
    r.each("feature-unsupported", "3.1", "minor-1", must_bit_63=head(must=1 << 63))
    r.each("codec-unknown", "3.1", "minor-1", codec=put("forms", 1, "codec", to="x-codec"))
    r.each("kind-unknown", "3.1", "minor-1", kind=put("forms", 2, "kind", to="x-kind"))
    r.each(
        "metadata-key", "3.1", "minor-1", key=put("x-key", to=1), key_of_a_tensor=put("tensors", NORM, "x-key", to=1)
    )
    r.each("metadata-value", "3.1", "minor-1", element_type=put("tensors", NORM, "dtype", to="x-F4"))
    r.each("metadata-value", "3.1", "minor-1", factors=put("forms", 2, "factors", to="x-F4"))
    r.each("index-length", "3.1", "minor-1", column=_with_a_column)
    r.each(
        "superblock-invalid",
        "3.1",
        "minor-1",
        superblock_size=head(superblock_size=192),
        reserved_bytes=head(reserved=1),
    )
    r.each("trailing-bytes", "3.1", "minor-1", trailing_byte=lambda f: f.seal() + b"\0")
    r.each("metadata-msgpack", "3.1", "minor-1", extension_type=put("x-key", to=Spliced(b"\xd4\x05x")))
    return list(r)


def _with_a_column(file: File) -> None:
    file.index = file.index_bytes() + bytes(2 * len(file.blocks))
