/** Sources other than memory, and what no vector shows. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { BlobSource, open } from "../bstk.js";
import { VECTORS, bytes, json, refusal } from "../conformance.js";

const name = "every-kind";
const place = new URL(`valid/${name}.bstk`, VECTORS);

test("a path, a file URL, a blob and bytes are the same file", async () => {
  const data = bytes(`valid/${name}.bstk`);
  for (const from of [fileURLToPath(place), place, new Blob([data]), new BlobSource(new Blob([data])), data]) {
    const file = await open(from);
    assert.equal(file.root, json(`valid/${name}.json`).root);
    assert.deepEqual(await file.verify(), []);
    assert.equal(file.source.requests, 1);
    await file.close();
  }
});

test("a file that is not there", async () => {
  assert.equal(await refusal(() => open(fileURLToPath(new URL("none.bstk", VECTORS)))), "not-found");
});

test("damage is listed, all of it, and the rest is still checked", async () => {
  const data = bytes(`valid/${name}.bstk`).slice();
  const whole = await open(data);
  const offsets = [0, 3, 9].map((b) => whole.block(b).offset);
  for (const at of offsets) data[at] ^= 1;
  data[whole.superblock.headLength] ^= 1;
  data[offsets[1] - 1] ^= 1;
  const file = await open(data);
  const problems = await file.verify();
  const found = problems.map(({ reason, offset }) => [reason, offset]);
  assert.deepEqual(found, [
    ["attachment-digest", whole.superblock.headLength],
    ["block-digest", offsets[0]],
    ["padding", offsets[1] - 1],
    ["block-digest", offsets[1]],
    ["block-digest", offsets[2]],
  ]);
  await assert.rejects(file.readPrefix(1), { reason: "block-digest" });
});

test("attachments are found by name without a look at each of them", async () => {
  const file = await open(bytes(`valid/${name}.bstk`));
  assert.ok(file.metadata.attachments.length > 0);
  file.metadata.attachments.find = () => assert.fail("a file can have a million of them, and all are verified");
  assert.deepEqual(await file.verify(), []);
  await assert.rejects(file.attachment("constructor"), { reason: "attachment-unknown" });
});

test("an alias names the same tensor, and a block beyond a prefix is not held", async () => {
  const file = await open(bytes(`valid/${name}.bstk`));
  const held = await file.readPrefix(10);
  assert.deepEqual(file.rebuild("head", held), file.rebuild("w", held));
  const part = await open(bytes("valid/prefix-of-4-blocks.bstk"));
  assert.equal(part.root, file.root);
  await assert.rejects(part.readBlock(4), { reason: "truncated" });
});

test("a message shows a name of the file without control characters, and cut", async () => {
  const { BstkError } = await import("../bstk.js");
  const { shown } = await import("../src/errors.js");
  assert.equal(shown(`a\u0000\u001b[31m\u202e${"b".repeat(100)}`).length, 63);
  assert.match(shown("a\u001bb\u2028c"), /^"a.b.c"$/);
  assert.ok(new BstkError("error", "x") instanceof Error);
});
