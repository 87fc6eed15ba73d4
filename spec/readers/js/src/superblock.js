/** The first 128 bytes: §2, §3, and steps 2 to 4 of §7.1. */
import { need } from "./errors.js";
import { hex, view } from "./bytes.js";
import * as R from "./registry.js";

export const SIZE = 128;
const MAGIC = [0x89, 0x42, 0x53, 0x54, 0x4b, 0x0d, 0x0a, 0x1a, 0x0a, 0x00];

/**
 * @typedef {{
 *   minor: number, metadataStored: number, metadataLength: number, indexStored: number, indexLength: number,
 *   attachmentsLength: bigint, fileLength: bigint, presentLength: bigint, objectLength: bigint, hasVolumes: boolean,
 *   headLength: number, blocksOffset: bigint, root: string, covered: Uint8Array
 * }} Superblock `covered` is what the root covers of it, bytes [0, 80); `objectLength`: bytes of this object, of every file
 */

/** @param {Uint8Array} data the first bytes of the object, 128 where it has so many @returns {Superblock} */
export function decode(data) {
  checkMagic(data);
  need(data.length >= SIZE, "truncated", `the object ends after ${data.length} bytes, within the superblock`, data.length);
  const v = view(data);
  const u16 = (/** @type {number} */ at) => v.getUint16(at, true);
  const u64 = (/** @type {number} */ at) => v.getBigUint64(at, true);
  const major = u16(10);
  const minor = u16(12);
  need(major === R.MAJOR, "version-unsupported", `the file is of version ${major}.${minor}; this reader reads ${R.MAJOR}.x`, 10);
  const [unknown, hasVolumes] = [u64(16) & ~R.VOLUMES, (u64(16) & R.VOLUMES) !== 0n];
  need(unknown === 0n, "feature-unsupported", `the file needs what this reader does not have: ${features(unknown)}`, 16);

  const invalid = (/** @type {unknown} */ fine, /** @type {string} */ message, /** @type {number} */ at) =>
    need(fine, "superblock-invalid", message, at);
  invalid(u16(14) === SIZE, `a superblock of ${u16(14)} bytes, not ${SIZE}`, 14);
  invalid(hasVolumes || u64(88) === 0n, "an object length in a file without volumes", 88);
  section(u64(32), u64(40), R.MAX_METADATA, "metadata", 32);
  section(u64(48), u64(56), R.MAX_HEAD_SECTION, "index", 48);
  const headLength = SIZE + Number(u64(32)) + Number(u64(48));
  const [attachmentsLength, fileLength, presentLength] = [u64(64), u64(72), u64(80)];
  invalid(fileLength <= R.MAX_FILE_BYTES, "a file length beyond the limit", 72);
  invalid(BigInt(headLength) + attachmentsLength <= fileLength, "head and attachments are longer than the file", 64);
  invalid(BigInt(headLength) <= presentLength && presentLength <= fileLength, "a present length out of bounds", 80);
  const objectLength = hasVolumes ? u64(88) : presentLength;
  const first = BigInt(headLength) + attachmentsLength <= objectLength && objectLength < presentLength && presentLength === fileLength;
  invalid(objectLength === presentLength || first, "an object length that is neither all there is nor a first volume", 88);
  return {
    minor,
    metadataStored: Number(u64(32)),
    metadataLength: Number(u64(40)),
    indexStored: Number(u64(48)),
    indexLength: Number(u64(56)),
    attachmentsLength,
    fileLength,
    presentLength,
    objectLength,
    hasVolumes,
    headLength,
    blocksOffset: (BigInt(headLength) + attachmentsLength + 63n) & ~63n,
    root: hex(data.subarray(96, 128)),
    covered: data.slice(0, 80),
  };
}

/** @param {Uint8Array} data */
function checkMagic(data) {
  const wrong = MAGIC.findIndex((byte, i) => i < data.length && data[i] !== byte);
  if (wrong < 0) return;
  const lead = String.fromCharCode(...data.subarray(0, 7));
  const damaged = lead.includes("BSTK");
  const why = damaged
    ? "damaged in transfer: it went through a text-mode or 7-bit channel; fetch it again as binary"
    : "not a .bstk file";
  need(false, damaged ? "bad-transfer" : "not-bstk", why, wrong);
}

/** @param {bigint} stored @param {bigint} length @param {number} most @param {string} what @param {number} at */
function section(stored, length, most, what, at) {
  const limit = BigInt(most);
  need(stored <= limit, "superblock-invalid", `${what} of ${stored} stored bytes; the limit is ${most}`, at);
  const expansion = BigInt(R.expansionLimit(Number(stored)));
  need(length <= limit && length <= expansion, "superblock-invalid", `${what} of ${length} bytes out of ${stored}`, at + 8);
}

/** @param {bigint} bits */
function features(bits) {
  const names = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((bits >> BigInt(bit)) & 1n) names.push(R.MUST_FEATURES.get(bit) ?? `bit ${bit}`);
  }
  return names.join(", ");
}
