/** A refusal: `reason` is one of the codes of §9, the same in every reader; the message is for people. */
export class BstkError extends Error {
  /**
   * @param {string} reason a code of §9
   * @param {string} message what is wrong, in one line
   * @param {number} [offset] the byte of the object at which it is wrong, where there is one
   */
  constructor(reason, message, offset) {
    super(message);
    this.name = "BstkError";
    this.reason = reason;
    this.offset = offset;
  }
}

/** Refuse for `reason` unless `fine`. @param {unknown} fine @param {string} reason @param {string} message @param {number} [offset] */
export function need(fine, reason, message, offset) {
  if (!fine) throw new BstkError(reason, message, offset);
}

/** Text of a file as a message may show it: without control characters, and cut. @param {unknown} value */
export function shown(value) {
  const text = typeof value === "string" ? value : String(value);
  const clean = text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
  return `"${clean.length > 60 ? `${clean.slice(0, 60)}…` : clean}"`;
}
