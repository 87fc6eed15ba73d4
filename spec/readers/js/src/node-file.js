/** A local file, in Node. */
import { open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { BstkError, need } from "./errors.js";

const REASONS = new Map([
  ["ENOENT", "not-found"],
  ["EACCES", "access-denied"],
  ["EPERM", "access-denied"],
]);

export class FileSource {
  /** @type {import("node:fs/promises").FileHandle | undefined} */
  #handle;

  /** @param {string} path */
  constructor(path) {
    this.name = path;
    this.requests = this.bytes = 0;
  }

  /** @param {number} length */
  async start(length) {
    const { size } = await this.#open();
    return { lead: await this.get(0, Math.min(length, size)), size };
  }

  async #open() {
    try {
      this.#handle ??= await open(this.name);
      return await this.#handle.stat();
    } catch (error) {
      const { code = "", message } = /** @type {NodeJS.ErrnoException} */ (error);
      throw new BstkError(REASONS.get(code) ?? "source", message);
    }
  }

  /** @param {number} offset @param {number} length */
  async get(offset, length) {
    if (!this.#handle) throw new BstkError("source", `${this.name} is not open`);
    const data = new Uint8Array(length);
    let at = 0;
    for (let got = 1; at < length && got; at += got) {
      got = (await this.#handle.read(data, at, length - at, offset + at)).bytesRead;
    }
    need(at === length, "short-read", `${at} of ${length} bytes at ${offset} of ${this.name}`, offset);
    this.requests++;
    this.bytes += length;
    return data;
  }

  /** @param {number} offset @param {number} length */
  async begin(offset, length) {
    const { size } = await this.#open();
    return { lead: await this.get(Math.min(offset, size), Math.max(0, Math.min(length, size - offset))), size };
  }

  /** The file of that name in the same folder. @param {string} name */
  sibling(name) {
    return new FileSource(join(dirname(this.name), name));
  }

  async close() {
    await this.#handle?.close();
    this.#handle = undefined;
  }
}
