/** Block payloads: their layout and their checks (§6.1, §6.2, §6.5 to §6.7). */
import { need } from "./errors.js";
import { view } from "./bytes.js";
import { DTYPES } from "./registry.js";

/**
 * @typedef {import("./metadata.js").Tensor} Tensor
 * @typedef {import("./metadata.js").Form} Form
 */

const TILE = 64;

/** @param {number} columns bytes of a row of signs */
export const signBytes = (columns) => Math.ceil(columns / 8);

/** Whether a payload of `length` bytes is what a form makes of `rows` rows. @param {Form} form @param {Tensor} tensor @param {number} rows @param {number} length */
export function payloadFits(form, tensor, rows, length) {
  if (form.kind === "raw") return length === tensor.elements * elementBytes(tensor.dtype);
  if (form.kind === "sparse") {
    const entries = (length - sparseFixed(rows)) / 3;
    return Number.isInteger(entries) && entries >= 1 && entries <= rows * tensor.columns;
  }
  const signs = form.kind === "lowrank" ? 0 : rows * signBytes(tensor.columns);
  return length === signs + (form.kind === "plane" ? 0 : factorBytes(form, tensor, rows));
}

/** @param {string} dtype */
export const elementBytes = (dtype) => DTYPES.get(dtype)?.bytes ?? 0;

/** @param {Form} form @param {Tensor} tensor @param {number} rows */
function factorBytes(form, tensor, rows) {
  const values = (rows + tensor.columns) * form.rank * elementBytes(form.factors);
  return values + (form.factors === "F8_E4M3" ? 4 * form.rank : 0);
}

const sparseFixed = (/** @type {number} */ rows) => 4 + 4 * Math.ceil(rows / TILE) + 2 * rows;

/** §8.1. @param {number} code */
export function e4m3(code) {
  const [e, m] = [(code >> 3) & 15, code & 7];
  if (e === 15 && m === 7) return NaN;
  return (code & 0x80 ? -1 : 1) * (e ? (8 + m) * 2 ** (e - 10) : m * 2 ** -9);
}

const E4M3 = Float64Array.from({ length: 256 }, (_, code) => e4m3(code));

/** @param {number} bits */
function half(bits) {
  const [e, m] = [(bits >> 10) & 31, bits & 1023];
  const sign = bits & 0x8000 ? -1 : 1;
  if (e === 31) return m ? NaN : sign * Infinity;
  return sign * (e ? (1024 + m) * 2 ** (e - 25) : m * 2 ** -24);
}

/** `count` elements from byte `at`, as binary64. @param {Uint8Array} data @param {number} at @param {number} count @param {string} dtype */
export function floats(data, at, count, dtype) {
  const bytes = view(data);
  const out = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    if (dtype === "F8_E4M3") out[i] = E4M3[data[at + i]];
    else if (dtype === "F16") out[i] = half(bytes.getUint16(at + 2 * i, true));
    else if (dtype === "F32") out[i] = bytes.getFloat32(at + 4 * i, true);
    else if (dtype === "BF16") out[i] = bfloat(bytes.getUint16(at + 2 * i, true));
    else throw new TypeError(dtype);
  }
  return out;
}

const scratch = new DataView(new ArrayBuffer(4));

/** @param {number} bits */
function bfloat(bits) {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** U, V and scale of a `sign` or `lowrank` block; scale is all 1 with factors F16. @param {Form} form @param {Tensor} tensor @param {number} rows @param {Uint8Array} data */
export function factors(form, tensor, rows, data) {
  const size = elementBytes(form.factors);
  const u = form.kind === "lowrank" ? 0 : rows * signBytes(tensor.columns);
  const v = u + rows * form.rank * size;
  const end = v + tensor.columns * form.rank * size;
  return {
    u: floats(data, u, rows * form.rank, form.factors),
    v: floats(data, v, tensor.columns * form.rank, form.factors),
    scale: form.factors === "F8_E4M3" ? floats(data, end, form.rank, "F32") : new Float64Array(form.rank).fill(1),
  };
}

/** The arrays of a `sparse` block; `begin[r]` to `begin[r + 1]` are the entries of row r. @param {number} rows @param {Uint8Array} data */
export function sparse(rows, data) {
  const bytes = view(data);
  const tiles = Math.ceil(rows / TILE);
  const fixed = sparseFixed(rows);
  const count = (data.length - fixed) / 3;
  const begin = new Float64Array(rows + 1).fill(count, rows);
  for (let r = 0; r < rows; r++) {
    begin[r] = bytes.getUint32(4 + 4 * Math.floor(r / TILE), true) + bytes.getUint16(4 + 4 * tiles + 2 * r, true);
  }
  const columns = new Uint16Array(count);
  for (let k = 0; k < count; k++) columns[k] = bytes.getUint16(fixed + 2 * k, true);
  return { scale: bytes.getFloat32(0, true), begin, columns, values: floats(data, fixed + 2 * count, count, "F8_E4M3") };
}

/**
 * Everything that §6 says of the content of a payload, whose length is right already.
 * @param {Form} form @param {Tensor} tensor @param {number} rows @param {Uint8Array} data @param {string} what
 */
export function check(form, tensor, rows, data, what) {
  const finite = (/** @type {Float64Array} */ values, /** @type {string} */ of) =>
    need(values.every(Number.isFinite), "block-values", `${what} has ${of} that is not finite`);
  if (form.kind === "raw") {
    if (tensor.isScale) finite(floats(data, 0, tensor.elements, tensor.dtype), "a scale");
    return;
  }
  if (form.kind === "sparse") return checkSparse(tensor, rows, data, what);
  if (form.kind !== "lowrank") checkSigns(tensor.columns, rows, data, what);
  if (form.kind === "plane") return;
  const { u, v, scale } = factors(form, tensor, rows, data);
  finite(u, "a factor");
  finite(v, "a factor");
  finite(scale, "a scale");
}

/** @param {number} columns @param {number} rows @param {Uint8Array} data @param {string} what */
function checkSigns(columns, rows, data, what) {
  const width = signBytes(columns);
  const spare = columns % 8 ? 0xff & (0xff << columns % 8) : 0;
  for (let r = 1; spare && r <= rows; r++) {
    need(!(data[r * width - 1] & spare), "block-padding", `${what} has bits after the last column of row ${r - 1}`);
  }
}

/** @param {Tensor} tensor @param {number} rows @param {Uint8Array} data @param {string} what */
function checkSparse(tensor, rows, data, what) {
  const { scale, begin, columns, values } = sparse(rows, data);
  const starts = view(data).getUint32(4, true);
  need(starts === 0, "block-rows", `${what} does not begin with its first entry`);
  const offsets = 4 + 4 * Math.ceil(rows / TILE);
  for (let r = 0; r < rows; r++) {
    const fine = r % TILE || view(data).getUint16(offsets + 2 * r, true) === 0;
    need(fine && begin[r] <= begin[r + 1], "block-rows", `row ${r} of ${what} begins where it may not`);
  }
  for (let r = 0; r < rows; r++) {
    for (let k = begin[r]; k < begin[r + 1]; k++) {
      const rises = k === begin[r] || columns[k] > columns[k - 1];
      need(rises && columns[k] < tensor.columns, "block-columns", `the columns of row ${r} of ${what} do not rise, or do not exist`);
    }
  }
  need(Number.isFinite(scale), "block-values", `${what} has a scale that is not finite`);
  need(values.every(Number.isFinite), "block-values", `${what} has an entry that is not a number`);
}
