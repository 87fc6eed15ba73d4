/** Numbers and names for people, and elements made of text: what a file says never becomes markup. */

/** @param {number} size bytes */
export function sized(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit++;
  }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

/** @param {number} count */
export const counted = (count) => count.toLocaleString("en");

/** A name of the file, without control characters. @param {string} name */
export const named = (name) => name.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");

/**
 * @param {string} tag @param {Record<string, string>} [attributes] @param {...(string | Node)} content
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...content) {
  const out = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) out.setAttribute(key, value);
  out.append(...content);
  return out;
}

/** @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text] */
export function svg(tag, attributes, text = "") {
  const out = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) out.setAttribute(key, String(value));
  out.textContent = text;
  return out;
}

/** Fill a table. @param {HTMLElement} table @param {string[]} head @param {(string | Node)[][]} rows */
export function fill(table, head, rows) {
  const cells = (/** @type {(string | Node)[]} */ row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)));
  const titles = element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)));
  table.replaceChildren(element("thead", {}, titles), element("tbody", {}, ...rows.map(cells)));
}
