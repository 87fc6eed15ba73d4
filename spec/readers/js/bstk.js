/**
 * Reads `.bstk` files, by specification 1.1. Runs in browsers and in Node 18 and newer.
 *
 *     const file = await open("https://example.org/model.bstk");
 *     const { blocks } = file.plan(80 * 2 ** 20);
 *     const payloads = await file.readPrefix(blocks);
 *     const { shape, dtype, data } = file.rebuild("model.embed_tokens.weight", payloads);
 */
import { openContainer } from "./src/container.js";
import { BlobSource, HttpSource, MemorySource } from "./src/source.js";

export { Container, FIRST_READ } from "./src/container.js";
export { BstkError } from "./src/errors.js";
export { readSignature } from "./src/signature.js";
export { BlobSource, HttpSource, MemorySource } from "./src/source.js";

/**
 * Open a file.
 * @param {string | URL | Uint8Array | Blob | import("./src/source.js").Source} from a URL; in Node also a path; bytes; a chosen
 *   file; or a source of one's own
 * @param {{root?: string}} [options] the root that it must have, 64 hexadecimal digits
 */
export async function open(from, options) {
  return openContainer(await source(from), options);
}

/** @param {string | URL | Uint8Array | Blob | import("./src/source.js").Source} from */
async function source(from) {
  if (from instanceof Uint8Array) return new MemorySource(from);
  if (from instanceof Blob) return new BlobSource(from);
  if (typeof from !== "string" && !(from instanceof URL)) return from;
  if (globalThis.document || /^https?:/.test(String(from))) return new HttpSource(from);
  const { FileSource } = await import("./src/node-file.js");
  const { fileURLToPath } = await import("node:url");
  return new FileSource(String(from).startsWith("file:") ? fileURLToPath(from) : String(from));
}
