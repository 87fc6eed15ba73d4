/** The metadata map and everything in it: §4. */
import { BstkError, need, shown } from "./errors.js";
import { Float, decode as decodeMsgpack } from "./msgpack.js";
import * as R from "./registry.js";

/**
 * @typedef {{name: string, shape: number[], dtype: string, packed: boolean, groupRows: number, rowScale: number,
 *   colScale: number, transposed: boolean, rows: number, columns: number, elements: number, firstChain: number,
 *   chains: number, isScale: boolean}} Tensor `rows` and `columns`: of the matrix that a packed tensor is
 * @typedef {{kind: string, codec: string, rank: number, factors: string}} Form
 * @typedef {{name: string, length: number, data?: Uint8Array, codec?: string, digest?: Uint8Array, offset?: number,
 *   stored?: number}} Attachment
 * @typedef {{metric: string, text: string, tokens: number, window: number, dense: number, points: [number, number][]}} Curve
 * @typedef {{writer: string, tensors: Tensor[], forms: Form[], aliases: Map<string, string>, attachments: Attachment[],
 *   curves: Curve[], extra: Map<string, unknown>, chains: number, volumes: Volume[]}} Metadata `volumes`: those after the first
 * @typedef {{name: string, firstBlock: number}} Volume
 */

const encoder = new TextEncoder();

/** @param {Uint8Array} data the decoded section @param {boolean} hasVolumes @returns {Metadata} */
export function decode(data, hasVolumes) {
  const top = new Fields(decodeMsgpack(data), "the metadata");
  const writer = top.name("writer");
  const tensors = readTensors(top.array("tensors"));
  const forms = top.array("forms").map((item, i) => readForm(new Fields(item, `form ${i}`)));
  const names = new Set(tensors.map((tensor) => tensor.name));
  const aliases = readAliases(top.map("aliases"), names);
  const attachments = readAttachments(top.array("attachments"));
  const curves = top.array("curves").map((item, i) => readCurve(new Fields(item, `curve ${i}`)));
  const extra = top.map("extra");
  const volumes = hasVolumes ? readVolumes(top.array("volumes")) : [];
  top.end();
  const last = tensors.at(-1);
  return { writer, tensors, forms, aliases, attachments, curves, extra, volumes, chains: last ? last.firstChain + last.chains : 0 };
}

const value = (/** @type {unknown} */ fine, /** @type {string} */ message) => need(fine, "metadata-value", message);

/** The values of one map, each taken once; whatever nobody took is an unknown key. */
class Fields {
  /** @param {unknown} item @param {string} what for messages */
  constructor(item, what) {
    value(item instanceof Map, `${what} is not a map`);
    this.items = /** @type {Map<string, unknown>} */ (item);
    this.what = what;
    /** @type {string[]} */
    this.taken = [];
  }

  /** @param {string} key */
  has(key) {
    return this.items.has(key);
  }

  /** @param {string} key @returns {unknown} */
  take(key) {
    const item = this.items.get(key);
    if (item === undefined) throw new BstkError("metadata-key", `${this.what} lacks the key ${key}`);
    this.taken.push(key);
    return item;
  }

  /** @param {string} key @param {(item: unknown) => boolean} fits @param {string} type @returns {any} */
  typed(key, fits, type) {
    const item = this.take(key);
    value(fits(item), `${key} of ${this.what} is not ${type}`);
    return item;
  }

  /** @param {string} key @returns {string} */
  text(key) {
    return this.typed(key, (item) => typeof item === "string", "text");
  }

  /** @param {string} key */
  name(key) {
    return checkName(this.text(key), `${key} of ${this.what}`);
  }

  /** @param {string} key @param {number} least @param {number} most inclusive @returns {number} */
  integer(key, least, most) {
    const fits = (/** @type {unknown} */ item) => typeof item === "number" && item >= least && item <= most;
    return this.typed(key, fits, `an integer from ${least} to ${most}`);
  }

  /** @param {string} key @returns {number} */
  float(key) {
    return toFloat(this.take(key), `${key} of ${this.what}`);
  }

  /** @param {string} key @returns {unknown[]} */
  array(key) {
    return this.typed(key, Array.isArray, "an array");
  }

  /** @param {string} key @returns {Map<string, unknown>} */
  map(key) {
    return this.typed(key, (item) => item instanceof Map, "a map");
  }

  /** @param {string} key @returns {Uint8Array} */
  bytes(key) {
    return this.typed(key, (item) => item instanceof Uint8Array, "bytes");
  }

  end() {
    if (this.taken.length === this.items.size) return;
    const unknown = [...this.items.keys()].find((key) => !this.taken.includes(key));
    throw new BstkError("metadata-key", `${this.what} has an unknown key ${shown(unknown)}`);
  }
}

/** @param {unknown} item @param {string} what */
function toFloat(item, what) {
  if (item instanceof Float) return item.value;
  value(typeof item === "number" || typeof item === "bigint", `${what} is not a number`);
  return Number(item);
}

