/** The strict subset of MessagePack of §4.1. Maps become `Map`, floats `Float`, integers `number` or, beyond 2^53, `bigint`. */
import { BstkError } from "./errors.js";
import { MAX_CONTAINERS, MAX_DEPTH } from "./registry.js";
import { view } from "./bytes.js";

/** A float of the file: it must be told apart from an integer. */
export class Float {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** @param {Uint8Array} data @returns {Map<string, unknown>} */
export function decode(data) {
  const reader = new Reader(data);
  const value = reader.value(1);
  if (!(value instanceof Map)) throw bad("is not a map");
  if (reader.at !== data.length) throw bad("has bytes after its map");
  return value;
}

const bad = (/** @type {string} */ why) => new BstkError("metadata-msgpack", `the metadata ${why}`);

class Reader {
  /** @param {Uint8Array} data */
  constructor(data) {
    this.data = data;
    this.view = view(data);
    this.at = 0;
    this.containers = 0;
  }

  /** Step over `count` bytes and give where they begin. @param {number} count */
  take(count) {
    if (count > this.data.length - this.at) throw bad("ends within a value");
    this.at += count;
    return this.at - count;
  }

  /** @param {number} size 1, 2, 4 or 8 bytes */
  unsigned(size) {
    const at = this.take(size);
    if (size === 8) return plain(this.view.getBigUint64(at));
    return size === 4 ? this.view.getUint32(at) : size === 2 ? this.view.getUint16(at) : this.data[at];
  }

  /** @param {number} size */
  signed(size) {
    const at = this.take(size);
    if (size === 8) return plain(this.view.getBigInt64(at));
    return size === 4 ? this.view.getInt32(at) : size === 2 ? this.view.getInt16(at) : this.view.getInt8(at);
  }

  /** @param {number} depth of this value, were it a map or an array @returns {unknown} */
  value(depth) {
    const tag = this.data[this.take(1)];
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.map(tag & 15, depth);
    if (tag < 0xa0) return this.array(tag & 15, depth);
    if (tag < 0xc0) return this.text(tag & 31);
    if (tag >= 0xe0) return tag - 0x100;
    switch (tag) {
      case 0xc0:
        return null;
      case 0xc2:
      case 0xc3:
        return tag === 0xc3;
      case 0xc4:
      case 0xc5:
      case 0xc6:
        return this.bytes(this.length(1 << (tag - 0xc4)));
      case 0xca:
        return finite(this.view.getFloat32(this.take(4)));
      case 0xcb:
        return finite(this.view.getFloat64(this.take(8)));
      case 0xcc:
      case 0xcd:
      case 0xce:
      case 0xcf:
        return this.unsigned(1 << (tag - 0xcc));
      case 0xd0:
      case 0xd1:
      case 0xd2:
      case 0xd3:
        return this.signed(1 << (tag - 0xd0));
      case 0xd9:
      case 0xda:
      case 0xdb:
        return this.text(this.length(1 << (tag - 0xd9)));
      case 0xdc:
      case 0xdd:
        return this.array(this.length(2 << (tag - 0xdc)), depth);
      case 0xde:
      case 0xdf:
        return this.map(this.length(2 << (tag - 0xde)), depth);
      default:
        throw bad(`has a value of type ${tag.toString(16)}, which is not allowed`);
    }
  }

  /** @param {number} size @returns {number} */
  length(size) {
    return Number(this.unsigned(size));
  }

  /** @param {number} length */
  bytes(length) {
    const at = this.take(length);
    return this.data.slice(at, at + length);
  }

  /** @param {number} length */
  text(length) {
    const at = this.take(length);
    try {
      return utf8.decode(this.data.subarray(at, at + length));
    } catch {
      throw bad("has a text that is not UTF-8");
    }
  }

  /** @param {number} least the bytes that the content takes at the least @param {number} depth */
  enter(least, depth) {
    if (depth > MAX_DEPTH) throw bad(`is nested deeper than ${MAX_DEPTH}`);
    if (++this.containers > MAX_CONTAINERS) throw bad(`has more than ${MAX_CONTAINERS} maps and arrays`);
    if (least > this.data.length - this.at) throw bad("ends within a map or an array");
  }

  /** @param {number} count @param {number} depth */
  array(count, depth) {
    this.enter(count, depth);
    const out = [];
    for (let i = 0; i < count; i++) out.push(this.value(depth + 1));
    return out;
  }

  /** @param {number} count @param {number} depth */
  map(count, depth) {
    this.enter(2 * count, depth);
    const out = new Map();
    for (let i = 0; i < count; i++) {
      const tag = this.data[this.at];
      if (!((tag >= 0xa0 && tag < 0xc0) || (tag >= 0xd9 && tag <= 0xdb))) throw bad("has a key that is not text");
      const key = this.value(depth + 1);
      if (out.has(key)) throw bad("has the same key twice");
      out.set(key, this.value(depth + 1));
    }
    return out;
  }
}

/** @param {number} value */
function finite(value) {
  if (!Number.isFinite(value)) throw bad("has a float that is not finite");
  return new Float(value);
}

/** @param {bigint} value */
function plain(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
