/**
 * What is wrong with each of many objects: `node answers.js` reads them from standard input, each behind its length (uint32,
 * little-endian), and prints a line for each: the reason of the first fault, `sound`, or `!` and an error that is no BstkError.
 */
import { readSync, writeSync } from "node:fs";
import { firstProblem } from "./conformance.js";

/** @param {number} length @returns {Uint8Array | null} null at the end of the input */
function take(length) {
  const data = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const count = readSync(0, data, at, length - at, null);
    if (count === 0) return null;
    at += count;
  }
  return data;
}

for (let head = take(4); head; head = take(4)) {
  const data = take(new DataView(head.buffer).getUint32(0, true));
  if (!data) break;
  let line;
  try {
    line = (await firstProblem(data)) ?? "sound";
  } catch (error) {
    line = `! ${error}`.replaceAll("\n", " ");
  }
  writeSync(1, `${line}\n`);
}
