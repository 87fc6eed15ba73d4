"""What servers do to range requests (§9.7), answer by answer, and every bit of a file turned (§7.1, §7.2)."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from .file import MAGIC


def answers() -> Iterator[dict[str, Any]]:
    """Vectors of the transport: the object, the answers that a server gives to one request after another, the reason.

    An answer is sound unless it says otherwise: status 206, the bytes that were asked for, `Content-Range` right.
    The last one is given again for as long as requests come. The keys of an answer: ``status``; ``body`` ("whole": all
    of the object; "none"); ``shift``: bytes by which the range begins too late, as `Content-Range` says too; ``range``:
    `Content-Range` as it stands here, or null for none; ``cut``: bytes that the body lacks, `Content-Length` agreeing;
    ``more``: bytes too many; ``headers``.
    """

    def vector(name: str, reason: str | None, shows: str, *given: dict[str, Any], then: str = "") -> dict[str, Any]:
        facts: dict[str, Any] = {"name": name, "section": "9.7", "shows": shows, "object": OBJECT, "reason": reason}
        return facts | {"answers": list(given), "read": then == "read"}

    yield vector("sound", None, "a server that does what it is asked for", {}, then="read")
    yield vector("entity-tag", None, "a strong entity tag that stays", {"headers": {"ETag": '"one"'}}, then="read")
    for status in (404, 410):
        yield vector(f"status-{status}", "not-found", "no such object", {"status": status, "body": "none"})
    for status in (401, 403):
        yield vector(f"status-{status}", "access-denied", "not for this reader", {"status": status, "body": "none"})
    yield vector(
        "ranges-ignored", "range-unsupported", "status 200 and the whole object", {"status": 200, "body": "whole"}
    )
    yield vector("no-content-range", "range-unsupported", "206 that does not say which bytes it has", {"range": None})
    yield vector(
        "content-range-of-no-size", "range-unsupported", "the size of the object is not told", {"range": "bytes 0-99/*"}
    )
    coded = {"headers": {"Content-Encoding": "gzip"}}
    yield vector("content-coding", "range-unsupported", "a range of compressed bytes", coded)
    yield vector("first-answer-short", "short-read", "fewer bytes than Content-Range says", {"cut": 5})
    yield vector("first-answer-of-another-place", "short-read", "bytes from 64 on", {"shift": 64})
    shows = "a block is answered with bytes of another place, and says so"
    yield vector("later-answer-of-another-place", "short-read", shows, {}, {"shift": 64}, then="read")
    yield vector("later-answer-short", "short-read", "a block comes short by a byte", {}, {"cut": 1}, then="read")
    yield vector("later-answer-long", "short-read", "a block comes with bytes too many", {}, {"more": 3}, then="read")
    first = {"headers": {"ETag": '"one"'}}
    yield vector(
        "precondition-failed", "source-changed", "status 412", first, {"status": 412, "body": "none"}, then="read"
    )
    other = {"headers": {"ETag": '"two"'}}
    yield vector("entity-tag-changed", "source-changed", "another strong entity tag", first, other, then="read")
    yield vector(
        "size-changed",
        "source-changed",
        "another size of the object",
        {},
        {"range": "bytes {begin}-{last}/99999"},
        then="read",
    )
    yield vector(
        "ranges-ignored-later",
        "range-unsupported",
        "status 200 after a 206",
        {},
        {"status": 200, "body": "whole"},
        then="read",
    )
    gone = {"status": 416, "body": "none", "range": "bytes */64"}
    yield vector("no-such-range-later", "source-changed", "the object has become shorter", {}, gone, then="read")
    yield vector("server-error", "source", "a server that keeps failing", {"status": 500, "body": "none"})
    empty = {"status": 416, "body": "none", "range": "bytes */0"}
    yield vector("empty-object", "truncated", "an object of no bytes has no range", empty)
    nothing = {"status": 200, "body": "none"}
    yield vector("empty-object-whole", "truncated", "an object of no bytes in place of a range of it", nothing)
    yield vector("empty-later", "range-unsupported", "status 200 without a byte, later", {}, nothing, then="read")


def volume_answers() -> Iterator[dict[str, Any]]:
    """The same for a file in two volumes: the first answer brings all of the first one, the others the second."""

    def vector(name: str, reason: str | None, shows: str, *given: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": f"volume-{name}", "section": "9.7", "shows": shows, "object": VOLUMES}
        return facts | {"reason": reason, "answers": list(given), "read": True}

    tags: list[dict[str, Any]] = [{"headers": {"ETag": f'"{number}"'}} for number in range(3)]
    yield vector("sound", None, "a server that does what it is asked for", {})
    yield vector("entity-tags", None, "each volume has an entity tag of its own", *tags[:2])
    for status in (404, 410):
        gone = {"status": status, "body": "none"}
        yield vector(f"status-{status}", "volume-missing", "no such object beside the first volume", {}, gone)
    later = {"status": 404, "body": "none"}
    yield vector("gone-later", "volume-missing", "a volume that is not there any more", {}, {}, later)
    denied = {"status": 403, "body": "none"}
    yield vector("denied", "access-denied", "the first volume may be read, the second not", {}, denied)
    empty = {"status": 416, "body": "none", "range": "bytes */0"}
    yield vector("empty", "volume-truncated", "a volume of no bytes has no range", {}, empty)
    nothing = {"status": 200, "body": "none"}
    yield vector("empty-whole", "volume-truncated", "a volume of no bytes in place of a range of it", {}, nothing)
    less, more = {"range": "bytes {begin}-{last}/200"}, {"range": "bytes {begin}-{last}/99999"}
    yield vector("short", "volume-truncated", "a volume that is shorter than the index says", {}, less)
    yield vector("long", "volume-trailing-bytes", "a volume that is longer than the index says", {}, more)
    yield vector("size-changed", "source-changed", "another size than at the first answer", {}, {}, more)
    yield vector("entity-tag-changed", "source-changed", "another entity tag than at the first answer", *tags)
    failed = {"status": 412, "body": "none"}
    yield vector("precondition-failed", "source-changed", "status 412", {}, tags[1], failed)
    whole = {"status": 200, "body": "whole"}
    yield vector("ranges-ignored", "range-unsupported", "status 200 and the whole volume", {}, whole)
    short = {"shift": 64}
    yield vector("of-another-place", "short-read", "bytes of another place of the volume", {}, short)


#: The first of two volumes; all of it comes with the first read.
VOLUMES = "valid/volumes-2.bstk"
#: The object of the transport vectors: a head beyond the first read, so that blocks take further requests.
OBJECT = "valid/head-beyond-the-first-read.bstk"


def flips(data: bytes) -> list[list[Any]]:
    """The reason code of every bit turned, as runs [reason, how many]: bit 0 of byte 0 first, then bit 1."""
    reasons = (_flip(data, at, bit) for at in range(len(data)) for bit in range(8))
    return [[reason, len(list(run))] for reason, run in groupby(reasons)]


def _flip(data: bytes, at: int, bit: int) -> str:
    number = lambda offset, size: int.from_bytes(data[offset : offset + size], "little")  # noqa: E731
    metadata, index, attachments, size = number(32, 8), number(48, 8), number(64, 8), len(data)
    first = -(-(128 + metadata + index + attachments) // 64) * 64
    if at < 10:
        changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 : 32]
        return "bad-transfer" if 0 <= changed.find(MAGIC[1:5], 0, 11) <= 7 - 1 else "not-bstk"
    if at < 12:
        return "version-unsupported"
    if 14 <= at < 16:
        return "superblock-invalid"
    if 16 <= at < 24:
        # With the bit of volumes a file of one object has an object length of 0, without it one with volumes has one.
        return "superblock-invalid" if (at, bit) == (16, 0) else "feature-unsupported"
    if 32 <= at < 96:
        return _length_flip(data, at, bit)
    if at < 128 + metadata + index:
        return "head-digest"
    if at < 128 + metadata + index + attachments:
        return "attachment-digest"
    if at < first:
        return "padding"
    lengths = _lengths(data)
    end = first
    for length in lengths:
        end = -(-end // 64) * 64
        if at < end:
            return "padding"
        end += length
        if at < end:
            return "block-digest"
    raise ValueError(f"byte {at} of {size}")


def _length_flip(data: bytes, at: int, bit: int) -> str:
    """Steps 4, 5, 7 and 11 of §7.1 for one wrong length."""
    field, size, volumes = (at - 32) // 8, len(data), data[16] & 1
    values = [int.from_bytes(data[o : o + 8], "little") for o in range(32, 96, 8)]
    values[field] ^= 1 << 8 * ((at - 32) % 8) + bit
    stored, decoded, index, index_decoded, attachments, file, present, said = values
    head, own = 128 + stored + index, said if volumes else present
    sound = (
        stored <= 1 << 25
        and decoded <= min(1 << 25, 256 * stored + 65536)
        and index <= 1 << 30
        and index_decoded <= min(1 << 30, 256 * index + 65536)
        and head + attachments <= file <= 1 << 62
        and head <= present <= file
        and (volumes or said == 0)
        and (own == present or (present == file and head + attachments <= own < present))
    )
    if not sound:
        return "superblock-invalid"
    if own != size:
        return "truncated" if size < own else "trailing-bytes"
    # The root does not cover the last two; what they may be wrongly is no end of a block, or not that of the volume.
    return "head-digest" if field < 6 else "superblock-invalid"


def _lengths(data: bytes) -> list[int]:
    """The stored lengths of the blocks, from an index in one raw block of a frame."""
    at = 128 + int.from_bytes(data[32:40], "little")
    length = int.from_bytes(data[56:64], "little")
    index = data[at + int.from_bytes(data[48:56], "little") - length :][:length]
    count = int.from_bytes(index[:8], "little")
    return [int.from_bytes(index[16 + 8 * (count + i) :][:8], "little") for i in range(count)]
