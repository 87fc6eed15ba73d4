/** An open file: opening (§7.1), planning (§7.3), reading (§7.4), verifying (§7.2) and rebuilding (§7.5). */
import { BstkError, need, shown } from "./errors.js";
import { digest, equal, firstNonZero, hex } from "./bytes.js";
import * as indexSection from "./index-section.js";
import * as metadataSection from "./metadata.js";
import * as payload from "./payload.js";
import * as rebuilding from "./rebuild.js";
import * as superblock from "./superblock.js";
import { VolumeSource, extents, lastUpTo } from "./volumes.js";
import * as zstd from "./zstd.js";

/** What the first request asks for. */
export const FIRST_READ = 16384;
/** Bytes of blocks that are read at a time, unless one block is larger. */
const SPAN = 8 << 20;
/** What is said once of a volume, of which nothing more is read then. */
const VOLUME_FAULTS = new Set(["volume-missing", "volume-truncated", "volume-trailing-bytes"]);

/**
 * @typedef {import("./source.js").Source} Source
 * @typedef {import("./metadata.js").Tensor} Tensor
 * @typedef {{number: number, tensor: Tensor, chain: number, firstRow: number, rows: number, level: number,
 *   form: import("./metadata.js").Form, offset: number, stored: number, length: number, worth: number,
 *   digest: Uint8Array}} Block `offset` counts from the first byte of the file
 * @typedef {{blocks: number, residentBytes: number, offset: number, length: number}} Plan
 */

/**
 * Open an object: one request, or two where the head is beyond the first one.
 * @param {Source} source @param {{root?: string}} [options] the root that the object must have, 64 hexadecimal digits
 * @returns {Promise<Container>}
 */
