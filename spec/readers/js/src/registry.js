/** Versions, registries and limits: §3, §7.6 and §8. */

export const MAJOR = 1;
/** Must-understand bits that are registered, by number (§3). */
export const MUST_FEATURES = new Map([
  [0, "volumes"],
  [1, "base-model"],
]);

/** Those of them that this reader implements, by name. */
export const IMPLEMENTED = new Set(["volumes"]);
/** The bit of files that are cut into volumes (§4.8). */
export const VOLUMES = 1n;

/** Element types: bytes, and whether packed tensors, scale vectors and factors may have them (§8.1). */
export const DTYPES = new Map([
  ["F64", { bytes: 8, packed: true, scale: false, factors: false }],
  ["F32", { bytes: 4, packed: true, scale: true, factors: false }],
  ["F16", { bytes: 2, packed: true, scale: true, factors: true }],
  ["BF16", { bytes: 2, packed: true, scale: true, factors: false }],
  ["F8_E4M3", { bytes: 1, packed: false, scale: false, factors: true }],
  ["I64", { bytes: 8, packed: false, scale: false, factors: false }],
  ["I32", { bytes: 4, packed: false, scale: false, factors: false }],
  ["I16", { bytes: 2, packed: false, scale: false, factors: false }],
  ["I8", { bytes: 1, packed: false, scale: false, factors: false }],
  ["U8", { bytes: 1, packed: false, scale: false, factors: false }],
  ["BOOL", { bytes: 1, packed: false, scale: false, factors: false }],
]);

/** Block kinds (§8.2), and whether a form of the kind has rank and factors (§4.3). */
export const KINDS = new Map([
  ["raw", { ranked: false }],
  ["sign", { ranked: true }],
  ["plane", { ranked: false }],
  ["sparse", { ranked: false }],
  ["lowrank", { ranked: true }],
]);
export const CODECS = new Set(["none", "zstd"]);

export const ALIGNMENT = 64;
export const MAX_HEAD_SECTION = 2 ** 30;
export const MAX_METADATA = 2 ** 25;
export const MAX_EXPANSION = 256;
export const EXPANSION_FLOOR = 2 ** 16;
export const MAX_BLOCKS = 2 ** 22;
export const MAX_BLOCK_BYTES = 2 ** 40;
export const MAX_FILE_BYTES = 2n ** 62n;
export const MAX_TENSORS = 2 ** 19;
export const MAX_CHAINS = 2 ** 22;
export const MAX_DIMENSIONS = 8;
export const MAX_RANK = 2 ** 12;
export const MAX_PLANES = 15;
export const MAX_SPARSE_COLUMNS = 2 ** 16;
export const MAX_NAME_BYTES = 1024;
export const MAX_DEPTH = 16;
export const MAX_CONTAINERS = 2 ** 21;
export const MAX_ATTACHMENT = 2 ** 30;
export const MAX_VOLUMES = 2 ** 16;
export const MAX_VOLUME_NAME = 255;

/** The first multiple of 64 that is not below `n`. @param {number} n */
export const align = (n) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;

/** The most bytes that so many stored ones may decode to. @param {number} stored */
export const expansionLimit = (stored) => MAX_EXPANSION * stored + EXPANSION_FLOOR;
