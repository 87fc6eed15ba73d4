"""Valid vectors of shapes, element types, block kinds and rounding (§4.2, §6, §8.1)."""

import struct
from collections.abc import Iterator

from .bits import ZSTD_MAGIC, Noise, bf16, f16, f32, frame_blocks, frame_header
from .file import Block, File
from .kinds import PLANE, RAW, SPARSE, lowrank_form, packed, scale_values, sign_form, sparse
from .samples import sample, tall
from .vector import Valid

S1, S8 = sign_form(1), sign_form(2, "F8_E4M3")


def raw_file(*tensors: tuple[str, list[int], str, bytes]) -> File:
    """A file of raw tensors only."""
    file = File(forms=[RAW])
    for i, (name, shape, dtype, data) in enumerate(tensors):
        file.tensors.append({"name": name, "shape": shape, "dtype": dtype})
        file.blocks.append(Block(i, 0, 0, data))
    return file


def smallest() -> File:
    """A scalar of one byte, and nothing else."""
    return raw_file(("a", [], "U8", b"\x07"))


SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def raw() -> Iterator[Valid]:
    """Raw tensors."""
    yield Valid("smallest", "1.2", "a scalar of one byte in one block", smallest())
    noise = Noise(2)
    every = [(name, [3], name, noise.bytes(3 * size)) for name, size in SIZES.items() if name != "BOOL"]
    types = raw_file(*every, ("BOOL", [3], "BOOL", b"\0\1\7"))
    yield Valid("raw-every-type", "8.1", "every element type, any bit pattern; a boolean of 7", types)
    odd = raw_file(
        ("nan", [4], "F32", struct.pack("<4I", 0x7FA00001, 0xFFFFFFFF, 0x80000000, 0x7F800000)),
        ("e4m3 nan", [2], "F8_E4M3", b"\x7f\xff"),
    )
    yield Valid("raw-not-finite", "6.1", "raw tensors that are no scale vectors hold NaN and infinities", odd)
    shapes = raw_file(
        ("scalar", [], "F32", f32(1)),
        ("one", [1], "F32", f32(2)),
        ("eight", [1, 2, 1, 2, 1, 1, 2, 1], "U8", bytes(range(8))),
        ("tall", [70, 1], "I8", bytes(range(70))),
        ("wide", [1, 65], "BOOL", bytes(i % 2 for i in range(65))),
    )
    yield Valid("raw-shapes", "4.2", "no dimension, eight dimensions, blocks of 64 bytes more or less", shapes)
    exact = raw_file(("a", [64], "U8", bytes(64)), ("b", [63], "U8", bytes(63)), ("c", [65], "U8", bytes(65)))
    yield Valid("raw-around-the-alignment", "5", "blocks of 64, 63 and 65 bytes", exact)
    large = packed([20, 30], [[S8] * 4], seed=4)
    large.inline = {"tokenizer.json": noise.bytes(17000)}
    yield Valid("head-beyond-the-first-read", "7.1", "a head of more than 16384 bytes takes a second request", large)


def packed_shapes() -> Iterator[Valid]:
    """Packed tensors."""
    yield Valid("packed-1x1", "4.2", "a matrix of one element", packed([1, 1], [[S1]], seed=3))
    for columns in (1, 7, 8, 9, 65):
        file = packed([3, columns], [[S1, S8]], seed=10 + columns)
        yield Valid(f"packed-3x{columns}", "6.2", f"rows of {columns} sign bits", file, prefixes=[3])
    groups = packed([7, 10], [[S8], [S1, S8], []], seed=20, group_rows=3)
    yield Valid(
        "packed-groups", "4.2", "three row groups, the last of one row and without any level", groups, prefixes=[3, 4]
    )
    yield Valid("packed-zero-levels", "6.3", "no chain has a block: every value is +0", packed([2, 5], [[]], seed=21))
    minus = packed([2, 5], [[]], seed=22)
    minus.blocks[0].data = f32(-1.0, 1.0)
    yield Valid("packed-zero-levels-negative-scale", "6.3", "a row whose scale is negative is all minus zero", minus)
    single = packed([5, 6], [[S1]] * 5, seed=23, group_rows=1)
    yield Valid("packed-a-chain-a-row", "4.2", "row groups of one row", single, prefixes=[3, 5])
    late = packed([4, 4], [[S1], []], seed=24, group_rows=2)
    late.required = 3
    yield Valid("required-beyond-the-raw-blocks", "5", "a block of signs is required too", late)
    experts = packed([3, 4, 10], [[S1, S8], [S8], []], seed=25, group_rows=4)
    experts.tensors[1]["shape"] = [3, 10]
    experts.blocks[1].data = f16(*scale_values(Noise(26), 30))
    shows = "three experts, each a chain, each with column scales of its own"
    yield Valid("experts", "11.1", shows, experts, prefixes=[3, 4])
    across = packed([2, 3, 9], [[S1], [S8]], seed=27, group_rows=4)
    yield Valid("stack-cut-across", "4.2", "a row group that ends within a matrix of the stack", across)
    turned = packed([3, 10], [[S1, S8]], seed=28, transposed=True)
    yield Valid("transposed", "4.2", "the parameter is [10, 3]", turned, prefixes=[3])
    stack = packed([2, 3, 5], [[S1], [S8]], seed=29, group_rows=3, transposed=True)
    yield Valid("transposed-stack", "4.2", "each matrix transposed on its own: [2, 5, 3]", stack)
    four = packed([2, 2, 2, 9], [[S1], [S8]], seed=30, group_rows=4, dtype="BF16")
    yield Valid("packed-four-dimensions", "4.2", "rows are counted over all dimensions but the last", four)
    one = packed([4, 4], [[S1]], seed=31)
    one.tensors[2] |= {"row_scale": 0, "col_scale": 0}
    del one.tensors[1], one.blocks[1]
    one.blocks[1].chain = 1
    yield Valid("one-vector-for-rows-and-columns", "4.2", "a square matrix with one scale vector for both", one)
    shared = packed([3, 10], [[S1]], seed=32)
    shared.tensors.append(shared.tensors[2] | {"name": "v", "dtype": "F32"})
    shared.blocks.append(Block(3, 0, 1, shared.blocks[2].data, 0.25))
    yield Valid("shared-scales", "4.2", "two tensors of the same scale vectors", shared)
    for dtype, encode in (("BF16", bf16), ("F16", f16)):
        file = packed([3, 9], [[S1, S8]], seed=33)
        file.tensors[0]["dtype"], file.tensors[1]["dtype"] = dtype, "F32"
        file.blocks[0].data = encode(*scale_values(Noise(34), 3))
        file.blocks[1].data = f32(*(1 / (i + 3) for i in range(9)))
        yield Valid(f"scales-{dtype.lower()}-and-f32", "8.1", f"row scale {dtype}, column scale F32", file)


