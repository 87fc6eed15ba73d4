/** A file in several objects, read as if they were joined: §4.8 and §7.7. */
import { BstkError, need } from "./errors.js";

/**
 * @typedef {import("./source.js").Source} Source
 * @typedef {{name: string, firstBlock: number, blocks: number, offset: bigint, length: bigint}} Extent one volume; of the first
 *   one `name` is empty
 */

/**
 * The volumes that the table of a file makes, the first one among them; none without a table.
 * @param {import("./metadata.js").Metadata} metadata @param {import("./superblock.js").Superblock} s
 * @param {{count: number, offset: BigUint64Array}} index
 * @returns {Extent[]}
 */
export function extents(metadata, s, index) {
  const { volumes } = metadata;
  if (!volumes.length) return [];
  const last = volumes[volumes.length - 1].firstBlock;
  need(last < index.count, "metadata-value", `the last volume begins with block ${last}, but there are ${index.count}`);
  const firsts = [0, ...volumes.map(({ firstBlock }) => firstBlock), index.count];
  const starts = [0n, ...volumes.map(({ firstBlock }) => s.blocksOffset + index.offset[firstBlock]), s.fileLength];
  return ["", ...volumes.map(({ name }) => name)].map((name, i) => ({
    name,
    firstBlock: firsts[i],
    blocks: firsts[i + 1] - firsts[i],
    offset: starts[i],
    length: starts[i + 1] - starts[i],
  }));
}

/**
 * The last volume of which something holds that holds for all before it.
 * @param {Extent[]} volumes @param {(volume: Extent) => boolean} holds it does for the first @returns {number}
 */
export function lastUpTo(volumes, holds) {
  let [low, high] = [0, volumes.length - 1];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (holds(volumes[middle])) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The objects of a file as one source. Each is opened by the request for the first bytes of it that are wanted. */
export class VolumeSource {
  /** @type {Map<number, Promise<Source>>} those after the first that were opened, or are being */
  #opened = new Map();
  /** @type {Source[]} */
  #others = [];

  /** @param {Source} first @param {Extent[]} volumes all of them */
  constructor(first, volumes) {
    this.first = first;
    this.volumes = volumes;
    this.name = first.name;
  }

  get requests() {
    return this.#others.reduce((sum, { requests }) => sum + requests, this.first.requests);
  }

  get bytes() {
    return this.#others.reduce((sum, { bytes }) => sum + bytes, this.first.bytes);
  }

  start(/** @type {number} */ length) {
    return this.first.start(length);
  }

  /** @param {number} offset @param {number} length @returns {Promise<Uint8Array>} */
  async get(offset, length) {
    let number = lastUpTo(this.volumes, ({ offset: start }) => start <= BigInt(offset));
    const parts = [];
    for (let done = 0; done < length; number++) {
      const volume = this.volumes[number];
      const at = offset + done - Number(volume.offset);
      const last = number + 1 === this.volumes.length;
      const count = last ? length - done : Math.min(length - done, Number(volume.length) - at);
      parts.push(number ? await this.#read(number, at, count) : await this.first.get(at, count));
      done += count;
    }
    if (parts.length === 1) return parts[0];
    const out = new Uint8Array(length);
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }

  /** @param {number} number @param {number} offset @param {number} length */
  async #read(number, offset, length) {
    const { name } = this.volumes[number];
    try {
      const known = this.#opened.get(number);
      if (known) return await (await known).get(offset, length);
      // Who comes while it is opened waits until it is known to be that volume.
      const beginning = this.#begin(number, offset, length);
      const opening = beginning.then(({ source }) => source);
      this.#opened.set(number, opening);
      opening.catch(() => this.#opened.delete(number));
      return (await beginning).lead;
    } catch (error) {
      if (!(error instanceof BstkError) || error.reason !== "not-found") throw error;
      throw new BstkError("volume-missing", `volume ${name} is not there (${error.message}): all volumes belong into one folder`);
    }
  }

  /** @param {number} number @param {number} offset @param {number} length */
  async #begin(number, offset, length) {
    const { name, length: expected } = this.volumes[number];
    if (!this.first.sibling) throw new BstkError("not-found", "what the first one was opened from has no others");
    const source = this.first.sibling(name);
    this.#others.push(source);
    const { lead, size } = await (source.begin ? source.begin(offset, length) : begin(source, offset, length));
    const what = `volume ${name} has ${size} of ${expected} bytes; see that it is that volume and not another`;
    need(BigInt(size) >= expected, "volume-truncated", what, size);
    need(BigInt(size) <= expected, "volume-trailing-bytes", what, Number(expected));
    return { source, lead };
  }

  async close() {
    for (const source of [...this.#others, this.first]) await source.close();
  }
}

/** The first bytes that are wanted of a source that can only begin at its start. @param {Source} source @param {number} offset @param {number} length */
async function begin(source, offset, length) {
  const { size } = await source.start(1);
  return { lead: offset + length <= size ? await source.get(offset, length) : new Uint8Array(0), size };
}
