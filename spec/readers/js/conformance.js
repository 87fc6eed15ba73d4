/** The conformance vectors, and a reader's answers in their terms. */
import { readFileSync, readdirSync } from "node:fs";
import { BstkError, MemorySource, open } from "./bstk.js";
import { digest, hex } from "./src/bytes.js";
import { Float } from "./src/msgpack.js";

export const VECTORS = new URL("../../vectors/", import.meta.url);

/** @param {string} path below the folder of the vectors */
export const bytes = (path) => new Uint8Array(readFileSync(new URL(path, VECTORS)));
/** @param {string} path */
export const json = (path) => JSON.parse(readFileSync(new URL(path, VECTORS), "utf8"));

/** The vectors of one folder. @param {string} folder @returns {any[]} */
export function vectors(folder) {
  const names = readdirSync(new URL(`${folder}/`, VECTORS)).filter((name) => name.endsWith(".json"));
  return names.sort().map((name) => json(`${folder}/${name}`));
}

/** The objects of a vector: the one to open, which knows the other volumes. @param {string} folder @param {any} vector */
export function objects(folder, vector) {
  const all = vector.objects.map((/** @type {string} */ name) => [name, bytes(`${folder}/${name}`)]);
  return new MemorySource(all[0][1], all[0][0], new Map(all.slice(1)));
}

/** The reason for which something is refused, or null. @param {() => Promise<unknown>} ask */
export async function refusal(ask) {
  try {
    await ask();
    return null;
  } catch (error) {
    if (error instanceof BstkError) return error.reason;
    throw error;
  }
}

/** What is wrong with an object first. @param {Uint8Array} data @param {{root?: string}} [options] */
export async function firstProblem(data, options) {
  return problemOf(new MemorySource(data), options);
}

/** What is wrong with a file first. @param {import("./src/source.js").Source} source @param {{root?: string}} [options] */
export async function problemOf(source, options) {
  return refusal(async () => {
    const file = await open(source, options);
    const [problem] = await file.verify().finally(() => file.close());
    if (problem) throw problem;
  });
}

/** Everything that the JSON of a valid vector states, as this reader finds it. @param {import("./bstk.js").Container} file @param {any} asked the vector */
export async function report(file, asked) {
  const { metadata, superblock: s } = file;
  return {
    root: file.root,
    version: file.version,
    writer: metadata.writer,
    head_length: s.headLength,
    blocks_offset: file.blocksOffset,
    file_length: Number(s.fileLength),
    present_length: file.size,
    required_blocks: file.required,
    available_blocks: file.available,
    minimum_budget: file.minimumBytes,
    resident_bytes: file.totalBytes,
    tensors: file.tensors.map(tensor),
    aliases: Object.fromEntries(metadata.aliases),
    attachments: await Promise.all(metadata.attachments.map(({ name }) => attachment(file, name))),
    curves: metadata.curves,
    extra: asked.extra === null ? null : plain(metadata.extra),
    blocks: Array.from({ length: file.index.count }, (_, b) => block(file.block(b))),
    plans: asked.plans.map((/** @type {any} */ plan) => planned(file, plan.budget)),
    rebuilt: await Promise.all(asked.rebuilt.map((/** @type {any} */ { blocks }) => rebuilt(file, blocks))),
    ...(s.hasVolumes ? { object_length: Number(s.objectLength), volumes: file.volumes.map(volume) } : {}),
  };
}

/** @param {import("./src/volumes.js").Extent} v */
function volume({ name, firstBlock, blocks, offset, length }) {
  return { name: name || null, first_block: firstBlock, blocks, offset: Number(offset), length: Number(length) };
}

/** @param {import("./src/metadata.js").Tensor} t */
function tensor(t) {
  const out = { name: t.name, shape: t.shape, dtype: t.dtype, packed: t.packed, scale_vector: t.isScale };
  const chains = { first_chain: t.firstChain, chains: t.chains };
  const scales = { group_rows: t.groupRows, row_scale: t.rowScale, col_scale: t.colScale, transposed: t.transposed };
  return { ...out, ...chains, ...(t.packed ? scales : {}) };
}

/** @param {import("./src/container.js").Block} b */
function block(b) {
  return {
    tensor: b.tensor.name,
    chain: b.chain,
    first_row: b.firstRow,
    rows: b.tensor.packed ? b.rows : null,
    level: b.level,
    kind: b.form.kind,
    codec: b.form.codec,
    rank: b.form.rank || null,
    factors: b.form.factors || null,
    offset: b.offset,
    stored: b.stored,
    length: b.length,
    worth: b.worth,
    digest: hex(b.digest),
  };
}

/** @param {import("./bstk.js").Container} file @param {string} name */
async function attachment(file, name) {
  const data = await file.attachment(name);
  return { name, length: data.length, blake3: hex(digest(data)) };
}

/** @param {import("./bstk.js").Container} file @param {any} budget */
function planned(file, budget) {
  try {
    const { blocks, residentBytes, offset, length } = file.plan(budget);
    return { budget, blocks, resident_bytes: residentBytes, offset, length };
  } catch (error) {
    if (!(error instanceof BstkError)) throw error;
    const small = error.reason === "budget-too-small";
    return { budget, reason: error.reason, ...(small ? { minimum: file.minimumBytes } : {}) };
  }
}

/** @param {import("./bstk.js").Container} file @param {number} blocks */
async function rebuilt(file, blocks) {
  const payloads = await file.readPrefix(blocks);
  const tensors = file.tensors.map(({ name }) => {
    const { shape, data } = file.rebuild(name, payloads);
    return [name, { shape, bytes: data.length, blake3: hex(digest(data)) }];
  });
  return { blocks, tensors: Object.fromEntries(tensors) };
}

/** A value of `extra` as the vectors write it. @param {unknown} value @returns {unknown} */
function plain(value) {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Uint8Array) return { hex: hex(value) };
  return value instanceof Float ? value.value : value;
}
