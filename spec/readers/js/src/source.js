/**
 * Where the bytes of an object come from. A source has `start(length)`, the first bytes and the object's size in one request;
 * `get(offset, length)`, exactly those bytes or an error of §9.7; `close()`; and the counters `requests` and `bytes`. A source that knows where the
 * other volumes of a file are (§7.7) has `sibling(name)`, and these have `begin(offset, length)`: the bytes from there, as many as there are, and the
 * size of the object, in one request, the first one.
 */
import { BstkError, need } from "./errors.js";

/**
 * @typedef {{start(length: number): Promise<{lead: Uint8Array, size: number}>, get(offset: number, length: number): Promise<Uint8Array>, close(): Promise<void> | void, requests: number, bytes: number, name: string, sibling?: (name: string) => Source,
 *   begin?: (offset: number, length: number) => Promise<{lead: Uint8Array, size: number}>}} Source */

/** An object in memory. */
export class MemorySource {
  /** @param {Uint8Array} data @param {string} [name] @param {Map<string, Uint8Array>} [siblings] the other volumes of a file */
  constructor(data, name = "memory", siblings = new Map()) {
    this.data = data;
    this.name = name;
    this.siblings = siblings;
    this.requests = this.bytes = 0;
  }

  async start(/** @type {number} */ length) {
    return { lead: await this.get(0, Math.min(length, this.data.length)), size: this.data.length };
  }

  async get(/** @type {number} */ offset, /** @type {number} */ length) {
    need(offset + length <= this.data.length, "short-read", `${length} bytes at ${offset} of ${this.data.length}`, offset);
    this.requests++;
    this.bytes += length;
    return this.data.subarray(offset, offset + length);
  }

  async begin(/** @type {number} */ offset, /** @type {number} */ length) {
    const { length: size } = this.data;
    return { lead: await this.get(Math.min(offset, size), Math.max(0, Math.min(length, size - offset))), size };
  }

  sibling(/** @type {string} */ name) {
    const data = this.siblings.get(name);
    if (!data) throw new BstkError("not-found", `no object ${name}`);
    return new MemorySource(data, name);
  }

  close() {}
}

/** A file that a person chose in a browser. */
export class BlobSource {
  /** @param {Blob} blob @param {string} [name] @param {File[]} [others] that were chosen with it: the other volumes */
  constructor(blob, name = "file", others = []) {
    this.blob = blob;
    this.name = name;
    this.others = others;
    this.requests = this.bytes = 0;
  }

  async start(/** @type {number} */ length) {
    return { lead: await this.get(0, Math.min(length, this.blob.size)), size: this.blob.size };
  }

  async get(/** @type {number} */ offset, /** @type {number} */ length) {
    const data = new Uint8Array(await this.blob.slice(offset, offset + length).arrayBuffer());
    need(data.length === length, "short-read", `${data.length} of ${length} bytes at ${offset}`, offset);
    this.requests++;
    this.bytes += length;
    return data;
  }

  async begin(/** @type {number} */ offset, /** @type {number} */ length) {
    const { size } = this.blob;
    return { lead: await this.get(Math.min(offset, size), Math.max(0, Math.min(length, size - offset))), size };
  }

  sibling(/** @type {string} */ name) {
    const file = this.others.find((other) => other.name === name);
    if (!file) throw new BstkError("not-found", `${name} was not chosen with it`);
    return new BlobSource(file, name);
  }

  close() {}
}

const PAUSE = 200;

/** An object of an HTTP server, read by ranges (§11.2). */
export class HttpSource {
  #tag = "";
  #size = -1;

  /**
   * @param {string | URL} url
   * @param {{attempts?: number, fetch?: typeof fetch}} [options] how often a request is sent that meets a broken connection,
   *   status 429 or 5xx, or a short body
   */
  constructor(url, { attempts = 4, fetch: by = globalThis.fetch.bind(globalThis) } = {}) {
    this.name = String(url);
    this.attempts = attempts;
    this.fetch = by;
    this.requests = this.bytes = 0;
  }

  /** @param {number} length */
  async start(length) {
    const { data, size } = await this.#retried(0, length, true);
    return { lead: data, size };
  }

