/** The value of a tensor for a prefix, to the last bit: §6.3 and §7.5. A number of JavaScript is binary64. */
import { elementBytes, factors, floats, signBytes, sparse } from "./payload.js";
import { firstRowOf, rowsOf } from "./index-section.js";
import { view } from "./bytes.js";

/**
 * @typedef {import("./metadata.js").Tensor} Tensor
 * @typedef {import("./metadata.js").Form} Form
 * @typedef {{form: Form, data: Uint8Array}} Level
 */

/**
 * One tensor, of the shape of the model's own parameter.
 * @param {Tensor} tensor a packed one @param {(chain: number) => Level[]} levels the blocks of a chain, as far as they are held
 * @param {Float64Array} rowScale @param {Float64Array} colScale
 * @returns {{shape: number[], dtype: string, data: Uint8Array}} elements in row-major order
 */
export function rebuild(tensor, levels, rowScale, colScale) {
  const size = elementBytes(tensor.dtype);
  const data = new Uint8Array(tensor.elements * size);
  const store = storer(view(data), tensor.dtype);
  const place = tensor.transposed ? turned(tensor) : (/** @type {number} */ r, /** @type {number} */ n) => r * tensor.columns + n;
  for (let g = 0; g < tensor.chains; g++) {
    const chain = tensor.firstChain + g;
    const [first, rows] = [firstRowOf(tensor, chain), rowsOf(tensor, chain)];
    const total = chainTotal(tensor, rows, levels(chain));
    const columns = colScale.length > tensor.columns ? colScale.subarray(g * tensor.columns, (g + 1) * tensor.columns) : colScale;
    for (let r = 0; r < rows; r++) {
      for (let n = 0; n < tensor.columns; n++) {
        store(place(first + r, n) * size, total[r * tensor.columns + n] * rowScale[first + r] * columns[n]);
      }
    }
  }
  const shape = [...tensor.shape];
  if (tensor.transposed) shape.push(...shape.splice(-2).reverse());
  return { shape, dtype: tensor.dtype, data };
}

/** Where row r and column n go where the last two dimensions are exchanged. @param {Tensor} tensor */
function turned(tensor) {
  const height = tensor.shape.at(-2) ?? 1;
  return (/** @type {number} */ r, /** @type {number} */ n) => (Math.floor(r / height) * tensor.columns + n) * height + (r % height);
}

/** @param {Tensor} tensor @param {number} rows @param {Level[]} levels @returns {Float64Array} rows × columns */
function chainTotal(tensor, rows, levels) {
  const { columns } = tensor;
  const total = new Float64Array(rows * columns);
  /** @type {Float64Array} */
  let magnitude = new Float64Array(0);
  for (const { form, data } of levels) {
    if (form.kind === "sparse") {
      addEntries(total, columns, rows, data);
      continue;
    }
    if (form.kind === "plane") magnitude = magnitude.map((m) => m / 2);
    else magnitude = product(tensor, rows, form, data);
    const width = form.kind === "lowrank" ? 0 : signBytes(columns);
    for (let r = 0, at = 0; r < rows; r++) {
      for (let n = 0; n < columns; n++, at++) {
        const plus = !width || (data[r * width + (n >> 3)] >> (n & 7)) & 1;
        total[at] += plus ? magnitude[at] : -magnitude[at];
      }
    }
  }
  return total;
}

/** @param {Tensor} tensor @param {number} rows @param {Form} form @param {Uint8Array} data @returns {Float64Array} */
function product(tensor, rows, form, data) {
  const { u, v, scale } = factors(form, tensor, rows, data);
  const out = new Float64Array(rows * tensor.columns);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < form.rank; i++) u[r * form.rank + i] *= scale[i];
  }
  for (let r = 0, at = 0; r < rows; r++) {
    for (let n = 0; n < tensor.columns; n++, at++) {
      let sum = 0;
      for (let i = 0; i < form.rank; i++) sum += u[r * form.rank + i] * v[n * form.rank + i];
      out[at] = sum;
    }
  }
  return out;
}

/** @param {Float64Array} total @param {number} columns @param {number} rows @param {Uint8Array} data */
function addEntries(total, columns, rows, data) {
  const block = sparse(rows, data);
  for (let r = 0; r < rows; r++) {
    for (let k = block.begin[r]; k < block.begin[r + 1]; k++) {
      total[r * columns + block.columns[k]] += block.scale * block.values[k];
    }
  }
}

/** A scale vector as binary64. @param {Tensor} tensor @param {Uint8Array} data */
export const scaleVector = (tensor, data) => floats(data, 0, tensor.elements, tensor.dtype);

/** What stores a value at a byte, rounded once. @param {DataView} out @param {string} dtype @returns {(at: number, value: number) => void} */
function storer(out, dtype) {
  if (dtype === "F64") return (at, value) => out.setFloat64(at, value, true);
  if (dtype === "F32") return (at, value) => out.setFloat32(at, value, true);
  const [precision, least] = dtype === "F16" ? [11, -14] : [8, -126];
  return (at, value) => out.setUint16(at, narrow(value, precision, least), true);
}

const word = new DataView(new ArrayBuffer(8));

/**
 * The 16 bits of a value in a type of so many significant bits whose smallest normal number is 2^least: to nearest, ties to even,
 * from binary64 at once.
 * @param {number} value not NaN @param {number} precision @param {number} least
 */
function narrow(value, precision, least) {
  word.setFloat64(0, value);
  const high = word.getUint32(0);
  const sign = high >>> 31 << 15;
  // Numbers of the table below −1022 have the exponent −1023 here: far below what either type can hold.
  const exponent = Math.max(((high >>> 20) & 0x7ff) - 1023, least);
  const infinite = ((1 << (16 - precision)) - 1) << (precision - 1);
  if (exponent > -least + 1) return sign | infinite;
  const steps = Math.abs(value) / 2 ** (exponent - precision + 1);
  let whole = Math.floor(steps);
  const rest = steps - whole;
  if (rest > 0.5 || (rest === 0.5 && whole & 1)) whole++;
  // Exponent and significand as one number: a carry raises the exponent, up to infinity.
  return sign | Math.min(((exponent - least) << (precision - 1)) + whole, infinite);
}
