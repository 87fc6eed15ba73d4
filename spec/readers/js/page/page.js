/** The page: open a file, see its head, drag a budget, verify. */
import { BlobSource, BstkError, open } from "../bstk.js";
import * as curves from "./curve.js";
import { COLOURS, Strip } from "./strip.js";
import { counted, element, fill, named, sized } from "./text.js";

/** Rows of tensors that are shown at once; the filter finds the others. */
const SHOWN = 200;
/** How long work goes on before the page may draw, milliseconds. */
const TURN = 40;
/** Steps of the budget from the smallest one to everything. */
const STEPS = 1000;

const at = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));

/** @type {View | undefined} */
let current;
let asked = 0;

/** What is shown of one open file. */
class View {
  /** @param {import("../bstk.js").Container} file @param {string} name */
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.kinds = [...COLOURS.keys()].filter((kind) => file.metadata.forms.some((form) => form.kind === kind));
    this.strip = new Strip(at("strip"), file);
    const curve = curves.measured(file, (blocks) => this.resident(blocks));
    at("curve-figure").hidden = !curve;
    this.points = curve?.points ?? [];
    this.metric = curve?.metric ?? "";
    this.mark = (/** @type {number} */ _) => {};
    if (curve) {
      at("curve-title").textContent = curve.caption;
      this.mark = curves.draw(at("curve"), curve, [file.minimumBytes, file.totalBytes]);
      curves.tabulate(at("curve-table"), curve);
    }
    this.head();
    at("budget").value = STEPS;
    Object.assign(at("block"), { max: file.index.count - 1, value: 0 });
    at("verify").disabled = false;
    at("verify-progress").hidden = true;
    at("verify-text").textContent = "";
    at("problems").replaceChildren();
    this.block(0);
  }

  /** The budget that the slider stands at, bytes. */
  get budget() {
    const { minimumBytes: least, totalBytes: most } = this.file;
    return Math.round(least + ((most - least) * Number(at("budget").value)) / STEPS);
  }

  /** Resident bytes of so many blocks. @param {number} blocks */
  resident(blocks) {
    let sum = 0;
    for (let b = 0; b < blocks; b++) sum += this.file.index.length[b];
    return sum;
  }

  head() {
    const { file } = this;
    const { metadata, source } = file;
    const whole = file.available === file.index.count;
    const names = metadata.attachments.map(({ name, length }) => `${named(name)} (${sized(length)})`);
    /** @type {[string, string][]} */
    const facts = [
      ["Root", file.root],
      ["Version", `${file.version}, written by ${named(metadata.writer)}`],
      ["Size", `${sized(file.size)}${whole ? "" : `, a prefix of a file of ${sized(Number(file.superblock.fileLength))}`}`],
      ...this.volumes(),
      ["Blocks", `${counted(file.available)}${whole ? "" : ` of ${counted(file.index.count)}`}, ${counted(file.required)} of them required`],
      ["Tensors", `${counted(file.tensors.length)}, ${counted(file.tensors.filter((t) => t.packed).length)} of them packed`],
      ["Other names", [...metadata.aliases].map(([alias, name]) => `${named(alias)} = ${named(name)}`).join(", ") || "none"],
      ["Attachments", names.join(", ") || "none"],
      ["Read so far", `${sized(source.bytes)} in ${counted(source.requests)} ${source.requests === 1 ? "request" : "requests"}`],
    ];
    const rows = facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", name === "Root" ? { class: "root" } : {}, value)]);
    at("head").replaceChildren(...rows);
  }

  /** @returns {[string, string][]} */
  volumes() {
    const { volumes, apart } = this.file;
    if (!apart) return [];
    const largest = volumes.reduce((most, { length }) => (length > most ? length : most), 0n);
    return [["Volumes", `${counted(volumes.length)}, up to ${named(volumes[volumes.length - 1].name)}, at most ${sized(Number(largest))} each`]];
  }

  /** Show what the budget loads. */
  plan() {
    const { budget } = this;
    const plan = this.file.plan(budget);
    this.loaded = plan.blocks;
    at("budget-value").textContent = sized(budget);
    at("budget").setAttribute("aria-valuetext", `${sized(budget)}, ${plan.blocks} blocks`);
    const point = this.points.filter(({ blocks }) => blocks <= plan.blocks).at(-1);
    const value = point ? `; ${this.metric} ${curves.number(point.value)} measured at ${sized(point.bytes)}` : "";
    at("plan").textContent =
      `${counted(plan.blocks)} of ${counted(this.file.available)} blocks, ${sized(plan.residentBytes)} resident, ` +
      `bytes ${counted(plan.offset)} to ${counted(plan.offset + plan.length)} of the file${value}.`;
    this.mark(plan.residentBytes);
    this.strip.draw(plan.blocks);
    this.kindTable(plan.blocks);
    this.tensorTable();
  }

  /** @param {number} loaded */
  kindTable(loaded) {
    const { index, metadata } = this.file;
    const sums = new Map(this.kinds.map((kind) => [kind, [0, 0, 0, 0]]));
    for (let b = 0; b < this.file.available; b++) {
      const sum = sums.get(metadata.forms[index.form[b]].kind) ?? [0, 0, 0, 0];
      sum[1]++;
      sum[3] += index.length[b];
      if (b < loaded) {
        sum[0]++;
        sum[2] += index.length[b];
      }
    }
    const rows = [...sums].map(([kind, [blocks, all, bytes, most]]) => {
      const swatch = element("span", { class: "swatch", "data-kind": kind });
      swatch.style.background = COLOURS.get(kind) ?? "";
      return [element("span", {}, swatch, kind), `${counted(blocks)} of ${counted(all)}`, `${sized(bytes)} of ${sized(most)}`];
    });
    fill(at("kinds"), ["kind", "blocks loaded", "bytes loaded"], rows);
  }

  tensorTable() {
    const part = at("filter").value;
    const found = this.file.tensors.filter(({ name, isScale }) => !isScale && name.includes(part));
    const rows = found.slice(0, SHOWN).map((tensor) => {
      let [levels, held] = [0, 0];
      for (let g = 0; g < tensor.chains; g++) {
        const blocks = this.file.chain(tensor.firstChain + g);
        levels += blocks.length;
        held += blocks.filter((b) => b < (this.loaded ?? 0)).length;
      }
      return [named(tensor.name), tensor.shape.join(" × ") || "scalar", tensor.dtype, `${counted(held)} of ${counted(levels)}`];
    });
    if (found.length > SHOWN) rows.push([`and ${counted(found.length - SHOWN)} more`, "", "", ""]);
    fill(at("tensors"), ["tensor", "shape", "type", "blocks loaded"], rows);
  }

  /** @param {number} number */
  block(number) {
    if (!(number >= 0 && number < this.file.index.count)) {
      at("block-text").textContent = `There are blocks 0 to ${this.file.index.count - 1}.`;
      return;
    }
    const { tensor, firstRow, rows, level, form, offset, stored, length, worth } = this.file.block(number);
    const part = tensor.packed ? `, rows ${firstRow} to ${firstRow + rows - 1}, level ${level}` : "";
    const kind = form.rank ? `${form.kind} of rank ${form.rank}, ${form.factors}` : form.kind;
    at("block-text").textContent =
      `${named(tensor.name)}${part}: ${kind}, codec ${form.codec}, ${counted(stored)} bytes at ${counted(offset)}, ` +
      `${counted(length)} resident, worth ${curves.number(worth)}.`;
  }

  async verify() {
    const [button, bar, text, list] = ["verify", "verify-progress", "verify-text", "problems"].map(at);
    button.disabled = true;
    bar.hidden = false;
    list.replaceChildren();
    let turn = performance.now();
    try {
      const problems = await this.file.verify(async ({ bytes, block, problems: found }) => {
        if (block) this.strip.mark(block.number, found.length === 0);
        if (performance.now() - turn < TURN) return;
        if (current !== this) throw new Stopped();
        bar.value = bytes / this.file.size;
        text.textContent = `${sized(bytes)} of ${sized(this.file.size)}`;
        this.strip.draw(this.loaded ?? 0);
        await new Promise((resolve) => setTimeout(resolve));
        turn = performance.now();
      });
      bar.value = 1;
      text.textContent = problems.length
        ? `Damaged: ${counted(problems.length)} ${problems.length === 1 ? "part" : "parts"} of the file not as the root says.`
        : `Sound: ${counted(this.file.available)} blocks, every byte as the root says.`;
      list.replaceChildren(...problems.slice(0, SHOWN).map((p) => element("li", {}, `${p.reason}: ${p.message}`)));
    } catch (error) {
      if (error instanceof Stopped) return;
      bar.hidden = true;
      text.textContent = "";
      fail(error);
    }
    button.disabled = false;
    this.strip.draw(this.loaded ?? 0);
    this.head();
  }
}