def kinds() -> Iterator[Valid]:
    """§6.2 to §6.7."""
    yield Valid(
        "every-kind",
        "6",
        "raw, sign, plane, sparse and lowrank, in one chain",
        sample(),
        [-1, 300, 301],
        [5, 6, 7, 8, 9],
    )
    yield Valid("sparse-tiles", "6.6", "130 rows in three tiles, an entry in three of them", tall())
    for rank in (1, 3, 16, 17):
        file = packed([5, 11], [[sign_form(rank), sign_form(rank, "F8_E4M3")]], seed=40 + rank)
        yield Valid(
            f"rank-{rank}",
            "6.2",
            f"factors of rank {rank}, F16 and e4m3: the order of the sum shows",
            file,
            prefixes=[3],
        )
    low = packed([5, 11], [[lowrank_form(2), lowrank_form(3, "F8_E4M3")]], seed=60)
    yield Valid("lowrank", "6.7", "both factor types", low, prefixes=[3])
    planes = packed([3, 10], [[S8, *[PLANE] * 15, S1, *[PLANE] * 15]], seed=61, dtype="F64")
    yield Valid("planes-15-twice", "6.5", "15 planes after each of two sign blocks", planes, prefixes=[3, 10, 18, 19])
    mixed = packed([70, 5], [[SPARSE, S1, PLANE, lowrank_form(1), S8, PLANE, SPARSE]] * 2, seed=62, group_rows=66)
    yield Valid(
        "kinds-mixed", "6.3", "a chain of seven blocks of four kinds, rows in two tiles", mixed, prefixes=[4, 8, 12]
    )
    files = {
        "zero-value": ("an entry of value zero", sparse(0.5, 3, {(1, 2): 0})),
        "zero-scale": ("a scale of zero", sparse(0.0, 3, {(1, 2): 0x40, (2, 9): 0xC0})),
        "negative-scale": ("a scale below zero", sparse(-0.3, 3, {(0, 0): 0x41, (2, 9): 0xC7})),
        "full": (
            "an entry for every element",
            sparse(0.7, 3, {(r, n): 0x30 + r + n for r in range(3) for n in range(10)}),
        ),
        "last-element": ("one entry, in the last column of the last row", sparse(1.5, 3, {(2, 9): 0x7E})),
    }
    for name, (shows, data) in files.items():
        file = packed([3, 10], [[SPARSE]], seed=63)
        file.blocks[2].data = data
        yield Valid(f"sparse-{name}", "6.6", shows, file)
    yield Valid("sparse-65536-columns", "6.6", "the most columns, an entry in the last one", _widest())
    every = packed([32, 8], [[lowrank_form(1, "F8_E4M3")]], seed=64, dtype="F32")
    codes = bytes(code for code in range(256) if code & 0x7F != 0x7F)[:32]
    every.blocks[2].data = codes + bytes([0x38, 0x01, 0x07, 0x08, 0x7E, 0xFE, 0x81, 0x80]) + f32(1.0)
    yield Valid("e4m3-codes", "8.1", "subnormal, largest and negative zero codes", every)
    small = packed([2, 3], [[S1, lowrank_form(1)]], seed=66, dtype="F64")
    small.blocks[2].data = bytes([5, 2]) + f16(5 * 2.0**-24, -3 * 2.0**-24, 2.0**-24, 2.0**-14, 1023 * 2.0**-24)
    small.blocks[3].data = f16(1.0, -0.0, 1.0, -7 * 2.0**-24, 0.0)
    small.blocks[1].data = f16(2.0**-24, 1.0, -(2.0**-20))
    yield Valid("f16-subnormals", "8.1", "factors and scales below the smallest normal number of F16", small)
    tiny = packed([2, 2], [[S1]], seed=67, dtype="F64")
    tiny.tensors[0]["dtype"], tiny.tensors[1]["dtype"] = "BF16", "F32"
    tiny.blocks[0].data = bf16(2.0**-133, 2.0**-127)
    tiny.blocks[1].data = f32(2.0**-149, 3.0 * 2.0**-140)
    yield Valid("scale-subnormals", "8.1", "scales below the smallest normal number of BF16 and F32", tiny)


