/**
 * One zstd frame, as §8.3 narrows it. The frame is walked here, block by block, before the decoder sees it: what a decoder
 * makes of two frames, of skippable ones, of a window it finds too large, or of a missing size is then no question.
 */
import { ZSTDDecoder } from "../vendor/zstddec/zstddec.mjs";
import { BstkError } from "./errors.js";
import { view } from "./bytes.js";

const MAGIC = 0xfd2fb528;
const MAX_WINDOW_EXPONENT = 21;
/** The largest window exponent that the decoder takes; windows beyond it are declared as this one (see `normal`). */
const DECODER_EXPONENT = 20;
/** What the decoder can hold. More is no fault of the file. */
export const MAX_DECODED = 2 ** 30;

const decoder = new ZSTDDecoder();

/** Wait until the decoder can be used. */
export const ready = () => decoder.init();

/**
 * @param {Uint8Array} data the stored bytes: the frame, and nothing else
 * @param {number} length the decoded length that the head declares
 * @param {string} reason the code of a refusal
 * @param {string} what for messages
 * @returns {Uint8Array}
 */
export function decompress(data, length, reason, what) {
  if (length > MAX_DECODED) {
    throw new BstkError("unsupported", `${what} decodes to ${length} bytes; this reader decodes up to ${MAX_DECODED}`);
  }
  const refuse = (/** @type {string} */ why) => {
    throw new BstkError(reason, `${what} is not a zstd frame of ${length} bytes: ${why}`);
  };
  const frame = walk(data, length, refuse);
  let out;
  try {
    // The decoder answers an error with no bytes; so a frame of no bytes is given one more, to tell the two apart.
    out = decoder.decode(length ? normal(data, frame) : oneMore(data, frame, refuse), length || 1);
  } catch (error) {
    return error instanceof BstkError ? refuse("its checksum is wrong") : refuse("it does not decode");
  }
  if (out.length !== (length || 1)) refuse("it does not decode to that length");
  return length ? out : new Uint8Array(0);
}

/**
 * @typedef {{blocks: number, end: number, last: number, window: number, checksum: boolean}} Frame where the blocks begin and end,
 *   where the last one's header is, the window descriptor's offset or −1, whether a checksum follows
 * @param {Uint8Array} data @param {number} length @param {(why: string) => never} refuse @returns {Frame}
 */
function walk(data, length, refuse) {
  const bytes = view(data);
  if (data.length < 6 || bytes.getUint32(0, true) !== MAGIC) refuse("it does not begin as one");
  const descriptor = data[4];
  const single = Boolean(descriptor & 0x20);
  const checksum = Boolean(descriptor & 4);
  if (descriptor & 8) refuse("a reserved bit is set");
  let at = 5;
  const window = single ? -1 : at;
  if (!single && data[at++] >> 3 > MAX_WINDOW_EXPONENT) refuse("its window is too large");
  const idBytes = [0, 1, 2, 4][descriptor & 3];
  const sizeBytes = [single ? 1 : 0, 2, 4, 8][descriptor >> 6];
  if (at + idBytes + sizeBytes > data.length) refuse("it ends too early");
  for (let i = 0; i < idBytes; i++) if (data[at + i]) refuse("it needs a dictionary");
  at += idBytes;
  if (!sizeBytes) refuse("it does not declare its size");
  let size = sizeBytes === 2 ? 256 : 0;
  for (let i = 0; i < sizeBytes; i++) size += data[at + i] * 2 ** (8 * i);
  if (size !== length) refuse(`it declares ${size} bytes`);
  const blocks = at + sizeBytes;
  let last = at = blocks;
  for (let more = true; more; ) {
    if (at + 3 > data.length) refuse("it ends too early");
    const header = data[at] | (data[at + 1] << 8) | (data[at + 2] << 16);
    const type = (header >> 1) & 3;
    if (type === 3) refuse("it has a block of a reserved type");
    last = at;
    at += 3 + (type === 1 ? 1 : header >> 3);
    more = !(header & 1);
  }
  if (at + (checksum ? 4 : 0) !== data.length) refuse("it ends too early, or bytes follow it");
  return { blocks, end: at, last, window, checksum };
}

/** The frame with a window that the decoder takes. It decodes into one buffer, so that nothing depends on the window. */
function normal(/** @type {Uint8Array} */ data, /** @type {Frame} */ frame) {
  if (frame.window < 0 || data[frame.window] >> 3 <= DECODER_EXPONENT) return data;
  const copy = data.slice();
  copy[frame.window] = DECODER_EXPONENT << 3;
  return copy;
}

/** A frame of the same blocks and then one of a single byte. */
function oneMore(/** @type {Uint8Array} */ data, /** @type {Frame} */ frame, /** @type {(why: string) => never} */ refuse) {
  // The checksum of no bytes, lower half.
  if (frame.checksum && view(data).getUint32(frame.end, true) !== 0x51d8e999) refuse("its checksum is wrong");
  const blocks = data.slice(frame.blocks, frame.end);
  blocks[frame.last - frame.blocks] &= 0xfe;
  return Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, ...blocks, 9, 0, 0, 0);
}
