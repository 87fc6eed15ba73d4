/** Every vector of signatures, and the JSON that they are written in. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readSignature } from "../bstk.js";
import { VECTORS, bytes, json, problemOf, refusal, vectors } from "../conformance.js";
import { FileSource } from "../src/node-file.js";
import { parse } from "../src/json.js";
import { fileURLToPath } from "node:url";

const signatures = vectors("signatures");

test("the signatures are whole", () => {
  assert.equal(signatures.length, json("vectors.json").counts.signatures);
  assert.ok(signatures.length >= 85);
});

for (const vector of signatures) {
  test(`a signature, ${vector.name}: ${vector.reason ?? vector.shows}`, async () => {
    const read = () => readSignature(bytes(`signatures/${vector.signature}`), bytes(`signatures/${vector.key}`));
    if (vector.reason) {
      assert.equal(await refusal(read), vector.reason);
      return;
    }
    const signed = await read();
    assert.deepEqual(signed, vector.says);
    const file = new FileSource(fileURLToPath(new URL(vector.file, VECTORS)));
    assert.equal(await problemOf(file, { root: signed.root }), vector.demands);
  });
}

test("a signature beyond its bound is not parsed", async () => {
  assert.equal(await refusal(() => readSignature(new Uint8Array(2 ** 20 + 1), new Uint8Array(0))), "signature-format");
});

test("JSON: what it takes, and what not", () => {
  const from = (/** @type {string} */ text) => parse(new TextEncoder().encode(text));
  assert.deepEqual(from(' {"a" : [1, -2.5e-3, true, null, "\\u00e9\\n"], "b": {}} '), new Map(/** @type {any} */ ([["a", [1, -0.0025, true, null, "é\n"]], ["b", new Map()]])));
  for (const text of ["", "{", "[1,]", "[,1]", "{\"a\":1,}", "{a:1}", "{'a':1}", "01", "+1", ".5", "1.", "NaN", "Infinity", "tru", "[1 2]", '"\t"', '"\\x41"', "1 1", '{"a":1,"\\u0061":2}']) {
    assert.throws(() => from(text), SyntaxError, text);
  }
});
