/** JSON as signing.md takes it: RFC 8259 in UTF-8, no key twice, nesting bounded. `JSON.parse` takes a key twice. */

/** Objects and arrays in each other, at most. */
const MAX_DEPTH = 64;

/** @typedef {null | boolean | number | string | Value[] | Map<string, Value>} Value */

/** @param {Uint8Array} data @returns {Value} an object is a `Map` @throws {SyntaxError} */
export function parse(data) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  return new Parser(text).whole();
}

class Parser {
  #at = 0;
  #text;

  /** @param {string} text */
  constructor(text) {
    this.#text = text;
  }

  /** @returns {Value} */
  whole() {
    const value = this.#value(1);
    this.#space();
    if (this.#at < this.#text.length) this.#fail("something stands behind the value");
    return value;
  }

  /** @param {string} why @returns {never} */
  #fail(why) {
    throw new SyntaxError(`${why} at character ${this.#at}`);
  }

  #space() {
    while (" \t\n\r".includes(this.#text[this.#at] ?? "x")) this.#at++;
  }

  /** Take what matches here, or fail. @param {RegExp} pattern sticky @param {string} what */
  #take(pattern, what) {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (!found) return this.#fail(`no ${what}`);
    this.#at = pattern.lastIndex;
    return found[0];
  }

  /** @param {string} character @returns {boolean} whether it stood here, and was taken */
  #took(character) {
    this.#space();
    const here = this.#text[this.#at] === character;
    if (here) this.#at++;
    return here;
  }

  /** @param {number} depth @returns {Value} */
  #value(depth) {
    this.#space();
    const first = this.#text[this.#at];
    if (first === "{" || first === "[") {
      if (depth > MAX_DEPTH) this.#fail(`nested deeper than ${MAX_DEPTH}`);
      this.#at++;
      return first === "{" ? this.#object(depth) : this.#array(depth);
    }
    if (first === '"') return this.#string();
    const word = this.#take(/true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y, "value");
    return JSON.parse(word);
  }

  #string() {
    // The characters and escapes of RFC 8259, section 7; what they stand for is left to the language.
    const pattern = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
    return JSON.parse(this.#take(pattern, "string"));
  }

  /** @param {number} depth */
  #array(depth) {
    /** @type {Value[]} */
    const items = [];
    if (this.#took("]")) return items;
    do items.push(this.#value(depth + 1));
    while (this.#took(","));
    if (!this.#took("]")) this.#fail("no end of an array");
    return items;
  }

  /** @param {number} depth */
  #object(depth) {
    /** @type {Map<string, Value>} */
    const members = new Map();
    if (this.#took("}")) return members;
    do {
      this.#space();
      const key = this.#string();
      if (members.has(key)) this.#fail("a key that stands twice");
      if (!this.#took(":")) this.#fail("no colon");
      members.set(key, this.#value(depth + 1));
    } while (this.#took(","));
    if (!this.#took("}")) this.#fail("no end of an object");
    return members;
  }
}
