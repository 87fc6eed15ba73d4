"""Invalid vectors of block payloads (§6) and of padding (§7.2)."""

from .bits import digest, f16, f32
from .file import File
from .invalid_head import FRAMES, patched
from .invalid_index import LAST, row
from .kinds import sparse, sparse_of
from .samples import MASK, M, N, framed, sample, tall
from .vector import Change, Invalid, Refusals


def with_bit(number: int, byte: int, bit: int) -> Change:
    """One more bit set in a payload."""

    def change(file: File) -> None:
        data = file.blocks[number].data
        file.blocks[number].data = patched(data, byte, bytes([data[byte] | 1 << bit]))

    return change


def with_bytes(number: int, at: int, new: bytes) -> Change:
    """Other bytes within a payload; ``at`` below 0 counts from its end."""

    def change(file: File) -> None:
        data = file.blocks[number].data
        file.blocks[number].data = patched(data, at if at >= 0 else len(data) + at, new)

    return change


NAN32, NAN16 = b"\x01\x00\xa0\x7f", b"\x01\x7d"


def blocks() -> list[Invalid]:
    """§6 and §7.4."""
    r = Refusals(sample)
    signs = 2 * M
    r.each(
        "block-digest",
        "7.2",
        "digest",
        opens=True,
        zero=row(4, digest=bytes(32)),
        of_another_block=lambda f: row(4, digest=digest(f.blocks[5].data))(f),
        of_the_payload_and_not_of_the_stored_bytes=row(1, digest=digest(MASK)),
    )
    for number, what in ((4, "sign"), (5, "sign8"), (6, "plane")):
        for which in range(M):
            bit = (2, 7, 5)[which]
            change = {f"row_{which}_bit_{bit}": with_bit(number, 2 * which + 1, bit)}
            r.each("block-padding", "6.2", f"padding-bit-{what}", opens=True, **change)
    r.each(
        "block-values",
        "6",
        "value",
        opens=True,
        u_nan=with_bytes(4, signs, NAN16),
        u_infinite=with_bytes(4, signs + 4, f16(float("inf"))),
        v_last_infinite=with_bytes(4, -2, f16(float("-inf"))),
        u_e4m3_7f=with_bytes(5, signs, b"\x7f"),
        v_e4m3_ff=with_bytes(5, -9, b"\xff"),
        scale_nan=with_bytes(5, -8, NAN32),
        scale_infinite=with_bytes(5, -4, f32(float("inf"))),
        row_scale_nan=row(2, data=f32(1.0) + NAN32 + f32(1.0)),
        col_scale_infinite=row(3, data=f16(*[1.0] * 9, float("-inf"))),
        sparse_7f=row(8, data=sparse(1.0, M, {(0, 1): 0x38, (1, 1): 0x7F})),
        sparse_ff=row(8, data=sparse(1.0, M, {(0, 1): 0xFF})),
        sparse_scale_nan=row(8, data=sparse(float("nan"), M, {(0, 1): 0x38})),
        sparse_scale_infinite=row(8, data=sparse(float("-inf"), M, {(0, 1): 0x38})),
        lowrank_u_nan=with_bytes(LAST, 0, NAN16),
        lowrank_v_infinite=with_bytes(LAST, 2 * M, f16(float("inf"))),
    )
    entries = lambda *arrays: row(8, data=sparse_of(0.5, *arrays, b"\x38\xb0\x7e"))  # noqa: E731
    r.each(
        "block-rows",
        "6.6",
        "rows",
        opens=True,
        start_not_zero=entries([1], [0, 2, 2], [3, 9, 0]),
        start_largest=entries([(1 << 32) - 1], [0, 2, 2], [3, 9, 0]),
        first_offset_not_zero=entries([0], [1, 2, 2], [3, 9, 0]),
        falling=entries([0], [0, 2, 1], [3, 9, 0]),
        beyond_the_entries=entries([0], [0, 2, 4], [3, 9, 0]),
        far_beyond_the_entries=entries([0], [0, 2, 0xFFFF], [3, 9, 0]),
    )
    r.each(
        "block-columns",
        "6.6",
        "columns",
        opens=True,
        repeated=entries([0], [0, 2, 2], [3, 3, 0]),
        falling=entries([0], [0, 2, 2], [9, 3, 0]),
        falling_in_the_last_row=entries([0], [0, 0, 1], [3, 9, 0]),
        one_beyond=entries([0], [0, 2, 2], [3, N, 0]),
        last_beyond=entries([0], [0, 2, 2], [3, 9, N]),
        largest=entries([0], [0, 2, 2], [3, 0xFFFF, 0]),
    )
    last_of_tensor = lambda f: patched(f.seal(), len(f.seal()) - len(f.blocks[LAST].data) - 1, b"\1")  # noqa: E731
    r.each(
        "padding",
        "7.2",
        "padding",
        opens=True,
        between_blocks=last_of_tensor,
        all_of_it=lambda f: setattr(f, "fill", b"\xff"),
        after_the_attachments=_dirty_after_attachments,
    )
    return [*r, *frames(), *tiles()]


def frames() -> list[Invalid]:
    """§8.3 in a block."""
    r = Refusals(framed)
    for name, make in FRAMES.items():
        r.each("block-codec", "8.3", "block-frame", opens=True, **{name: row(0, stored_data=make(MASK))})
    return list(r)


def _dirty_after_attachments(file: File) -> bytes:
    data = file.seal()
    first = len(data) - file.offsets()[-1] - len(file.blocks[LAST].data)
    return patched(data, first - 1, b"\x80")


def tiles() -> list[Invalid]:
    """Sparse blocks of more than one tile."""
    r = Refusals(tall)

    def arrays(starts: list[int], changed: dict[int, int]) -> Change:
        usual = {0: 0, 64: 0, 128: 0, 129: 0} | changed
        offsets = [usual.get(at, 1) for at in range(130)]
        return lambda f: row(2, data=sparse_of(0.25, starts, offsets, [1, 0, 4], b"\x38\x40\xc0"))(f)

    r.each(
        "block-rows",
        "6.6",
        "tiles",
        opens=True,
        tile_before_the_last=arrays([0, 1, 0], {}),
        tile_within_the_last=arrays([0, 0, 2], {}),
        tile_beyond_the_entries=arrays([0, 1, 4], {}),
        first_offset_of_a_tile_not_zero=arrays([0, 0, 2], {64: 1, **dict.fromkeys(range(65, 128), 2)}),
    )
    return list(r)
