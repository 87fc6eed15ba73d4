/** Signatures of the root: `signing.md`. */
import { BstkError, need, shown } from "./errors.js";
import { hex } from "./bytes.js";
import { parse } from "./json.js";

const LIMIT = 2 ** 20;
const PAYLOAD_TYPE = "application/vnd.in-toto+json";
const encoder = new TextEncoder();
/** Curves by their object identifier in DER: name, hash, and bytes of a coordinate. */
const CURVES = new Map([
  ["2a8648ce3d030107", { namedCurve: "P-256", hash: "SHA-256", width: 32 }],
  ["2b81040022", { namedCurve: "P-384", hash: "SHA-384", width: 48 }],
  ["2b81040023", { namedCurve: "P-521", hash: "SHA-512", width: 66 }],
]);
const EC_PUBLIC_KEY = "2a8648ce3d0201";

/**
 * @typedef {{name: string, root: string, sha256: string | null, volumes: Record<string, string>, key: string}} Signed what a
 *   signature says: `sha256` of the whole file, or `volumes`, that of each of several; `key` is the hint of the public key
 * @typedef {Map<string, import("./json.js").Value>} Members
 */

/**
 * What a signature says, if the holder of the key made it. The file itself is not read: open it with that root.
 * @param {Uint8Array} signature the bundle @param {Uint8Array} publicKey PEM
 * @returns {Promise<Signed>}
 */
export async function readSignature(signature, publicKey) {
  need(signature.length <= LIMIT, "signature-format", `a signature of ${signature.length} bytes`);
  const { payload, der, hint } = readBundle(signature);
  const key = await readKey(publicKey);
  need(hint === "" || hint === key.hint, "signature-key", `made with another key: ${shown(hint)}, not ${key.hint}`);
  const head = encoder.encode(`DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `);
  const signed = new Uint8Array(head.length + payload.length);
  signed.set(head);
  signed.set(payload, head.length);
  const plain = numbers(der, key.width);
  const holds = plain && (await key.verify(plain, signed));
  need(holds, "signature-invalid", "the signature does not hold");
  // What is signed is read only now that somebody vouches for it.
  return { ...(await readStatement(payload)), key: key.hint };
}

/** @param {unknown} fine @param {string} message */
const format = (fine, message) => need(fine, "signature-format", message);

/** @param {Uint8Array} data @param {string} what @returns {Members} */
function members(data, what) {
  let value;
  try {
    value = parse(data);
  } catch (error) {
    throw new BstkError("signature-format", `${what} is no JSON: ${error}`);
  }
  format(value instanceof Map, `${what} is no object`);
  return /** @type {Members} */ (value);
}

/** @param {Members} map @param {string} name @returns {Members} */
function object(map, name) {
  const value = map.get(name);
  format(value instanceof Map, `${name} is no object`);
  return /** @type {Members} */ (value);
}

/** @param {Members} map @param {string} name @returns {import("./json.js").Value[]} */
function array(map, name) {
  const value = map.get(name);
  format(Array.isArray(value), `${name} is no array`);
  return /** @type {import("./json.js").Value[]} */ (value);
}

/** @param {Members} map @param {string} name @returns {string} */
function text(map, name) {
  const value = map.get(name);
  format(typeof value === "string", `${name} is no text`);
  return /** @type {string} */ (value);
}

/** @param {Members} map @param {string} name @param {string} expected */
const expect = (map, name, expected) => format(map.get(name) === expected, `${name} is not ${expected}`);

/** @param {Members} map @param {string} name */
function digits(map, name) {
  const value = text(map, name);
  format(/^[0-9a-f]{64}$/.test(value), `${name} is not 64 hexadecimal digits`);
  return value;
}

/** @param {import("./json.js").Value[]} items @param {string} what @returns {Members} */
function only(items, what) {
  format(items.length === 1 && items[0] instanceof Map, `not exactly one ${what}`);
  return /** @type {Members} */ (items[0]);
}

/** @param {string} value @param {string} what */
function base64(value, what) {
  const fine = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(value);
  format(fine, `${what} is no base64`);
  return Uint8Array.from(atob(value), (character) => character.charCodeAt(0));
}

/** @param {Uint8Array} data */
function readBundle(data) {
  const bundle = members(data, "the signature");
  expect(bundle, "mediaType", "application/vnd.dev.sigstore.bundle.v0.3+json");
  const hint = object(object(bundle, "verificationMaterial"), "publicKey").get("hint") ?? "";
  const envelope = object(bundle, "dsseEnvelope");
  expect(envelope, "payloadType", PAYLOAD_TYPE);
  const signature = only(array(envelope, "signatures"), "signature");
  format(typeof hint === "string", "hint is no text");
  const payload = base64(text(envelope, "payload"), "payload");
  return { payload, der: base64(text(signature, "sig"), "sig"), hint: /** @type {string} */ (hint) };
}

