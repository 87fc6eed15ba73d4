"""The sound files that the invalid vectors are changes of."""

from .bits import Noise, f16, f32
from .file import Block, External, File
from .kinds import PLANE, RAW, RAW_ZSTD, SPARSE, factors, lowrank_form, sign_form, sparse

#: Rows and columns of the packed tensor: neither divides by 8.
M, N = 3, 10
VOCABULARY = b'{"a": 0, "b": 1}' * 8
MASK = bytes(range(20)) * 5
#: Numbers of the forms.
RAW_FORM, ZSTD_FORM, SIGN, SIGN8, PLANES, ENTRIES, LOW = range(7)
#: Numbers of the tensors, and of the chains too, since each has one.
NORM, MASKED, ROWS, COLUMNS, WEIGHT = range(5)


def sample() -> File:
    """One of everything: raw and packed tensors, a chain of every kind, an alias, attachments, a curve.

    Blocks: 0 to 3 raw, one compressed (1); then the levels 0 to 5 of tensor ``w``: sign, sign with e4m3 factors,
    plane, plane, sparse, lowrank.
    """
    noise = Noise(1)
    file = File()
    file.forms = [RAW, RAW_ZSTD, sign_form(1), sign_form(2, "F8_E4M3"), PLANE, SPARSE, lowrank_form(1)]
    file.tensors = [
        {"name": "norm", "shape": [4], "dtype": "F32"},
        {"name": "mask", "shape": [10, 10], "dtype": "U8"},
        {"name": "w.rows", "shape": [M], "dtype": "F32"},
        {"name": "w.columns", "shape": [N], "dtype": "F16"},
        {"name": "w", "shape": [M, N], "dtype": "F16", "group_rows": M, "row_scale": ROWS, "col_scale": COLUMNS},
    ]
    file.blocks = [
        Block(NORM, 0, RAW_FORM, f32(1, 2, 3, 4)),
        Block(MASKED, 0, ZSTD_FORM, MASK),
        Block(ROWS, 0, RAW_FORM, f32(1.0, 0.5, 2.0)),
        Block(COLUMNS, 0, RAW_FORM, f16(*[1.0] * N)),
        Block(WEIGHT, 0, SIGN, noise.signs(M, N) + factors(noise, M, N, file.forms[SIGN]), 2.0),
        Block(WEIGHT, 1, SIGN8, noise.signs(M, N) + factors(noise, M, N, file.forms[SIGN8]), 1.0),
        Block(WEIGHT, 2, PLANES, noise.signs(M, N), 0.5),
        Block(WEIGHT, 3, PLANES, noise.signs(M, N), 0.25),
        Block(WEIGHT, 4, ENTRIES, sparse(0.5, M, {(0, 3): 0x38, (0, 9): 0xB0, (2, 0): 0x7E}), 0.125),
        Block(WEIGHT, 5, LOW, factors(noise, M, N, file.forms[LOW]), 0.0625),
    ]
    file.aliases = {"head": "w"}
    file.inline = {"config.json": b"{}"}
    file.external = [External("tokenizer/vocab.json", VOCABULARY)]
    file.curves = [
        {
            "metric": "perplexity",
            "text": "none",
            "tokens": 1024,
            "window": 512,
            "dense": 25.0,
            "points": [[4, 1e9], [10, 26.5]],
        }
    ]
    return file


def tall() -> File:
    """One sparse block of 130 rows, of three tiles, with an entry in each of rows 0, 64 and 129."""
    file = File(forms=[RAW, SPARSE])
    file.tensors = [
        {"name": "w.rows", "shape": [130], "dtype": "F32"},
        {"name": "w.columns", "shape": [5], "dtype": "F16"},
        {"name": "w", "shape": [130, 5], "dtype": "F32", "group_rows": 130, "row_scale": 0, "col_scale": 1},
    ]
    file.blocks = [
        Block(0, 0, 0, f32(*[1.0] * 130)),
        Block(1, 0, 0, f16(*[1.0] * 5)),
        Block(2, 0, 1, sparse(0.25, 130, {(0, 1): 0x38, (64, 0): 0x40, (129, 4): 0xC0}), 1.0),
    ]
    return file


def framed() -> File:
    """A small file with a frame in each place that has one: metadata, index, a block, an attachment."""
    file = File(tensors=[{"name": "mask", "shape": [10, 10], "dtype": "U8"}], forms=[RAW_ZSTD])
    file.blocks = [Block(0, 0, 0, MASK)]
    file.external = [External("v", VOCABULARY, "zstd")]
    return file