/** @param {string} name @param {string} what */
function checkName(name, what) {
  const bytes = encoder.encode(name).length;
  const fine = bytes >= 1 && bytes <= R.MAX_NAME_BYTES && !name.includes("\0");
  need(fine, "metadata-name", `${what} is not a name: ${shown(name)}`);
  return name;
}

/** @param {string} name @param {string} what */
function checkFileName(name, what) {
  checkName(name, what);
  const parts = name.split("/");
  const fine = !/[\\:]/.test(name) && parts.every((part) => part !== "" && part !== "." && part !== "..");
  need(fine, "metadata-name", `${what} is not a file name: ${shown(name)}`);
  return name;
}

/** @param {unknown[]} items @returns {Tensor[]} */
function readTensors(items) {
  value(items.length <= R.MAX_TENSORS, `more than ${R.MAX_TENSORS} tensors`);
  const names = new Set();
  let chains = 0;
  const tensors = items.map((item, i) => {
    const tensor = readTensor(new Fields(item, `tensor ${i}`), chains);
    need(!names.has(tensor.name), "metadata-duplicate", `two tensors are called ${shown(tensor.name)}`);
    names.add(tensor.name);
    chains += tensor.chains;
    value(chains <= R.MAX_CHAINS, `more than ${R.MAX_CHAINS} chains`);
    return tensor;
  });
  for (const tensor of tensors) if (tensor.packed) checkScales(tensor, tensors);
  return tensors;
}

/** @param {Fields} fields @param {number} firstChain @returns {Tensor} */
function readTensor(fields, firstChain) {
  const name = fields.name("name");
  const shape = fields.array("shape");
  value(shape.length <= R.MAX_DIMENSIONS, `${fields.what} has more than ${R.MAX_DIMENSIONS} dimensions`);
  let elements = 1;
  for (const size of shape) {
    value(typeof size === "number" && size >= 1 && size < R.MAX_BLOCK_BYTES, `a dimension of ${fields.what} is out of bounds`);
    // A product beyond 2^53 is rounded, but never below 2^40.
    elements *= /** @type {number} */ (size);
    value(elements <= R.MAX_BLOCK_BYTES, `${fields.what} has more than 2^40 elements`);
  }
  const dtype = fields.text("dtype");
  const type = R.DTYPES.get(dtype);
  value(type, `${fields.what} has the unknown element type ${shown(dtype)}`);
  const packed = fields.has("group_rows");
  const sizes = /** @type {number[]} */ (shape);
  const columns = sizes.at(-1) ?? 1;
  const rows = elements / columns;
  const tensor = { name, shape: sizes, dtype, packed, rows, columns, elements, firstChain, chains: 1, isScale: false };
  if (!packed) {
    fields.end();
    return { ...tensor, groupRows: 0, rowScale: -1, colScale: -1, transposed: false };
  }
  value(sizes.length >= 2, `${fields.what} is packed and has less than two dimensions`);
  value(type?.packed, `${fields.what} is packed and of type ${dtype}`);
  const groupRows = fields.integer("group_rows", 1, rows);
  const chains = Math.ceil(rows / groupRows);
  value(chains <= R.MAX_CHAINS, `${fields.what} has more than ${R.MAX_CHAINS} chains`);
  const rowScale = fields.integer("row_scale", 0, 2 ** 30);
  const colScale = fields.integer("col_scale", 0, 2 ** 30);
  const turned = fields.has("transposed") ? fields.typed("transposed", (item) => typeof item === "boolean", "a boolean") : false;
  fields.end();
  return { ...tensor, chains, groupRows, rowScale, colScale, transposed: turned };
}

/** @param {Tensor} tensor @param {Tensor[]} tensors */
function checkScales(tensor, tensors) {
  for (const number of [tensor.rowScale, tensor.colScale]) {
    const scale = tensors[number];
    const fine = scale && !scale.packed && R.DTYPES.get(scale.dtype)?.scale;
    value(fine, `a scale of ${shown(tensor.name)} is tensor ${number}, which is no raw tensor of a scale type`);
    scale.isScale = true;
  }
  const fits = (/** @type {number} */ number, /** @type {number[]} */ shape) => String(tensors[number].shape) === String(shape);
  value(fits(tensor.rowScale, [tensor.rows]), `the row scale of ${shown(tensor.name)} has another shape`);
  const columns = fits(tensor.colScale, [tensor.columns]) || fits(tensor.colScale, [tensor.chains, tensor.columns]);
  value(columns, `the column scale of ${shown(tensor.name)} has another shape`);
}

/** @param {Fields} fields @returns {Form} */
function readForm(fields) {
  const kind = fields.text("kind");
  const codec = fields.text("codec");
  const known = R.KINDS.get(kind);
  if (!known) throw new BstkError("kind-unknown", `${fields.what} has the block kind ${shown(kind)}, which this reader does not know`);
  checkCodec(codec, fields.what);
  let [rank, factors] = [0, ""];
  if (known.ranked) {
    rank = fields.integer("rank", 1, R.MAX_RANK);
    factors = fields.text("factors");
    value(R.DTYPES.get(factors)?.factors, `${fields.what} has factors of type ${shown(factors)}`);
  }
  fields.end();
  return { kind, codec, rank, factors };
}

