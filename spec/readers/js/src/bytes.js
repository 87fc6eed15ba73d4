/** Digests and numbers out of bytes. */
import { blake3 } from "../vendor/noble-hashes/blake3.js";

/** @param {...Uint8Array} parts @returns {Uint8Array} BLAKE3 of the parts one after the other, 32 bytes */
export function digest(...parts) {
  const hash = blake3.create();
  for (const part of parts) hash.update(part);
  return hash.digest();
}

/** @param {Uint8Array} data */
export const hex = (data) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {Uint8Array} a @param {Uint8Array} b */
export const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

/** @param {Uint8Array} data */
export const view = (data) => new DataView(data.buffer, data.byteOffset, data.byteLength);

/** The first byte that is not zero, or −1. @param {Uint8Array} data */
export const firstNonZero = (data) => data.findIndex((byte) => byte !== 0);
