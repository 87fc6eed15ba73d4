"""The superblock: the first 128 bytes of a file, from which every other range of it follows (spec §2)."""

import re
import struct
from dataclasses import dataclass, replace
from typing import Final

import blake3

from . import registry
from .errors import FormatError, IntegrityError, NotBstkError, TruncatedError, UnsupportedError

#: 0x89 is lost by a 7-bit transfer, CR LF and the later lone LF by a text-mode one, 0x1A stops a listing on DOS.
MAGIC: Final = b"\x89BSTK\r\n\x1a\n\x00"
SIZE: Final = 128
#: The must-understand bit of files that are cut into volumes (spec §4.8).
VOLUMES: Final = 1

#: How volumes after the first are called by custom.
_VOLUME: Final = re.compile(r"\.\d{5}\.bstk$")

# magic, major, minor, superblock size, must, may, metadata stored/decoded, index stored/decoded, attachments,
# file length | present length, object length | root
_IDENTITY: Final = struct.Struct("<10sHHHQQQQQQQQ")
_REST: Final = struct.Struct("<QQ32s")


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of the superblock; all lengths in bytes.

    ``present_length`` is how much of the file there is: ``file_length`` for a whole file, less for a prefix file.
    ``object_length`` is stored for files with volumes alone: the bytes of this object, less than ``present_length``
    where it is the first volume and the rest lies in others; 0 for other files. The root does not cover the two, since
    cutting a file, or joining its volumes, must not rename it.
    """

    metadata_stored: int
    metadata_length: int
    index_stored: int
    index_length: int
    attachments_length: int
    file_length: int
    present_length: int
    root: bytes
    major: int = registry.MAJOR
    minor: int = 0
    must: int = 0
    may: int = 0
    object_length: int = 0

    @property
    def has_volumes(self) -> bool:
        """Whether the metadata says how the file is cut into volumes."""
        return bool(self.must & VOLUMES)

    @property
    def own_length(self) -> int:
        """Bytes of this object."""
        return self.object_length if self.has_volumes else self.present_length

    def holding(self, present_length: int) -> "Superblock":
        """The superblock of one object that holds the first ``present_length`` bytes of the file."""
        own = present_length if self.has_volumes else 0
        return replace(self, present_length=present_length, object_length=own)

    @property
    def head_length(self) -> int:
        """Bytes of superblock, metadata and index: what must be read before anything can be planned."""
        return SIZE + self.metadata_stored + self.index_stored

    @property
    def blocks_offset(self) -> int:
        """Where the first block starts."""
        return registry.align(self.head_length + self.attachments_length)

    def identity(self) -> bytes:
        """The part of the superblock that the root covers: bytes 0 to 79."""
        return _IDENTITY.pack(
            MAGIC,
            self.major,
            self.minor,
            SIZE,
            self.must,
            self.may,
            self.metadata_stored,
            self.metadata_length,
            self.index_stored,
            self.index_length,
            self.attachments_length,
            self.file_length,
        )

    def encode(self) -> bytes:
        """The 128 bytes as they stand in the file."""
        return self.identity() + _REST.pack(self.present_length, self.object_length, self.root)


def compute_root(identity: bytes, metadata: bytes, index: bytes) -> bytes:
    """BLAKE3 of superblock bytes 0–79, the stored metadata and the stored index: 32 bytes."""
    return blake3.blake3(identity).update(metadata).update(index).digest()


def decode(data: bytes, where: str) -> Superblock:
    """Read and check the superblock.

    Args:
        data: the first bytes of the object, at least 128 unless the object is shorter.
        where: its path or URI, for messages.

    Raises:
        NotBstkError, TruncatedError, UnsupportedError, FormatError, IntegrityError
    """
    _check_magic(data, where)
    if len(data) < SIZE:
        raise TruncatedError(
            f"the file ends after {len(data)} bytes, inside the {SIZE}-byte superblock; fetch it again",
            where=where,
            offset=len(data),
        )
    _, major, minor, size, must, may, *lengths = _IDENTITY.unpack_from(data)
    if major != registry.MAJOR:
        raise UnsupportedError(
            f"format version {major}.{minor}; this reader knows version {registry.MAJOR}.x: install a newer bitstack",
            where=where,
            offset=len(MAGIC),
            reason="version-unsupported",
        )
    if unknown := must & ~registry.KNOWN_MUST:
        names = [registry.MUST_FEATURES.get(b, f"bit {b}") for b in range(64) if unknown >> b & 1]
        raise UnsupportedError(
            f"the file needs the feature {', '.join(names)}, which this reader does not implement: "
            "install a newer bitstack",
            where=where,
            offset=16,
            reason="feature-unsupported",
        )
    present, own, root = _REST.unpack_from(data, _IDENTITY.size)
    meta_stored, meta_length, index_stored, index_length, attachments, file_length = lengths
    block = Superblock(
        meta_stored,
        meta_length,
        index_stored,
        index_length,
        attachments,
        file_length,
        present,
        root,
        major,
        minor,
        must,
        may,
        own,
    )
    if size != SIZE:
        _reject(f"superblock size {size}, expected {SIZE}", where, 14)
    if own and not block.has_volumes:
        _reject("the reserved bytes are not zero", where, 88)
    _check_lengths(block, where)
    return block


def _check_magic(data: bytes, where: str) -> None:
    start = data[: len(MAGIC)]
    if start == MAGIC[: len(start)]:
        if data:
            return
        raise TruncatedError("the file is empty; fetch it again", where=where, offset=0)
    if b"BSTK" in start[:7]:
        raise NotBstkError(
            "the magic of a .bstk file, but damaged as a text-mode or 7-bit transfer does: transfer it as binary",
            where=where,
            offset=0,
            reason="bad-transfer",
        )
    volume = "; if it is a volume of a file, name the first one" if _VOLUME.search(where) else ""
    raise NotBstkError(
        f"not a .bstk file: it starts with {start[:8].hex(' ')}, expected {MAGIC[:8].hex(' ')}{volume}",
        where=where,
        offset=0,
    )


def _check_lengths(block: Superblock, where: str) -> None:
    if block.file_length > registry.MAX_FILE_BYTES:
        _reject(f"file length {block.file_length} is beyond the limit {registry.MAX_FILE_BYTES}", where, 72)
    for name, stored, length, limit, offset in (
        ("metadata", block.metadata_stored, block.metadata_length, registry.MAX_METADATA, 32),
        ("index", block.index_stored, block.index_length, registry.MAX_HEAD_SECTION, 48),
    ):
        if length > limit or length > registry.expansion_limit(stored) or stored > limit:
            _reject(f"the {name} declares {stored} stored and {length} decoded bytes, beyond the limits", where, offset)
    if block.head_length + block.attachments_length > block.file_length:
        _reject(
            f"head and attachments end at {block.head_length + block.attachments_length}, "
            f"beyond the file length {block.file_length}",
            where,
            72,
        )
    if not block.head_length <= block.present_length <= block.file_length:
        _reject(
            f"present length {block.present_length} is not between the head's {block.head_length} "
            f"and the file's {block.file_length}",
            where,
            80,
        )
    own, present = block.own_length, block.present_length
    if own != present and not block.head_length + block.attachments_length <= own < present:
        _reject(f"object length {own} is not between the attachments' end and {present}", where, 88)
    if own != present and present != block.file_length:
        _reject(f"present length {present}: what lies in volumes is whole, {block.file_length} bytes", where, 80)


def _reject(message: str, where: str, offset: int) -> None:
    raise FormatError(message, where=where, offset=offset, reason="superblock-invalid")


def check_root(block: Superblock, metadata: bytes, index: bytes, where: str, demanded: str | None = None) -> None:
    """Compare the stored root with the head's bytes, and with the root that the caller demands.

    Args:
        demanded: 64 hexadecimal digits, or None.

    Raises:
        IntegrityError: reason ``root-mismatch`` or ``head-digest``.
    """
    if demanded is not None and demanded.strip().lower() != block.root.hex():
        raise IntegrityError(
            f"root {block.root.hex()}, but {demanded.strip().lower()} was demanded: this is another file",
            where=where,
            reason="root-mismatch",
        )
    if compute_root(block.identity(), metadata, index) != block.root:
        raise IntegrityError(
            "the head does not match its root digest: the file is damaged or was changed; fetch it again",
            where=where,
            offset=0,
            reason="head-digest",
        )
