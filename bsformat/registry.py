"""The registries of the format: versions, features, element types, block kinds, codecs (spec §3 and §8)."""

from types import MappingProxyType
from typing import Final

MAJOR: Final = 1
MINOR: Final = 1

#: Must-understand feature bits of format 1.x, bit number -> name. A file that sets one that this reader does not
#: implement is refused by that name.
MUST_FEATURES: Final = MappingProxyType({0: "volumes", 1: "base-model"})
KNOWN_MUST: Final = 1

#: Bytes of one element, by the names that safetensors uses.
DTYPE_BYTES: Final = MappingProxyType(
    {
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
)
FLOAT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
#: Element types of the scale vectors and of the factors of a block.
SCALE_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
FACTOR_DTYPES: Final = frozenset({"F16", "F8_E4M3"})

KINDS: Final = ("raw", "sign", "plane", "sparse", "lowrank")
CODECS: Final = ("none", "zstd")

#: Every block, and the first one, starts at a multiple of this many bytes of the file.
ALIGNMENT: Final = 64

# Bounds that a reader applies before it allocates anything (spec §7). Bytes, or counts where the name says so.
MAX_HEAD_SECTION: Final = 1 << 30
MAX_METADATA: Final = 1 << 25
MAX_EXPANSION: Final = 256
EXPANSION_FLOOR: Final = 1 << 16
MAX_BLOCKS: Final = 1 << 22
MAX_BLOCK_BYTES: Final = 1 << 40
MAX_FILE_BYTES: Final = 1 << 62
MAX_TENSORS: Final = 1 << 19
MAX_CHAINS: Final = 1 << 22
MAX_DIMENSIONS: Final = 8
MAX_RANK: Final = 1 << 12
MAX_PLANES: Final = 15
MAX_SPARSE_COLUMNS: Final = 1 << 16
MAX_NAME_BYTES: Final = 1024
MAX_DEPTH: Final = 16
MAX_CONTAINERS: Final = 1 << 21
MAX_ATTACHMENT: Final = 1 << 30
MAX_VOLUMES: Final = 1 << 16
MAX_VOLUME_NAME: Final = 255


def align(offset: int) -> int:
    """The first multiple of `ALIGNMENT` that is not below ``offset``."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def expansion_limit(stored: int) -> int:
    """The most bytes that ``stored`` compressed bytes may declare to decode to."""
    return MAX_EXPANSION * stored + EXPANSION_FLOOR