export async function openContainer(source, { root } = {}) {
  try {
    await zstd.ready();
    const { lead, size } = await source.start(FIRST_READ);
    const s = superblock.decode(lead.subarray(0, superblock.SIZE));
    const own = s.objectLength;
    need(BigInt(size) >= own, "truncated", `the object has ${size} bytes of ${own}`, size);
    need(BigInt(size) === own, "trailing-bytes", `the object has ${size} bytes, not ${own}`, size);
    const rest = s.headLength - lead.length;
    const head = rest > 0 ? join(lead, await source.get(lead.length, rest)) : lead.subarray(0, s.headLength);
    need(root === undefined || root.toLowerCase() === s.root, "root-mismatch", `the root is ${s.root}, not ${root}`, 96);
    const sections = head.subarray(superblock.SIZE);
    need(hex(digest(s.covered, sections)) === s.root, "head-digest", "the head does not have the digest that the root says", 96);
    return new Container(source, s, sections, lead);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** @param {Uint8Array} a @param {Uint8Array} b */
function join(a, b) {
  const out = new Uint8Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

export class Container {
  /** @type {Float64Array} resident bytes of the first n blocks, for n from 0 to the available ones */
  #resident;
  /** @type {Map<number, number[]> | undefined} chain to its blocks */
  #chains = undefined;
  #lead;
  /** @type {Map<string, import("./metadata.js").Attachment>} by their names: a hostile file can have a million */
  #attachments;

  /**
   * Steps 8 to 11; call `openContainer`.
   * @param {Source} source @param {superblock.Superblock} s @param {Uint8Array} sections @param {Uint8Array} lead
   */
  constructor(source, s, sections, lead) {
    const stored = sections.subarray(0, s.metadataStored);
    this.metadata = metadataSection.decode(zstd.decompress(stored, s.metadataLength, "metadata-compression", "the metadata"), s.hasVolumes);
    metadataSection.checkAttachmentOffsets(this.metadata.attachments, s.attachmentsLength);
    const index = zstd.decompress(sections.subarray(s.metadataStored), s.indexLength, "index-compression", "the index");
    this.index = indexSection.decode(index, this.metadata, s.blocksOffset, s.fileLength);
    /** What the table says of the volumes; they are read from there if `apart`. */
    this.volumes = extents(this.metadata, s, this.index);
    this.apart = s.objectLength !== s.presentLength;
    const joins = !this.apart || this.volumes[0].length === s.objectLength;
    need(joins, "superblock-invalid", `an object of ${s.objectLength} bytes, which is not the first volume`, 88);
    /** @type {Source} */
    this.source = this.apart ? new VolumeSource(source, this.volumes) : source;
    this.superblock = s;
    /** Bytes of the file that there are. */
    this.size = Number(s.presentLength);
    this.root = s.root;
    this.version = `1.${s.minor}`;
    this.required = this.index.required;
    // The object is there with this size, so that everything in it is a number that JavaScript holds exactly.
    this.blocksOffset = Number(s.blocksOffset);
    this.available = this.#countAvailable();
    this.#resident = new Float64Array(this.available + 1);
    for (let b = 0; b < this.available; b++) this.#resident[b + 1] = this.#resident[b] + this.index.length[b];
    this.#lead = lead;
    this.#attachments = new Map(this.metadata.attachments.map((item) => [item.name, item]));
  }

  /** Step 11. */
  #countAvailable() {
    const { count, required, offset, stored } = this.index;
    const [first, present] = [this.superblock.blocksOffset, this.superblock.presentLength];
    const endOf = (/** @type {number} */ blocks) =>
      blocks ? first + offset[blocks - 1] + BigInt(stored[blocks - 1]) : first;
    let [available, high] = [0, count];
    while (available < high) {
      const middle = Math.ceil((available + high) / 2);
      if (endOf(middle) <= present) available = middle;
      else high = middle - 1;
    }
    const end = endOf(available);
    need(end === present, "superblock-invalid", `a present length of ${present}, which is not where a block ends`, 80);
    need(available >= required, "superblock-invalid", "a prefix file that lacks required blocks", 80);
    return available;
  }

  /** All tensors, scale vectors included. */
  get tensors() {
    return this.metadata.tensors;
  }

  /** The smallest budget. */
  get minimumBytes() {
    return this.#resident[this.required];
  }

  /** Resident bytes of all available blocks: what 100 % means. */
  get totalBytes() {
    return this.#resident[this.available];
  }

  /** A tensor by its name or an alias. @param {string} name @returns {Tensor} */
  tensor(name) {
    const own = this.metadata.aliases.get(name) ?? name;
    const found = this.tensors.find((tensor) => tensor.name === own);
    if (!found) throw new BstkError("error", `no tensor ${shown(name)}`);
    return found;
  }

  /** @param {number} number @returns {Block} */
  block(number) {
    const { index } = this;
    const tensor = this.tensors[index.tensor[number]];
    const chain = index.chain[number];
    return {
      number,
      tensor,
      chain,
      firstRow: indexSection.firstRowOf(tensor, chain),
      rows: indexSection.rowsOf(tensor, chain),
      level: index.level[number],
      form: this.metadata.forms[index.form[number]],
      offset: this.blocksOffset + Number(index.offset[number]),
      stored: index.stored[number],
      length: index.length[number],
      worth: index.worth[number],
      digest: index.digest.subarray(32 * number, 32 * number + 32),
    };
  }

  /** The blocks of a chain, in the order of their levels. @param {number} chain @returns {number[]} */
  chain(chain) {
    if (!this.#chains) {
      this.#chains = new Map();
      for (let b = 0; b < this.index.count; b++) {
        const of = this.#chains.get(this.index.chain[b]);
        if (of) of.push(b);
        else this.#chains.set(this.index.chain[b], [b]);
      }
    }
    return this.#chains.get(chain) ?? [];
  }

  /** The block that is a level of a chain. @param {number} chain @param {number} level @returns {Block} */
  levelOf(chain, level) {
    const number = this.chain(chain)[level];
    need(number !== undefined, "index-missing", `chain ${chain} has no level ${level}`);
    return this.block(number);
  }

  /** The longest prefix within a budget. @param {number} budget bytes @returns {Plan} */
  plan(budget) {
    const sound = typeof budget === "number" && Number.isInteger(budget) && budget >= 0;
    need(sound, "budget-invalid", `${budget} is no number of bytes`);
    need(budget >= this.minimumBytes, "budget-too-small", `the smallest budget is ${this.minimumBytes} bytes`);
    let [low, high] = [this.required, this.available];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#resident[middle] <= budget) low = middle;
      else high = middle - 1;
    }
    return { blocks: low, residentBytes: this.#resident[low], offset: this.blocksOffset, length: this.#end(low) - this.blocksOffset };
  }

  /** Where the first `blocks` blocks end in the file. @param {number} blocks */
  #end(blocks) {
    return blocks ? this.blocksOffset + Number(this.index.offset[blocks - 1]) + this.index.stored[blocks - 1] : this.blocksOffset;
  }

  /** Bytes of the object; what the first request brought is not asked for again. @param {number} offset @param {number} length */
  async #read(offset, length) {
    if (offset + length <= this.#lead.length) return this.#lead.subarray(offset, offset + length);
    return this.source.get(offset, length);
  }

  /** The checked payload of a block out of its stored bytes. @param {Block} block @param {Uint8Array} stored */
  decode(block, stored) {
    const what = `block ${block.number} (${block.form.kind}, level ${block.level} of ${shown(block.tensor.name)})`;
    const fine = equal(digest(stored), block.digest);
    need(fine, "block-digest", `${what} does not have its digest: damaged or changed; fetch it again`, block.offset);
    const data = block.form.codec === "zstd" ? zstd.decompress(stored, block.length, "block-codec", what) : stored;
    payload.check(block.form, block.tensor, block.rows, data, what);
    return data;
  }

  /** The checked payload of one block. @param {number} number */
  async readBlock(number) {
    need(number < this.available, "truncated", `a prefix file of ${this.available} blocks does not hold block ${number}`);
    const block = this.block(number);
    return this.decode(block, await this.#read(block.offset, block.stored));
  }

  /**
   * Blocks [first, stop) with their payloads, or what is wrong with them, in order; read in ranges of some MiB.
   * @param {number} first @param {number} stop
   * @returns {AsyncGenerator<{block: Block, data?: Uint8Array, problems: BstkError[]}>}
   */
  async *blocks(first, stop) {
    while (first < stop) {
      const begin = this.block(first).offset;
      let last = first + 1;
      const volume = this.volumeOf(first);
      const most = volume ? Math.min(stop, volume.firstBlock + volume.blocks) : stop;
      while (last < most && this.#end(last + 1) - begin <= SPAN) last++;
      // Each range reaches to where the next one begins, so that all padding is read and checked.
      const end = last < stop ? this.block(last).offset : this.#end(last);
      const bytes = await this.#read(begin, end - begin);
      for (let b = first; b < last; b++) {
        const block = this.block(b);
        const at = block.offset - begin;
        const after = b + 1 < last ? this.block(b + 1).offset - begin : bytes.length;
        /** @type {BstkError[]} */
        const problems = [];
        const data = collect(problems, () => this.decode(block, bytes.subarray(at, at + block.stored)));
        collect(problems, () => checkZero(bytes.subarray(at + block.stored, after), block.offset + block.stored));
        yield { block, data, problems };
      }
      first = last;
    }
  }

  /** The volume that a block lies in, if the file is not one object. @param {number} block */
  volumeOf(block) {
    return this.apart ? this.volumes[lastUpTo(this.volumes, ({ firstBlock }) => firstBlock <= block)] : undefined;
  }

  /** The payloads of the first `blocks` blocks. @param {number} blocks @returns {Promise<Uint8Array[]>} */
  async readPrefix(blocks) {
    const out = [];
    for await (const { data, problems } of this.blocks(0, blocks)) {
      if (problems.length) throw problems[0];
      if (data) out.push(data);
    }
    return out;
  }

  /** An attached file, checked. @param {string} name @returns {Promise<Uint8Array>} */
  async attachment(name) {
    const item = this.#attachments.get(name);
    if (!item) throw new BstkError("attachment-unknown", `no attachment ${shown(name)}`);
    if (item.data) return item.data;
    const at = this.superblock.headLength + (item.offset ?? 0);
    const stored = await this.#read(at, item.stored ?? 0);
    const what = `attachment ${shown(name)}`;
    need(equal(digest(stored), item.digest ?? new Uint8Array(0)), "attachment-digest", `${what} does not have its digest`, at);
    return item.codec === "zstd" ? zstd.decompress(stored, item.length, "attachment-codec", what) : stored;
  }

  /**
   * Read everything and check it.
   * @param {(done: {bytes: number, block?: Block, problems: BstkError[]}) => unknown} [progress] after each part
   * @returns {Promise<BstkError[]>} what is wrong, in the order of the file
   */
  async verify(progress = () => {}) {
    /** @type {BstkError[]} */
    const found = [];
    for (const { name } of this.metadata.attachments) {
      try {
        await this.attachment(name);
      } catch (error) {
        found.push(known(error));
      }
    }
    const tail = this.superblock.headLength + Number(this.superblock.attachmentsLength);
    if (tail < this.blocksOffset) {
      const padding = await this.#read(tail, this.blocksOffset - tail);
      collect(found, () => checkZero(padding, tail));
    }
    await progress({ bytes: this.blocksOffset, problems: [...found] });
    for (let next = 0; next < this.available; ) {
      try {
        for await (const { block, problems } of this.blocks(next, this.available)) {
          found.push(...problems);
          next = block.number + 1;
          await progress({ bytes: block.offset + block.stored, block, problems });
        }
      } catch (error) {
        const volume = this.volumeOf(next);
        if (!volume || !(error instanceof BstkError) || !VOLUME_FAULTS.has(error.reason)) throw error;
        found.push(error);
        next = volume.firstBlock + volume.blocks;
      }
    }
    return found;
  }

  /**
   * A tensor for a prefix, of the shape of the model's own parameter.
   * @param {string} name of the tensor, or an alias @param {Uint8Array[]} payloads what `readPrefix` gave
   * @returns {{shape: number[], dtype: string, data: Uint8Array}}
   */
  rebuild(name, payloads) {
    const tensor = this.tensor(name);
    if (!tensor.packed) return { shape: tensor.shape, dtype: tensor.dtype, data: this.#raw(tensor, payloads) };
    const scale = (/** @type {number} */ number) => rebuilding.scaleVector(this.tensors[number], this.#raw(this.tensors[number], payloads));
    const held = (/** @type {number} */ chain) => this.chain(chain).filter((b) => b < payloads.length);
    const levels = (/** @type {number} */ chain) => held(chain).map((b) => ({ form: this.block(b).form, data: payloads[b] }));
    return rebuilding.rebuild(tensor, levels, scale(tensor.rowScale), scale(tensor.colScale));
  }

  /** @param {Tensor} tensor @param {Uint8Array[]} payloads */
  #raw(tensor, payloads) {
    return payloads[this.levelOf(tensor.firstChain, 0).number];
  }

  /** Give the source back. */
  async close() {
    await this.source.close();
  }
}

/** @template T @param {BstkError[]} problems @param {() => T} check @returns {T | undefined} */
function collect(problems, check) {
  try {
    return check();
  } catch (error) {
    problems.push(known(error));
    return undefined;
  }
}

/** @param {unknown} error @returns {BstkError} */
function known(error) {
  if (error instanceof BstkError && !["source", "not-found", "access-denied", "range-unsupported", "short-read", "source-changed"].includes(error.reason)) return error;
  throw error;
}

/** @param {Uint8Array} padding @param {number} offset where it lies */
function checkZero(padding, offset) {
  const at = firstNonZero(padding);
  need(at < 0, "padding", "padding that is not zero", offset + at);
}
