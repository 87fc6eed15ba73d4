/** Every vector of the corpus, and every bit of three of its files turned. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { MemorySource, open } from "../bstk.js";
import { digest, hex } from "../src/bytes.js";
import { IMPLEMENTED } from "../src/registry.js";
import { VECTORS, bytes, json, objects, problemOf, refusal, report, vectors } from "../conformance.js";

const [valid, invalid, flips] = ["valid", "invalid", "flips"].map(vectors);

test("the corpus is whole, and none of its files has changed", () => {
  const { counts, blake3 } = json("vectors.json");
  assert.deepEqual([valid.length, invalid.length, flips.length], [counts.valid, counts.invalid, counts.flips]);
  assert.ok(valid.length >= 110 && invalid.length >= 630 && flips.length >= 5);
  for (const [path, sum] of Object.entries(blake3)) assert.equal(hex(digest(bytes(path))), sum, path);
});

for (const vector of valid) {
  test(`reads ${vector.name}: ${vector.shows}`, async () => {
    const file = await open(objects("valid", vector), { root: vector.root.toUpperCase() });
    assert.deepEqual(await file.verify(), []);
    const { name, section, shows, objects: names, ...facts } = vector;
    assert.ok(name && section && shows && names.length >= 1);
    assert.deepEqual(await report(file, vector), facts);
  });
}

for (const vector of invalid) {
  // What a later version gives a meaning to is no fault to a reader that knows it.
  const skip = IMPLEMENTED.has(vector.unless) && `this reader implements ${vector.unless}`;
  test(`refuses ${vector.name} for ${vector.reason}`, { skip }, async () => {
    const data = objects("invalid", vector);
    const { root, attachment, level } = vector.ask ?? {};
    const opened = await refusal(() => open(data, { root }));
    assert.equal(opened === null, vector.opens, `opening: ${opened}`);
    let reason = await problemOf(data, { root });
    if (attachment) reason = await refusal(async () => (await open(data)).attachment(attachment));
    if (level) reason = await refusal(async () => (await open(data)).levelOf(level[0], level[1]));
    assert.equal(reason, vector.reason);
  });
}

/** The volumes after the first that go with an object. @param {string} object */
function names(object) {
  const stem = object.replace(/^.*\/|\.bstk$/g, "");
  return readdirSync(new URL("valid/", VECTORS)).filter((name) => name.startsWith(`${stem}.0`) && name.endsWith(".bstk"));
}

for (const { object, opened, bits, reasons } of flips) {
  test(`finds each of ${bits} turned bits of ${object}`, async () => {
    const data = bytes(object);
    const name = object.split("/").at(-1);
    const others = new Map(names(object).map((other) => [other, bytes(`valid/${other}`)]));
    const problem = (/** @type {Uint8Array} */ changed) =>
      problemOf(opened ? new MemorySource(bytes(opened), opened, new Map([[name, changed]])) : new MemorySource(changed, name, others));
    const expected = reasons.flatMap((/** @type {[string, number]} */ [reason, count]) => Array(count).fill(reason));
    assert.equal(expected.length, 8 * data.length);
    for (let at = 0; at < expected.length; at++) {
      const changed = data.slice();
      changed[at >> 3] ^= 1 << (at & 7);
      assert.equal(await problem(changed), expected[at], `bit ${at & 7} of byte ${at >> 3}`);
    }
  });
}
