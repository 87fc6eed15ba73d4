/** Offsets beyond 2^53, which a number of JavaScript does not hold: a head can declare them, and a prefix file is real. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { decode } from "../src/index-section.js";

const [CHAINS, LEVELS, COLUMNS, RANK] = [8192, 3, 2 ** 26, 4096];
const COUNT = CHAINS * LEVELS;
/** Bytes of each block, about 2^39. */
const LENGTH = (1 + COLUMNS) * RANK * 2;

const tensor = { name: "w", shape: [CHAINS, COLUMNS], dtype: "F16", packed: true, groupRows: 1, rowScale: 0, colScale: 0 };
const matrix = { transposed: false, rows: CHAINS, columns: COLUMNS, elements: CHAINS * COLUMNS, firstChain: 0, chains: CHAINS, isScale: false };
/** @type {any} */
const metadata = { tensors: [{ ...tensor, ...matrix }], forms: [{ kind: "lowrank", codec: "none", rank: RANK, factors: "F16" }], curves: [], chains: CHAINS };

/** @param {(offsets: BigUint64Array) => void} [change] */
function index(change = () => {}) {
  const data = new Uint8Array(16 + 68 * COUNT);
  new BigUint64Array(data.buffer, 0, 2).set([BigInt(COUNT), 0n]);
  const offsets = new BigUint64Array(data.buffer, 16, COUNT).map((_, b) => BigInt(b) * BigInt(LENGTH));
  change(offsets);
  new BigUint64Array(data.buffer, 16, COUNT).set(offsets);
  for (const column of [1, 2]) new BigUint64Array(data.buffer, 16 + 8 * COUNT * column, COUNT).fill(BigInt(LENGTH));
  const at = 16 + (8 * 3 + 32 + 4) * COUNT;
  new Uint32Array(data.buffer, at, COUNT).forEach((_, b, chain) => (chain[b] = b % CHAINS));
  new Uint16Array(data.buffer, at + 4 * COUNT, COUNT).forEach((_, b, level) => (level[b] = Math.floor(b / CHAINS)));
  return data;
}

const end = BigInt(COUNT) * BigInt(LENGTH);

test("a file of more than 2^53 bytes is checked to the byte", () => {
  assert.ok(end > 2n ** 53n && LENGTH % 64 === 0);
  const found = decode(index(), metadata, 1024n, 1024n + end);
  assert.equal(found.count, COUNT);
  assert.throws(() => decode(index(), metadata, 1024n, 1025n + end), { reason: "index-offset" });
  const shifted = index((offsets) => (offsets[COUNT - 1] += 1n));
  assert.throws(() => decode(shifted, metadata, 1024n, 1025n + end), { reason: "index-offset" });
});

test("sums that pass 2^53 in a file that says it is small are refused", () => {
  assert.throws(() => decode(index(), metadata, 1024n, 1024n + (end % 2n ** 53n)), { reason: "index-offset" });
  assert.throws(() => decode(index(), metadata, 1024n, 2n ** 53n - 1n), { reason: "index-offset" });
});
