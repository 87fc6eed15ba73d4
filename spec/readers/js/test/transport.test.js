/** What servers do to range requests, played back by a server of Node. */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { HttpSource, open } from "../bstk.js";
import { bytes, refusal, vectors } from "../conformance.js";

/**
 * A server that plays answers back, the last one for as long as requests come.
 * @param {Uint8Array} data @param {any[]} answers @param {string} [name] of the object; its other volumes are among the vectors
 */
async function player(data, answers, name = "model.bstk") {
  /** @type {(string | undefined)[]} */
  const ranges = [];
  const server = createServer((request, response) => {
    const answer = answers[Math.min(ranges.length, answers.length - 1)];
    ranges.push(request.headers.range);
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    const shift = answer.shift ?? 0;
    const begin = Number(from) + shift;
    const asked = (request.url ?? "").slice(1);
    const whole = asked === name ? data : bytes(`valid/${asked}`);
    let body = whole.subarray(begin, Number(to) + 1 + shift);
    const last = begin + body.length - 1;
    let range = answer.range === undefined ? `bytes ${begin}-${last}/${whole.length}` : answer.range;
    range = range?.replace("{begin}", begin).replace("{last}", last);
    if (answer.body) {
      body = answer.body === "whole" ? whole : new Uint8Array(0);
      if (!answer.range) range = null;
    }
    body = Buffer.concat([body.subarray(0, body.length - (answer.cut ?? 0)), new Uint8Array(answer.more ?? 0)]);
    const headers = { "Content-Length": body.length, ...(range ? { "Content-Range": range } : {}), ...answer.headers };
    response.writeHead(answer.status ?? 206, headers).end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  // A test that fails before it closes the server must not keep the process.
  server.unref();
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const close = () => {
    server.closeAllConnections?.();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${port}/${name}`, ranges, close };
}

for (const vector of vectors("transport")) {
  test(`a server, ${vector.name}: ${vector.reason ?? "read"}`, async () => {
    const server = await player(bytes(vector.object), vector.answers, vector.object.split("/").at(-1));
    try {
      const reason = await refusal(async () => {
        const file = await open(new HttpSource(server.url, { attempts: 1 }));
        for (let b = 0; vector.read && b < file.available; b++) await file.readBlock(b);
      });
      assert.equal(reason, vector.reason);
      assert.ok(server.ranges.length >= vector.answers.length);
    } finally {
      await server.close();
    }
  });
}

test("a head takes one request, or two where it is beyond 16 KiB", async () => {
  for (const [name, requests] of /** @type {[string, number][]} */ ([["every-kind", 1], ["head-beyond-the-first-read", 2]])) {
    const data = bytes(`valid/${name}.bstk`);
    const server = await player(data, [{}]);
    const file = await open(server.url);
    assert.equal(server.ranges.length, requests);
    assert.equal(server.ranges[0], "bytes=0-16383");
    assert.equal(file.source.requests, requests);
    assert.equal(file.source.bytes, requests === 1 ? data.length : file.superblock.headLength);
    // A prefix is one range; what the first request brought is not asked for again.
    await file.readPrefix(file.available);
    assert.equal(server.ranges.length, requests === 1 ? 1 : 3);
    await server.close();
  }
});

test("a short answer is asked for again, a missing object is not", async () => {
  const data = bytes("valid/every-kind.bstk");
  for (const [answers, requests, reason] of /** @type {[any[], number, string | null][]} */ ([
    [[{ cut: 1 }, { status: 503, body: "none" }, {}], 3, null],
    [[{ status: 404, body: "none" }], 1, "not-found"],
  ])) {
    const server = await player(data, answers);
    assert.equal(await refusal(() => open(new HttpSource(server.url))), reason);
    assert.equal(server.ranges.length, requests);
    await server.close();
  }
});
