"""Signing a file, and learning from a signature which root to demand (spec/signing.md).

bsformat.sign("model.bstk", "key.pem", "model.bstk.sig")
signed = bsformat.read_signature("model.bstk.sig", "key.pub")
bsformat.open("https://example.org/model.bstk", root=signed.root)   # any prefix, from any server
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from . import superblock
from .atomic import replace_file, writing
from .container import Container
from .errors import SignatureError
from .keys import check_bytes, sign_bytes
from .opening import open_container
from .source import ByteSource
from .statement import LIMIT, Envelope, Statement, pae, read_bundle, read_statement
from .uri import open_source
from .verify import CHUNK

Place = str | os.PathLike[str] | ByteSource


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that holds.

    Attributes:
        name, root, sha256, volumes: what it says of the file: see `bsformat.statement.Statement`.
        key: SHA-256 of the PEM of the public key, 64 hexadecimal digits.
    """

    name: str
    root: str
    sha256: str
    key: str
    volumes: tuple[tuple[str, str], ...] = ()


def sign(
    uri: Place | Container,
    private_key: Place,
    output: str | os.PathLike[str],
    *,
    password: bytes | None = None,
    root: str | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **storage_options: Any,
) -> Signed:
    """Check every byte of a whole file, once, and write a detached signature of it.

    Args:
        private_key: where the PEM of a key on P-256, P-384 or P-521 lies. password: of an encrypted one.
        output: where the signature goes; what is there is replaced.
        root: the root digest (64 hexadecimal digits) that the file must have.
        progress: called with the number of bytes read since the last call.
        storage_options: given to `bsformat.open`, ``network`` included.

    Raises:
        SourceError, FormatError: the file cannot be read, or is damaged, or is a prefix file: nothing is signed.
        SignatureError: the key cannot be used. WriteError: the signature cannot be written.
    """
    with ExitStack() as stack:
        if isinstance(uri, Container):
            container = uri
        else:
            container = stack.enter_context(open_container(uri, root=root, cache=False, **storage_options))
        if container.available_blocks < len(container):
            raise container.missing(container.available_blocks)
        key, where = _small(private_key)
        sign_bytes(key, b"", password, where)  # a key that cannot be used is found before the file is read
        name = PurePosixPath(container.uri.partition("?")[0]).name
        digests = _sha256(container, progress)
        names = [name, *(volume.name for volume in container.volumes[1:])]
        volumes = tuple(sorted(zip(names, digests, strict=True))) if container.volumes else ()
        statement = Statement(name, container.root, "" if volumes else digests[0], volumes)
    payload = statement.encode()
    signature, hint = sign_bytes(key, pae(payload), password, where)
    bundle = Envelope(payload, signature, hint).encode()
    if len(bundle) > LIMIT:
        raise SignatureError(
            f"{len(statement.volumes)} volumes are more than a signature of at most {LIMIT} bytes can name; repack the "
            "file with a larger --volume-size",
            where=container.uri,
            reason="signature-format",
        )

    def emit(out: IO[bytes]) -> None:
        out.write(bundle)

    with writing(os.fspath(output)):
        replace_file(os.fspath(output), emit)
    return Signed(statement.name, statement.root, statement.sha256, hint, statement.volumes)


def read_signature(signature: Place, public_key: Place, **storage_options: Any) -> Signed:
    """What a signature says, if the holder of the key made it. The file itself is not read: demand the root of it.

    Args:
        signature, public_key: where they lie. storage_options: given to the file system of the signature, ``network``
            included.

    Raises:
        SourceError: one of them cannot be read. SignatureError: the signature does not hold, is none, or is of another
            key; reasons ``signature-invalid``, ``signature-format``, ``signature-key``.
    """
    data, where = _small(signature, **storage_options)
    envelope = read_bundle(data, where)
    key, key_where = _small(public_key)
    hint = check_bytes(key, pae(envelope.payload), envelope.signature, envelope.hint, key_where, where)
    # What is signed is read only now that somebody vouches for it.
    statement = read_statement(envelope.payload, where)
    return Signed(statement.name, statement.root, statement.sha256, hint, statement.volumes)


def _small(place: Place, **storage_options: Any) -> tuple[bytes, str]:
    """The bytes of a small object, and its name."""
    source = open_source(place, **storage_options)
    try:
        data, size = source.start(LIMIT)
        if size > LIMIT:
            raise SignatureError(
                f"has {size} bytes; no key and no signature has more than {LIMIT}",
                where=source.name,
                reason="signature-format",
            )
        return bytes(data), source.name
    finally:
        if source is not place:
            source.close()


def _sha256(container: Container, progress: Callable[[int], object]) -> list[str]:
    """SHA-256 of each object of the file, read from their beginnings to their ends, with everything in them checked."""
    hasher, done = hashlib.sha256(), []
    starts = {volume.offset for volume in container.volumes}
    head = container.superblock
    stored = bytes(container.read(0, head.head_length))
    middle = superblock.SIZE + head.metadata_stored
    # The same bytes as were opened, should somebody write to the file: what is hashed and what is demanded are one.
    again = superblock.decode(stored[: superblock.SIZE], container.uri)
    superblock.check_root(again, stored[superblock.SIZE : middle], stored[middle:], container.uri, container.root)
    hasher.update(stored)
    progress(len(stored))
    for at in range(head.head_length, head.blocks_offset, CHUNK):
        data = container.read(at, min(CHUNK, head.blocks_offset - at))
        hasher.update(data)
        progress(len(data))
    for item in container.metadata.attachments:
        container.attachment(item.name)
    tail = head.head_length + head.attachments_length
    container.check_zero(container.read(tail, head.blocks_offset - tail), tail)
    for span in container.spans(0, len(container), CHUNK):
        data = container.read(span.offset, span.length)
        if span.offset in starts:
            done.append(hasher.hexdigest())
            hasher = hashlib.sha256()
        hasher.update(data)
        for _ in container.decode_span(span, data):
            pass
        progress(span.length)
    return [*done, hasher.hexdigest()]
