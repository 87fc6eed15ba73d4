"""No byte of a file can change, go missing or be added without being noticed, and named."""

import pytest

import bsformat
from bsformat.errors import FormatError, TruncatedError
from tests.bsformat.conftest import first_problem


def outcome(data: bytes) -> str | None:
    """The reason for which a file is refused; None if it passes. Any error but a FormatError fails the test."""
    error = first_problem(data)
    if error is None:
        return None
    assert isinstance(error, FormatError)
    return error.reason


# In eight parts, so that the report says which kind of change went unnoticed.
@pytest.mark.parametrize("change", [0xFF, *(1 << bit for bit in range(8))], ids=hex)
def test_every_byte_changed(sealed: bytes, reasons: frozenset[str], change: int) -> None:
    missed, nameless = [], []
    data = bytearray(sealed)
    for at in range(len(sealed)):
        data[at] ^= change
        reason = outcome(bytes(data))
        data[at] ^= change
        if reason is None:
            missed.append(at)
        elif reason not in reasons:
            nameless.append((at, reason))
    assert len(sealed) > 1500
    assert (missed, nameless) == ([], [])


def test_the_region_of_a_change_gives_its_reason(sealed: bytes) -> None:
    """Which check catches what: nothing but the blocks' own digests vouches for the blocks."""
    container = bsformat.open(bsformat.MemorySource(sealed))
    head, offsets = container.superblock, container.index.offset.tolist()
    tail = head.head_length + head.attachments_length
    expected = {
        12: "head-digest",  # minor version
        24: "head-digest",  # bits that may be ignored
        90: "superblock-invalid",
        96: "head-digest",  # the root
        128: "head-digest",
        head.head_length - 1: "head-digest",
        head.head_length: "attachment-digest",
        tail - 1: "attachment-digest",
        tail: "padding",
        offsets[0] - 1: "padding",
        offsets[0]: "block-digest",
        offsets[0] + 16: "padding",
        len(sealed) - 1: "block-digest",
    }
    changed = {at: sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in expected}
    assert {at: outcome(data) for at, data in changed.items()} == expected


def test_all_damage_is_listed(sealed: bytes) -> None:
    data = bytearray(sealed)
    container = bsformat.open(bsformat.MemorySource(sealed))
    for number in (0, 3, 5):
        data[container.block(number).offset] ^= 1
    data[container.superblock.head_length] ^= 1
    report = bsformat.verify(bsformat.MemorySource(data))
    assert not report.ok
    assert [(p.reason, p.offset) for p in report.problems] == [
        ("attachment-digest", container.superblock.head_length),
        *(("block-digest", container.block(number).offset) for number in (0, 3, 5)),
    ]


def test_cut_at_every_length(sealed: bytes) -> None:
    for length in range(len(sealed)):
        error = first_problem(sealed[:length])
        assert isinstance(error, TruncatedError), length
        assert error.reason == "truncated"
        assert error.offset == length


@pytest.mark.parametrize("more", [1, 2, 63, 64, 1000])
def test_bytes_appended(sealed: bytes, more: int) -> None:
    assert outcome(sealed + bytes(more)) == "trailing-bytes"
    assert outcome(sealed + b"\xff" * more) == "trailing-bytes"
    assert outcome(sealed + sealed[:more]) == "trailing-bytes"


def test_a_byte_removed_or_inserted_anywhere(sealed: bytes) -> None:
    for at in range(len(sealed)):
        assert outcome(sealed[:at] + sealed[at + 1 :]) is not None
        assert outcome(sealed[:at] + b"\0" + sealed[at:]) is not None