/** @param {string} codec @param {string} what */
function checkCodec(codec, what) {
  need(R.CODECS.has(codec), "codec-unknown", `${what} has the codec ${shown(codec)}, which this reader does not know`);
}

/** @param {Map<string, unknown>} map @param {Set<string>} tensors @returns {Map<string, string>} */
function readAliases(map, tensors) {
  for (const [alias, name] of map) {
    checkName(alias, "an alias");
    need(!tensors.has(alias), "metadata-duplicate", `an alias and a tensor are called ${shown(alias)}`);
    value(typeof name === "string" && tensors.has(name), `the alias ${shown(alias)} is of no tensor`);
  }
  return /** @type {Map<string, string>} */ (map);
}

/** @param {unknown[]} items @returns {Attachment[]} */
function readAttachments(items) {
  const names = new Set();
  return items.map((item, i) => {
    const attachment = readAttachment(new Fields(item, `attachment ${i}`));
    need(!names.has(attachment.name), "metadata-duplicate", `two attachments are called ${shown(attachment.name)}`);
    names.add(attachment.name);
    return attachment;
  });
}

/** @param {Fields} fields @returns {Attachment} */
function readAttachment(fields) {
  const name = checkFileName(fields.text("name"), `name of ${fields.what}`);
  const length = fields.integer("length", 0, R.MAX_ATTACHMENT);
  if (fields.has("data")) {
    const data = fields.bytes("data");
    fields.end();
    value(data.length === length, `${fields.what} has ${data.length} bytes, not ${length}`);
    return { name, length, data };
  }
  const codec = fields.text("codec");
  checkCodec(codec, fields.what);
  const digest = fields.bytes("digest");
  value(digest.length === 32, `${fields.what} has a digest of ${digest.length} bytes`);
  const offset = fields.take("offset");
  const sound = typeof offset === "number" || (typeof offset === "bigint" && offset <= R.MAX_FILE_BYTES);
  value(sound && Number(offset) >= 0, `offset of ${fields.what} is not an integer from 0 to 2^62`);
  const stored = fields.integer("stored", 1, R.MAX_ATTACHMENT);
  fields.end();
  const fine = codec === "none" ? stored === length : length <= R.expansionLimit(stored);
  value(fine, `${fields.what} cannot be ${length} bytes out of ${stored}`);
  return { name, length, codec, digest, offset: Number(offset), stored };
}

/** @param {Fields} fields @returns {Curve} */
function readCurve(fields) {
  const metric = fields.name("metric");
  const text = fields.text("text");
  const tokens = fields.integer("tokens", 0, 2 ** 50);
  const window = fields.integer("window", 0, 2 ** 50);
  const dense = fields.float("dense");
  let before = -1;
  const points = fields.array("points").map((point) => {
    value(Array.isArray(point) && point.length === 2, `a point of ${fields.what} is not a pair`);
    const [blocks, measured] = /** @type {unknown[]} */ (point);
    value(typeof blocks === "number" && blocks > before && blocks <= R.MAX_BLOCKS, `a point of ${fields.what} is out of bounds or order`);
    before = /** @type {number} */ (blocks);
    return /** @type {[number, number]} */ ([before, toFloat(measured, `a point of ${fields.what}`)]);
  });
  fields.end();
  return { metric, text, tokens, window, dense, points };
}

/** @param {unknown[]} items @returns {Volume[]} */
function readVolumes(items) {
  value(items.length >= 1 && items.length <= R.MAX_VOLUMES, `${items.length} volumes after the first`);
  const names = new Set();
  let before = -1;
  return items.map((item, i) => {
    const fields = new Fields(item, `volume ${i + 2}`);
    const name = fields.text("name");
    const fine = name.length <= R.MAX_VOLUME_NAME && /^[A-Za-z0-9_][A-Za-z0-9._-]*$/.test(name);
    need(fine, "metadata-name", `${fields.what} has a name that volumes cannot have: ${shown(name)}`);
    const firstBlock = fields.integer("first_block", 0, R.MAX_BLOCKS);
    fields.end();
    value(firstBlock > before, `${fields.what} does not begin after the one before it`);
    before = firstBlock;
    need(!names.has(name.toLowerCase()), "metadata-duplicate", `two volumes are called ${shown(name)}`);
    names.add(name.toLowerCase());
    return { name, firstBlock };
  });
}

/**
 * Step 9 of §7.1: external attachments follow each other without a gap.
 * @param {Attachment[]} attachments @param {bigint} region bytes
 */
export function checkAttachmentOffsets(attachments, region) {
  let end = 0n;
  for (const { name, data, offset, stored } of attachments) {
    if (data) continue;
    need(BigInt(offset ?? -1) === end, "attachment-offset", `attachment ${shown(name)} does not begin where the one before it ends`);
    end += BigInt(stored ?? 0);
  }
  need(end === region, "attachment-offset", `the attachments take ${end} bytes of a region of ${region}`);
}