/** @param {Uint8Array} payload */
async function readStatement(payload) {
  const subtle = await crypto();
  const statement = members(payload, "what is signed");
  expect(statement, "_type", "https://in-toto.io/Statement/v1");
  expect(statement, "predicateType", "https://model_signing/signature/v1.0");
  const subject = only(array(statement, "subject"), "subject");
  const predicate = object(statement, "predicate");
  const resources = array(predicate, "resources").map((item) => {
    format(item instanceof Map, "a resource is no object");
    const map = /** @type {Members} */ (item);
    expect(map, "algorithm", "sha256");
    return /** @type {[string, string]} */ ([text(map, "name"), digits(map, "digest")]);
  });
  const root = digits(object(predicate, "bstk"), "root");
  const rising = resources.every(([name], i) => i === 0 || before(resources[i - 1][0], name));
  format(resources.length > 0 && rising, "resources that are none, or not by rising names");
  const sum = await subtle.digest("SHA-256", fromHex(resources.map(([, digest]) => digest).join("")));
  const said = digits(object(subject, "digest"), "sha256");
  format(hex(new Uint8Array(sum)) === said, "a subject that is not what the resources make");
  const one = resources.length === 1;
  return { name: text(subject, "name"), root, sha256: one ? resources[0][1] : null, volumes: one ? {} : Object.fromEntries(resources) };
}

/** @param {string} digits */
const fromHex = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));

/** Whether a name stands before another, by the bytes of their UTF-8. @param {string} a @param {string} b */
function before(a, b) {
  const [one, two] = [encoder.encode(a), encoder.encode(b)];
  const at = one.findIndex((byte, i) => byte !== two[i]);
  return at < 0 ? one.length < two.length : one[at] < (two[at] ?? -1);
}

/** The cryptography of browsers, which Node 18 has elsewhere. @returns {Promise<SubtleCrypto>} */
async function crypto() {
  if (globalThis.crypto?.subtle) return globalThis.crypto.subtle;
  const { webcrypto } = await import("node:crypto");
  return /** @type {any} */ (webcrypto).subtle;
}

/** The next element of DER: its tag and content, and what stands behind it. @param {Uint8Array} data */
function element(data) {
  const [tag, short] = data;
  const size = short >= 0x80 ? short - 0x80 : 0;
  if (data.length < 2 || size > 2 || data.length < 2 + size) return undefined;
  const length = size ? data.subarray(2, 2 + size).reduce((sum, byte) => 256 * sum + byte, 0) : short;
  const least = [0, 128, 256][size];
  if (data.length < 2 + size + length || length < least) return undefined;
  return { tag, content: data.subarray(2 + size, 2 + size + length), rest: data.subarray(2 + size + length) };
}

/** The two numbers of a signature in DER, each in so many bytes, one after the other; undefined if it is none. @param {Uint8Array} der @param {number} width */
function numbers(der, width) {
  const whole = element(der);
  if (!whole || whole.tag !== 0x30 || whole.rest.length) return undefined;
  const out = new Uint8Array(2 * width);
  let rest = whole.content;
  for (const end of [width, 2 * width]) {
    const number = element(rest);
    if (!number || number.tag !== 2 || !number.content.length) return undefined;
    const { content } = number;
    const [first, second] = content;
    // Not negative, and no zero in front that is not needed.
    if (first >= 0x80 || (first === 0 && content.length > 1 && second < 0x80)) return undefined;
    const digits = content.subarray(first === 0 ? 1 : 0);
    if (digits.length > width) return undefined;
    out.set(digits, end - digits.length);
    rest = number.rest;
  }
  return rest.length ? undefined : out;
}

/** @param {Uint8Array} pem */
async function readKey(pem) {
  const usable = (/** @type {unknown} */ fine, /** @type {string} */ message) => need(fine, "signature-key", message);
  const found = /-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END PUBLIC KEY-----/.exec(new TextDecoder().decode(pem));
  usable(found, "not a public key in PEM");
  let spki = new Uint8Array(0);
  try {
    spki = Uint8Array.from(atob((found?.[1] ?? "").replace(/\s/g, "")), (character) => character.charCodeAt(0));
  } catch {
    usable(false, "not a public key in PEM: no base64");
  }
  const whole = element(spki);
  const algorithm = whole && whole.tag === 0x30 && !whole.rest.length ? element(whole.content) : undefined;
  const kind = algorithm && element(algorithm.content);
  const curve = kind && hex(kind.content) === EC_PUBLIC_KEY ? element(kind.rest) : undefined;
  const known = curve && CURVES.get(hex(curve.content));
  if (!known) throw new BstkError("signature-key", "not a key on one of the curves P-256, P-384 and P-521");
  const { namedCurve, hash, width } = known;
  const subtle = await crypto();
  try {
    const key = await subtle.importKey("spki", spki, { name: "ECDSA", namedCurve }, false, ["verify"]);
    const verify = (/** @type {Uint8Array} */ signature, /** @type {Uint8Array} */ data) => subtle.verify({ name: "ECDSA", hash }, key, signature, data);
    return { verify, width, hint: await hintOf(spki, subtle) };
  } catch (error) {
    throw new BstkError("signature-key", `a key that cannot be used: ${error}`);
  }
}

/** SHA-256 of the key as PEM. @param {Uint8Array} spki @param {SubtleCrypto} subtle */
async function hintOf(spki, subtle) {
  const lines = btoa(String.fromCharCode(...spki)).match(/.{1,64}/g) ?? [];
  const pem = ["-----BEGIN PUBLIC KEY-----", ...lines, "-----END PUBLIC KEY-----", ""].join("\n");
  return hex(new Uint8Array(await subtle.digest("SHA-256", encoder.encode(pem))));
}
