"""An open ``.bstk`` file: its head in memory, its blocks and attachments read when asked for."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType

import blake3
import numpy as np

from . import codec, payload
from .block import Block, Span
from .cache import BlockCache
from .cached import CachedSource, CheckedBytes
from .cached_head import read_cached_head
from .chains import Chains, Parts
from .comparing import Comparing
from .errors import BstkError, FormatError, IntegrityError, NotFoundError, TruncatedError
from .head import Head, read_head
from .layout import Layout
from .metadata import Attachment, Tensor
from .network import Signals, default_memory
from .plan import Plan, Planner
from .registry import ALIGNMENT
from .source import Buffer, ByteSource, fill
from .traffic import CountedSource
from .units import parse_size
from .volumes import Extent, extents


class Container:
    """An open file. Made by `bsformat.open`; close it, or use it in a ``with`` statement.

    Attributes:
        uri: where it was opened.
        source: where its bytes come from; it counts the requests made and the bytes read, those from the cache not.
        superblock, metadata, index: the decoded head. layout: where the blocks lie.
        volumes: where the bytes lie, if the rest of the file is in other objects; else empty.
        memory: bytes of host memory that reading many blocks may take; see `bsformat.Network.memory`.
        available_blocks: how many leading blocks there are: all, unless it is a prefix file.
    """

    def __init__(
        self,
        source: ByteSource,
        *,
        root: str | None = None,
        cache: BlockCache | None = None,
        head: Head | None = None,
        memory: int | None = None,
    ) -> None:
        self.uri = source.name
        self.memory = default_memory() if memory is None else memory
        self.source = CountedSource(source)
        #: The bytes of a head that was read before; those of one that is read here are not kept.
        self.stored_head = head.stored if head else b""
        if head is None:
            head = read_head(self.source, root) if cache is None else read_cached_head(self.source, root, cache)
        self.superblock, self.metadata, self.index = head.superblock, head.metadata, head.index
        self._chains = Chains(self.metadata)
        self._parts = self._chains.at(self.index.chain)
        s = self.superblock
        self.volumes = extents(head, self.uri)
        if self.volumes:
            self.source.join(self.volumes)
        self.layout = Layout(self.index, self.metadata.forms, [volume.first_block for volume in self.volumes[1:]])
        ends = self.layout.ends
        self.available_blocks = int(np.searchsorted(ends, s.present_length, side="right"))
        present = int(ends[self.available_blocks - 1]) if self.available_blocks else s.blocks_offset
        if present != s.present_length or self.available_blocks < self.index.required:
            raise FormatError(
                f"a prefix file of {s.present_length} bytes, which is not where a block ends, or lacks required blocks",
                where=self.uri,
                offset=80,
                reason="superblock-invalid",
            )
        n = self.available_blocks
        self.planner = Planner(self.index.length[:n], ends[:n], self.index.required, s.blocks_offset, self.uri)
        self._scales = {k for t in self.metadata.tensors if t.packed for k in (t.row_scale, t.col_scale)}
        self._attachments = {item.name: item for item in self.metadata.attachments}
        self._cached = None if cache is None else CachedSource(self.source, cache, head, n)
        self._reader: ByteSource = self._cached or self.source
        # What the first read brought beyond the head is kept like any other bytes.
        self._lead = b"" if self._cached else head.lead

    @property
    def bytes_cached(self) -> int:
        """Bytes of blocks and attachments that came from the cache."""
        return self._cached.bytes_cached if self._cached else 0

    @property
    def root(self) -> str:
        """The root digest, 64 hexadecimal digits: it authenticates everything in the file."""
        return self.superblock.root.hex()

    @property
    def version(self) -> str:
        """The format version, ``major.minor``."""
        return f"{self.superblock.major}.{self.superblock.minor}"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.superblock.file_length

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in the file, scale vectors included."""
        return self.metadata.tensors

    @cached_property
    def model_tensors(self) -> dict[str, Tensor]:
        """The tensors that a model has, by name: all but the scale vectors."""
        return {t.name: t for i, t in enumerate(self.tensors) if i not in self._scales}

    @cached_property
    def chains(self) -> Parts:
        """Which chain is which rows of which tensor, one entry a chain; made when first asked for."""
        return self._chains.at(np.arange(self.metadata.n_chains))

    @property
    def minimum_bytes(self) -> int:
        """The smallest budget, in resident bytes."""
        return self.planner.minimum_bytes

    @property
    def total_bytes(self) -> int:
        """Resident bytes with every block loaded: what ``100%`` means."""
        return self.planner.total_bytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of the model before packing, each tensor in its own type."""
        return sum(t.dense_bytes for t in self.model_tensors.values())

    def __len__(self) -> int:
        return len(self.index)

    def plan(self, budget: int | str) -> Plan:
        """The longest prefix within a budget: bytes, a size as ``80MiB``, or a percentage of all blocks.

        Raises:
            BudgetError: it is no size, or below the minimum.
        """
        try:
            return self.planner.plan(parse_size(budget, self.total_bytes))
        except BstkError as error:
            raise error.at(self.uri) from None

    def block(self, number: int) -> Block:
        """Block ``number`` of the file's order."""
        ix, parts = self.index, self._parts
        return Block(
            number,
            self.tensors[int(parts.tensor[number])],
            int(parts.first_row[number]),
            int(parts.rows[number]),
            int(ix.level[number]),
            self.metadata.forms[int(ix.form[number])],
            int(ix.offset[number]),
            int(ix.stored[number]),
            int(ix.length[number]),
            float(ix.worth[number]),
            ix.digest[number].tobytes(),
        )

    def spans(self, first: int, stop: int, max_bytes: int) -> Iterator[Span]:
        """See `bsformat.layout.Layout.spans`."""
        return self.layout.spans(first, stop, max_bytes)

    @property
    def fills(self) -> bool:
        """Whether `read_span` needs memory to read into."""
        return self._cached is not None or self.source.fills

    @property
    def signals(self) -> Signals:
        """What the source notices of its server."""
        return self.source.signals

    def read_span(self, span: Span, out: memoryview | None = None) -> tuple[Buffer, bool]:
        """The bytes of a span, in ``out`` if that is given; and whether its blocks were compared with their digests."""
        if out is None:
            data = self.read(span.offset, span.length)
            return data, isinstance(data, CheckedBytes)
        have = max(0, min(len(self._lead) - span.offset, span.length))
        if have:
            out[:have] = self._lead[span.offset : span.offset + have]
            if have < span.length:
                fill(self._reader, span.offset + have, out[have:])
            return out, False
        if self._cached is not None:
            return out, fill(self._reader, span.offset, out)
        ix, blocks = self.index, range(span.first, span.stop)
        starts = [int(ix.offset[i]) - span.offset for i in blocks]
        bounds = [(at, at + int(ix.stored[i])) for at, i in zip(starts, blocks, strict=True)]
        comparing = Comparing(out, bounds, [ix.digest[i].tobytes() for i in blocks])
        fill(self._reader, span.offset, out, comparing.there)
        comparing.there(span.length)
        return out, comparing.sound

    def read(self, offset: int, length: int) -> Buffer:
        """``length`` bytes of the file from ``offset``; what the first read brought along is not read again."""
        have = max(0, min(len(self._lead) - offset, length))
        if have == length:
            return memoryview(self._lead)[offset : offset + length]
        if have:
            return self._lead[offset:] + bytes(self._reader.get(offset + have, length - have))
        return self._reader.get(offset, length)

    def decode_block(self, block: Block, stored: Buffer, *, compared: bool = False) -> bytes | memoryview:
        """The payload of a block from its stored bytes, checked: digest, codec, padding bits, finite numbers.

        Args:
            compared: the digest has been compared already.

        Raises:
            IntegrityError: reason ``block-digest``. FormatError: ``block-codec``, ``block-padding``, ``block-values``.
        """
        if not compared and blake3.blake3(stored).digest() != block.digest:
            there = f" in volume {volume.name}" if (volume := self.volume_of(block.number)) else ""
            raise IntegrityError(
                f"{block}{there} does not match its digest: the bytes are damaged or were changed; fetch them again",
                where=self.uri,
                offset=block.offset,
                reason="block-digest",
            )
        view = memoryview(stored)
        if block.form.codec == "zstd":
            view = memoryview(codec.decompress(view, block.length, str(block), self.uri, "block-codec"))
        is_scale = block.form.kind == "raw" and int(self.index.chain[block.number]) in self._scale_chains
        payload.check(block.form, block.tensor, block.rows, view, is_scale, str(block), self.uri)
        return view

    def volume_of(self, number: int) -> Extent | None:
        """The volume that a block lies in; None if the file, or all that there is of it, is one object."""
        at = bisect_right(self.volumes, number, key=lambda volume: volume.first_block)
        return self.volumes[at - 1] if at else None

    @cached_property
    def _scale_chains(self) -> frozenset[int]:
        return frozenset(self.tensors[i].first_chain for i in self._scales)

    def decode_span(
        self, span: Span, data: Buffer, *, compared: bool = False
    ) -> Iterator[tuple[Block, bytes | memoryview]]:
        """The blocks of a span with their checked payloads; the padding after each of them is checked too.

        Args:
            compared: the digests have been compared already.
        """
        view, compared = memoryview(data), compared or isinstance(data, CheckedBytes)
        for number in range(span.first, span.stop):
            block = self.block(number)
            at = block.offset - span.offset
            end = at + block.stored
            yield block, self.decode_block(block, view[at:end], compared=compared)
            self.check_zero(view[end : end + -end % ALIGNMENT], span.offset + end)

    def check_zero(self, padding: Buffer, offset: int) -> None:
        """Refuse padding bytes, which lie at ``offset``, that are not zero."""
        if any(padding):
            raise FormatError("padding that is not zero", where=self.uri, offset=offset, reason="padding")

    def read_block(self, number: int) -> bytes:
        """The checked payload of one block, in one request."""
        if number >= self.available_blocks:
            raise self.missing(number)
        block = self.block(number)
        return bytes(self.decode_block(block, self.read(block.offset, block.stored)))

    def missing(self, number: int) -> TruncatedError:
        """The error of a block that this prefix file does not hold."""
        return TruncatedError(
            f"a prefix file that holds {self.available_blocks} of {len(self)} blocks, not block {number}; "
            "fetch the whole file",
            where=self.uri,
        )

    def attachment(self, name: str) -> bytes:
        """The bytes of an attached file, checked; one request unless it lies in the head.

        Raises:
            NotFoundError: there is no such attachment. IntegrityError, FormatError: it is damaged.
        """
        if (item := self._attachments.get(name)) is not None:
            return self._attachment(item)
        names = ", ".join(a.name for a in self.metadata.attachments) or "none"
        raise NotFoundError(f"no attachment {name!r}; there are: {names}", where=self.uri, reason="attachment-unknown")

    def _attachment(self, item: Attachment) -> bytes:
        if item.data is not None:
            return item.data
        offset = self.superblock.head_length + item.offset
        stored = self.read(offset, item.stored)
        if blake3.blake3(stored).digest() != item.digest:
            raise IntegrityError(
                f"attachment {item.name!r} does not match its digest: damaged or changed; fetch it again",
                where=self.uri,
                offset=offset,
                reason="attachment-digest",
            )
        if item.codec == "zstd":
            what = f"attachment {item.name!r}"
            return codec.decompress(bytes(stored), item.length, what, self.uri, "attachment-codec")
        return bytes(stored)

    def close(self) -> None:
        """Release the source."""
        self.source.close()

    def __enter__(self) -> "Container":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
