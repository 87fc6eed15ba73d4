/** The index: §5. */
import { BstkError, need, shown } from "./errors.js";
import { view } from "./bytes.js";
import { payloadFits } from "./payload.js";
import * as R from "./registry.js";

/**
 * @typedef {import("./metadata.js").Metadata} Metadata
 * @typedef {{count: number, required: number, offset: BigUint64Array, stored: Float64Array, length: Float64Array,
 *   digest: Uint8Array, worth: Float32Array, chain: Uint32Array, level: Uint16Array, form: Uint16Array,
 *   tensor: Int32Array}} Index one entry a block; `offset` counts from the first block, `tensor` is the number of its tensor
 */

const ROW_BYTES = 68;

/**
 * @param {Uint8Array} data the decoded section @param {Metadata} metadata @param {bigint} blocksOffset
 * @param {bigint} fileLength @returns {Index}
 */
export function decode(data, metadata, blocksOffset, fileLength) {
  const index = columns(data);
  checkOffsets(index, blocksOffset, fileLength);
  checkChains(index, metadata);
  checkLengths(index, metadata);
  for (const curve of metadata.curves) {
    const last = curve.points.at(-1);
    need(!last || last[0] <= index.count, "metadata-value", "a point of a curve counts more blocks than the file has");
  }
  return index;
}

/** @param {Uint8Array} data @returns {Index} */
function columns(data) {
  const fits = (/** @type {unknown} */ fine, /** @type {string} */ message) => need(fine, "index-length", message);
  fits(data.length >= 16, `an index of ${data.length} bytes`);
  const [blocks, required] = [view(data).getBigUint64(0, true), view(data).getBigUint64(8, true)];
  fits(blocks >= 1n && blocks <= R.MAX_BLOCKS, `an index of ${blocks} blocks`);
  const count = Number(blocks);
  fits(data.length === 16 + ROW_BYTES * count, `an index of ${data.length} bytes for ${count} blocks`);
  fits(required <= blocks, `${required} required blocks of ${count}`);
  let at = 16;
  // Copies, because a column need not be aligned; the machine is taken to be little-endian, as every browser is.
  const column = (/** @type {number} */ bytes) => {
    at += bytes * count;
    return data.slice(at - bytes * count, at);
  };
  const offset = new BigUint64Array(column(8).buffer);
  const stored = bounded(new Uint32Array(column(8).buffer), "stored");
  const length = bounded(new Uint32Array(column(8).buffer), "length");
  return {
    count,
    required: Number(required),
    offset,
    stored,
    length,
    digest: column(32),
    worth: new Float32Array(column(4).buffer),
    chain: new Uint32Array(column(4).buffer),
    level: new Uint16Array(column(2).buffer),
    form: new Uint16Array(column(2).buffer),
    tensor: new Int32Array(count),
  };
}

/** What 2^32 is worth: numbers of 64 bits come as a low and a high half. */
const HALF = 2 ** 32;

/** Lengths of 64 bits as numbers, once they are known to be within the limit. @param {Uint32Array} halves @param {string} what */
function bounded(halves, what) {
  const out = new Float64Array(halves.length / 2);
  for (let b = 0; b < out.length; b++) {
    // Beyond 2^53 this is rounded, but not to below the limit.
    const length = halves[2 * b + 1] * HALF + halves[2 * b];
    if (!(length >= 1 && length <= R.MAX_BLOCK_BYTES)) {
      throw new BstkError("index-offset", `${what} of block ${b} is ${length}`);
    }
    out[b] = length;
  }
  return out;
}

/** @param {Index} index @param {bigint} blocksOffset @param {bigint} fileLength */
function checkOffsets(index, blocksOffset, fileLength) {
  // Where each block has to begin is exact as a number up to 2^53, and beyond it as a bigint, which takes ten times as long.
  const end = fileLength <= Number.MAX_SAFE_INTEGER ? BigInt(endOfSmall(index)) : endOfHuge(index);
  need(blocksOffset + end === fileLength, "index-offset", `the last block ends at ${blocksOffset + end}, the file at ${fileLength}`);
}

const misplaced = (/** @type {Index} */ index, /** @type {number} */ b, /** @type {number | bigint} */ start) =>
  new BstkError("index-offset", `block ${b} begins at ${index.offset[b]}, not at ${start}`);

/** @param {Index} index */
function endOfSmall(index) {
  const halves = new Uint32Array(index.offset.buffer);
  let end = 0;
  for (let b = 0; b < index.count; b++) {
    const start = R.align(end);
    // A sum beyond 2^53 is beyond the file too, and is found to be after the last block.
    if (halves[2 * b + 1] * HALF + halves[2 * b] !== start) throw misplaced(index, b, start);
    end = start + index.stored[b];
  }
  return end;
}