def _widest() -> File:
    file = packed([1, 65536], [[SPARSE]], seed=65)
    ones = bytes([0x3C]) * (2 * 65536)
    file.forms.append({"kind": "raw", "codec": "zstd"})
    stored = ZSTD_MAGIC + frame_header(len(ones)) + frame_blocks(ones, 512)
    file.blocks[1] = Block(1, 0, 2, ones, stored_data=stored)
    file.blocks[2].data = sparse(0.5, 1, {(0, 0): 0x38, (0, 65535): 0x39})
    return file


# --- rounding -------------------------------------------------------------------------------------------------------


def rounding() -> Iterator[Valid]:
    """§6.3, the last step: values that a second rounding on the way, or a flush of subnormals, would change."""
    # The powers of two that a value is the sum of: binary64 holds each sum exactly.
    cases = {
        "BF16": [[0, -8], [0, -8, -30], [0, -7, -8], [0, -8, -9], [-1, -9, -40]],
        "F16": [
            [0, -11],
            [0, -11, -40],
            [0, -10, -11],
            [0, -11, -12],
            [-24, -25],
            [-25],
            [-25, -45],
            [-26],
            [-14, -25],
        ],
        "F32": [[0, -24], [0, -24, -48], [0, -23, -24], [0, -24, -25]],
        "F64": [[0, -48], [0, -30, -40]],
    }
    for dtype, values in cases.items():
        yield Valid(
            f"rounding-{dtype.lower()}",
            "6.3",
            f"ties, and values beside a tie, to {dtype}",
            _powers(dtype, values, 1.0),
        )
    largest = [[15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4], [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5], [16]]
    below = [*largest[0][:-1], 3, -8]
    yield Valid(
        "rounding-to-infinity",
        "6.3",
        "65520 becomes infinite in F16, what is below does not",
        _powers("F16", [*largest, below], 1.0),
    )
    tiny = [[-8], [-8, -20], [-7, -8], [0, -8], [-9], [1]]
    yield Valid(
        "rounding-subnormal-bf16",
        "6.3",
        "ties of subnormals of BF16",
        _powers("BF16", [[p + 1 for p in v] for v in tiny], 2.0**-127),
    )
    small = [[-24], [-24, -30], [-23, -24], [0, -24], [-25], [1]]
    yield Valid(
        "rounding-subnormal-f32",
        "6.3",
        "ties of subnormals of F32",
        _powers("F32", [[p + 1 for p in v] for v in small], 2.0**-127),
    )
    order = packed([2, 3], [[lowrank_form(3)]], seed=70, dtype="F64")
    # (2^-14·2^-14 + 2^15·2^14) − 2^15·2^14 keeps the small term only if it is not lost in a wider or reordered sum.
    order.blocks[2].data = f16(2.0**-14, 2.0**15, -(2.0**15), 2.0**15, -(2.0**15), 2.0**-14) + f16(
        *[2.0**-14, 2.0**14, 2.0**14] * 3
    )
    yield Valid("order-of-the-sum", "6.3", "terms that cancel: another order gives another value", order)


def _powers(dtype: str, values: list[list[int]], row_scale: float) -> File:
    """A matrix of one row for each value: level k adds the k-th power of two of each; the second column is negative."""
    rows, levels = len(values), max(map(len, values))
    file = packed([rows, 2], [[lowrank_form(rows, "F8_E4M3")] * levels], seed=71, dtype=dtype)
    file.blocks[0].data = f32(*[row_scale] * rows)
    file.blocks[1].data = f16(1.0, -1.0)
    identity = b"".join(b"\0" * r + b"\x38" + b"\0" * (rows - r - 1) for r in range(rows))
    for level in range(levels):
        scales = [2.0 ** v[level] if level < len(v) else 0.0 for v in values]
        file.blocks[2 + level].data = identity + b"\x38" * (2 * rows) + f32(*scales)
    return file