  /** @param {number} offset @param {number} length */
  async get(offset, length) {
    return (await this.#retried(offset, length, false)).data;
  }

  /** @param {number} offset @param {number} length */
  async begin(offset, length) {
    const { data, size } = await this.#retried(offset, length, true);
    return { lead: data, size };
  }

  /** The URL with another last segment; its query, which may hold a key to the folder, stays. @param {string} name */
  sibling(name) {
    const url = new URL(this.name, globalThis.document ? globalThis.location.href : undefined);
    url.pathname = url.pathname.replace(/[^/]*$/, name);
    url.hash = "";
    return new HttpSource(url, { attempts: this.attempts, fetch: this.fetch });
  }

  close() {}

  /** @param {number} offset @param {number} length @param {boolean} first */
  async #retried(offset, length, first) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#request(offset, length, first);
      } catch (error) {
        const known = error instanceof BstkError;
        const again = known ? error.reason === "source" || error.reason === "short-read" : true;
        if (!again || attempt >= this.attempts) {
          throw known ? error : new BstkError("source", `no answer from ${this.name}: ${error}`, offset);
        }
        await new Promise((resolve) => setTimeout(resolve, PAUSE * 2 ** (attempt - 1)));
      }
    }
  }

  /** @param {number} offset @param {number} length @param {boolean} first */
  async #request(offset, length, first) {
    const headers = new Headers({ Range: `bytes=${offset}-${offset + length - 1}` });
    // A page may send neither of these to another origin without asking it first. It sends the first one by itself.
    if (!globalThis.document) headers.set("Accept-Encoding", "identity");
    if (this.#tag && !this.#foreign()) headers.set("If-Match", this.#tag);
    this.requests++;
    const answer = await this.fetch(this.name, { headers, cache: "no-store" });
    try {
      return await this.#body(answer, offset, length, first);
    } catch (error) {
      await answer.body?.cancel().catch(() => {});
      throw error;
    }
  }

  #foreign() {
    return Boolean(globalThis.document) && new URL(this.name, globalThis.location.href).origin !== globalThis.location.origin;
  }

  /** @param {Response} answer @param {number} offset @param {number} length @param {boolean} first */
  async #body(answer, offset, length, first) {
    const refuse = (/** @type {string} */ reason, /** @type {string} */ why) => {
      throw new BstkError(reason, `${this.name}: ${why}`, offset);
    };
    const range = answer.headers.get("Content-Range") ?? "";
    const { status } = answer;
    // What ends before the range begins is an answer to the first request, of an object that may be another one than it should be.
    const told = /^bytes \*\/(\d+)$/.exec(range);
    if (first && status === 416 && told && Number(told[1]) <= offset) return { data: new Uint8Array(0), size: Number(told[1]) };
    if (first && status === 200 && answer.headers.get("Content-Length") === "0") return { data: new Uint8Array(0), size: 0 };
    if (status === 404 || status === 410) refuse("not-found", `status ${status}`);
    if (status === 401 || status === 403) refuse("access-denied", `status ${status}`);
    if (status === 412 || (status === 416 && !first)) refuse("source-changed", "the object is not the one that was opened; open it again");
    if (status === 200) refuse("range-unsupported", "the server ignores ranges and sends the whole object");
    if (status !== 206) refuse("source", `status ${status}`);
    const coding = answer.headers.get("Content-Encoding") ?? "identity";
    if (coding !== "identity") refuse("range-unsupported", `a range with the content coding ${coding}`);
    const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(range);
    if (!match) return refuse("range-unsupported", `no usable Content-Range (another origin must expose it): "${range}"`);
    const [begin, last, size] = match.slice(1).map(Number);
    if (!first && size !== this.#size) refuse("source-changed", `the object had ${this.#size} bytes and now has ${size}`);
    const tag = answer.headers.get("ETag") ?? "";
    if (!first && this.#tag && tag.startsWith('"') && tag !== this.#tag) refuse("source-changed", "another entity tag");
    const expected = Math.min(length, size - offset);
    if (begin !== offset || last !== offset + expected - 1) refuse("short-read", `${range} for ${length} bytes at ${offset}`);
    if (!first && expected < length) refuse("short-read", `the object ends within ${length} bytes at ${offset}`);
    const data = await exactly(answer, expected);
    if (!data) return refuse("short-read", `not the ${expected} bytes that Content-Range declares`);
    if (first) [this.#size, this.#tag] = [size, tag.startsWith('"') ? tag : ""];
    this.bytes += expected;
    return { data, size };
  }
}

/** The body, if it has so many bytes; never more of it in memory. @param {Response} answer @param {number} length */
async function exactly(answer, length) {
  const out = new Uint8Array(length);
  let at = 0;
  const reader = answer.body?.getReader();
  for (;;) {
    const { done, value } = (await reader?.read()) ?? { done: true, value: undefined };
    if (done) break;
    if (at + value.length > length) {
      await reader?.cancel();
      return undefined;
    }
    out.set(value, at);
    at += value.length;
  }
  return at === length ? out : undefined;
}
