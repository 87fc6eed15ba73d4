/** Files in volumes, from servers and from files that were chosen together. */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { BlobSource, HttpSource, open } from "../bstk.js";
import { bytes, json, objects, refusal } from "../conformance.js";
import { decode } from "../src/metadata.js";

const vector = json("valid/volumes-2.json");
const [FIRST, SECOND] = vector.objects;

/** A server of a folder with two volumes, and what was asked of it. */
async function server() {
  const folder = new Map([FIRST, SECOND].map((name) => [`/m/${name}`, bytes(`valid/${name}`)]));
  const tags = new Map([...folder.keys()].map((path) => [path, '"1"']));
  /** @type {string[]} */
  const asked = [];
  const http = createServer((request, response) => {
    const { pathname, search } = new URL(request.url ?? "", "http://x");
    asked.push(pathname.slice(3) + search);
    const data = folder.get(pathname);
    const tag = tags.get(pathname) ?? "";
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    const begin = Number(from);
    if (!data) return response.writeHead(404).end();
    if (request.headers["if-match"] && request.headers["if-match"] !== tag) return response.writeHead(412).end();
    if (begin >= data.length) return response.writeHead(416, { "Content-Range": `bytes */${data.length}` }).end();
    const body = data.subarray(begin, Number(to) + 1);
    const range = `bytes ${begin}-${begin + body.length - 1}/${data.length}`;
    return response.writeHead(206, { "Content-Length": body.length, "Content-Range": range, ETag: tag }).end(body);
  });
  await new Promise((resolve) => http.listen(0, "127.0.0.1", () => resolve(undefined)));
  http.unref();
  const { port } = /** @type {import("node:net").AddressInfo} */ (http.address());
  const close = () => {
    http.closeAllConnections?.();
    return new Promise((resolve) => http.close(resolve));
  };
  return { url: `http://127.0.0.1:${port}/m/${FIRST}`, folder, tags, asked, close };
}

test("a volume is asked for when its bytes are wanted, and at the same query", async () => {
  const { url, asked, close } = await server();
  const file = await open(`${url}?key=a/b#part`);
  assert.equal(file.root, vector.root);
  await file.readPrefix(4);
  assert.deepEqual(asked, [`${FIRST}?key=a/b`]);
  await file.readBlock(4);
  await file.readBlock(9);
  assert.deepEqual(asked.slice(1), Array(2).fill(`${SECOND}?key=a/b`));
  assert.deepEqual([file.source.requests, file.source.bytes], [3, bytes(`valid/${FIRST}`).length + file.block(4).stored + file.block(9).stored]);
  assert.deepEqual(await file.verify(), []);
  await close();
});

test("a volume that is missing, short, long, swapped or replaced is named as what it is", async () => {
  for (const [change, reason] of /** @type {[(folder: Map<string, Uint8Array>, path: string) => unknown, string][]} */ ([
    [(folder, path) => folder.delete(path), "volume-missing"],
    [(folder, path) => folder.set(path, bytes(`valid/${SECOND}`).subarray(1)), "volume-truncated"],
    [(folder, path) => folder.set(path, new Uint8Array(1)), "volume-truncated"],
    [(folder, path) => folder.set(path, bytes(`valid/${FIRST}`)), "volume-trailing-bytes"],
    [(folder, path) => folder.set(path, new Uint8Array(bytes(`valid/${SECOND}`).length)), "block-digest"],
  ])) {
    const { url, folder, close } = await server();
    change(folder, `/m/${SECOND}`);
    const file = await open(new HttpSource(url, { attempts: 1 }));
    assert.equal(await refusal(() => file.readBlock(9)), reason);
    assert.equal((await file.readPrefix(4)).length, 4);
    await close();
  }
  const { url, tags, close } = await server();
  const file = await open(url);
  await file.readBlock(4);
  tags.set(`/m/${SECOND}`, '"2"');
  assert.equal(await refusal(() => file.readBlock(9)), "source-changed");
  await close();
});

test("several reads of a volume that is not open yet open it once", async () => {
  const { url, asked, close } = await server();
  const file = await open(url);
  await Promise.all([4, 5, 6, 7].map((b) => file.readBlock(b)));
  assert.deepEqual(asked, [FIRST, ...Array(4).fill(SECOND)]);
  await close();
});

test("files that were chosen together", async () => {
  const chosen = vector.objects.map((/** @type {string} */ name) => new File([bytes(`valid/${name}`)], name));
  const file = await open(new BlobSource(chosen[0], FIRST, chosen));
  assert.deepEqual(await file.verify(), []);
  const alone = await open(chosen[0]);
  assert.deepEqual((await alone.verify()).map(({ reason }) => reason), ["volume-missing"]);
});

test("a source that reads over the end of a volume", async () => {
  const file = await open(objects("valid", vector));
  const [first, second] = vector.objects.map((/** @type {string} */ name) => bytes(`valid/${name}`));
  const over = await file.source.get(first.length - 3, 10);
  assert.deepEqual([...over], [...first.subarray(-3), ...second.subarray(0, 7)]);
});

test("as many volumes as there may be, and one more", () => {
  const text = (/** @type {string} */ value) => String.fromCharCode(0xa0 + value.length) + value;
  const metadata = (/** @type {number} */ count) => {
    const parts = ["\x88", text("writer"), text("x"), text("aliases"), "\x80", text("extra"), "\x80"];
    for (const key of ["tensors", "forms", "attachments", "curves"]) parts.push(text(key), "\x90");
    const four = (/** @type {number} */ n) => String.fromCharCode(n >> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255);
    parts.push(text("volumes"), "\xdd", four(count));
    for (let i = 0; i < count; i++) parts.push("\x82", text("name"), text(`v${i}`), text("first_block"), "\xce", four(i));
    return new Uint8Array(Buffer.from(parts.join(""), "latin1"));
  };
  assert.equal(decode(metadata(2 ** 16), true).volumes.length, 2 ** 16);
  assert.throws(() => decode(metadata(2 ** 16 + 1), true), { reason: "metadata-value" });
});