class Stopped extends Error {}

/** @param {unknown} error */
function fail(error) {
  const known = error instanceof BstkError;
  at("error").textContent = known ? `${error.reason}: ${error.message}` : String(error);
  at("error").hidden = false;
}

/** @param {string | BlobSource} from @param {string} name */
async function show(from, name) {
  const number = ++asked;
  at("error").hidden = true;
  at("opened").hidden = true;
  at("status").textContent = `Opening ${name} …`;
  current = undefined;
  try {
    const file = await open(from, { root: at("root").value.trim() || undefined });
    if (number !== asked) return;
    current = new View(file, name);
    at("opened").hidden = false;
    current.plan();
    at("status").textContent = `Opened ${name}.`;
    document.title = `${name} – bstk reader`;
  } catch (error) {
    if (number !== asked) return;
    at("status").textContent = "";
    fail(error);
  }
}

/** Open a URL, and let the address of the page name it. @param {string} url */
function showUrl(url) {
  const here = new URL(location.href);
  here.searchParams.set("url", url);
  history.replaceState(null, "", here);
  return show(new URL(url, location.href).href, url.split("/").at(-1) || url);
}

at("open").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  showUrl(at("url").value.trim());
});
at("file").addEventListener("change", () => {
  /** @type {File[]} */
  const chosen = [...at("file").files];
  // The first volume has the shortest name, model.bstk beside model.00002.bstk, or the only one.
  const [file] = chosen.sort((a, b) => a.name.length - b.name.length || a.name.localeCompare(b.name));
  if (file) show(new BlobSource(file, file.name, chosen), file.name);
});
at("budget").addEventListener("input", () => current?.plan());
at("block").addEventListener("input", () => current?.block(Number(at("block").value)));
at("filter").addEventListener("input", () => current?.tensorTable());
at("verify").addEventListener("click", () => current?.verify());
addEventListener("resize", () => current?.strip.draw(current.loaded ?? 0));

const given = new URLSearchParams(location.search);
at("root").value = given.get("root") ?? "";
const url = given.get("url");
if (url) {
  at("url").value = new URL(url, location.href).href;
  showUrl(url);
}