/** @param {Index} index */
function endOfHuge(index) {
  let end = 0n;
  for (let b = 0; b < index.count; b++) {
    const start = (end + 63n) & ~63n;
    if (index.offset[b] !== start) throw misplaced(index, b, start);
    end = start + BigInt(index.stored[b]);
  }
  return end;
}

/**
 * Chains, forms, worth, levels, planes, and the order of raw blocks: one after the other over all blocks, as §7.1 would have it.
 * @param {Index} index @param {Metadata} metadata
 */
function checkChains(index, { tensors, forms, chains }) {
  const { count, chain, form, level, required } = index;
  const firstChains = Int32Array.from(tensors, (tensor) => tensor.firstChain);
  for (let b = 0; b < count; b++) {
    need(chain[b] < chains, "index-chain", `block ${b} is of chain ${chain[b]}; there are ${chains}`);
    index.tensor[b] = ownerOf(firstChains, chain[b]);
  }
  const [raw, sign, plane] = ["raw", "sign", "plane"].map((kind) => forms.map((each) => each.kind === kind));
  for (let b = 0; b < count; b++) {
    const tensor = tensors[index.tensor[b]];
    const own = forms[form[b]];
    need(own, "index-form", `block ${b} has form ${form[b]}; there are ${forms.length}`);
    need(raw[form[b]] !== tensor.packed, "index-form", `block ${b} of kind ${own.kind} is of a ${tensor.packed ? "packed" : "raw"} tensor`);
    const wide = own.kind === "sparse" && tensor.columns > R.MAX_SPARSE_COLUMNS;
    need(!wide, "index-form", `block ${b} is sparse and of a tensor of ${tensor.columns} columns`);
  }
  for (let b = 0; b < count; b++) {
    const worth = index.worth[b];
    need(worth >= 0 && worth < Infinity, "index-worth", `block ${b} has the worth ${worth}`);
  }
  // Of the chains that have blocks alone: a few bytes can declare millions of chains.
  /** @type {Map<number, number>} */
  const levels = new Map();
  for (let b = 0; b < count; b++) {
    const due = levels.get(chain[b]) ?? 0;
    need(level[b] === due && (due === 0 || !raw[form[b]]), "index-level", `block ${b} has level ${level[b]}, not ${due}`);
    levels.set(chain[b], due + 1);
  }
  /** @type {Map<number, number>} planes since the last sign block, in chains where one can follow */
  const planes = new Map();
  for (let b = 0; b < count; b++) {
    if (sign[form[b]]) planes.set(chain[b], 0);
    else if (plane[form[b]]) {
      const before = planes.get(chain[b]);
      need(before !== undefined, "index-plane", `block ${b} is a plane after no sign block`);
      need(Number(before) < R.MAX_PLANES, "index-plane", `block ${b} is a plane too many`);
      planes.set(chain[b], Number(before) + 1);
    } else planes.delete(chain[b]);
  }
  for (const tensor of tensors) {
    need(tensor.packed || levels.has(tensor.firstChain), "index-missing", `tensor ${shown(tensor.name)} has no block`);
  }
  let sawOther = false;
  for (let b = 0; b < count; b++) {
    const fine = !raw[form[b]] || (!sawOther && b < required);
    need(fine, "index-order", `raw block ${b} comes after others, or is not required`);
    sawOther ||= !raw[form[b]];
  }
}

/** The last tensor whose first chain is not after a chain. @param {Int32Array} firstChains @param {number} chain */
function ownerOf(firstChains, chain) {
  let [low, high] = [0, firstChains.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (firstChains[middle] <= chain) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** @param {Index} index @param {Metadata} metadata */
function checkLengths(index, { tensors, forms }) {
  for (let b = 0; b < index.count; b++) {
    const tensor = tensors[index.tensor[b]];
    const form = forms[index.form[b]];
    const [stored, length] = [index.stored[b], index.length[b]];
    const decodes = form.codec === "none" ? stored === length : length <= R.expansionLimit(stored);
    need(decodes, "index-block-length", `block ${b} cannot be ${length} bytes out of ${stored}`);
    const rows = rowsOf(tensor, index.chain[b]);
    need(payloadFits(form, tensor, rows, length), "index-block-length", `block ${b} has ${length} bytes, which its form does not make`);
  }
}

/** Rows of a chain. @param {import("./metadata.js").Tensor} tensor @param {number} chain */
export function rowsOf(tensor, chain) {
  if (!tensor.packed) return 0;
  return Math.min(tensor.groupRows, tensor.rows - firstRowOf(tensor, chain));
}

/** @param {import("./metadata.js").Tensor} tensor @param {number} chain */
export function firstRowOf(tensor, chain) {
  return tensor.packed ? (chain - tensor.firstChain) * tensor.groupRows : 0;
}
