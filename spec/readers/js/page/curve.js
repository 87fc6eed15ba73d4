/** The quality curve of a file as a drawing and as a table. */
import { counted, fill, named, sized, svg } from "./text.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [720, 220, 56, 16, 12, 28];

/**
 * @param {import("../bstk.js").Container} file
 * @param {(blocks: number) => number} resident bytes of the first blocks
 * @returns {{points: {blocks: number, bytes: number, value: number}[], metric: string, caption: string} | undefined}
 */
export function measured(file, resident) {
  const curve = file.metadata.curves.find(({ points }) => points.length);
  if (!curve) return undefined;
  const held = curve.points.filter(([blocks]) => blocks <= file.available);
  const points = held.map(([blocks, value]) => ({ blocks, bytes: resident(blocks), value }));
  if (!points.length) return undefined;
  const on = curve.text ? ` on ${named(curve.text)}` : "";
  const caption = `${named(curve.metric)}${on}, ${counted(curve.tokens)} tokens; ${number(curve.dense)} before packing`;
  return { points, metric: named(curve.metric), caption };
}

/** @param {number} value */
export const number = (value) => (Math.abs(value) >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(4))));

/**
 * Draw the points; the mark is moved by what is returned.
 * @param {HTMLElement} place @param {NonNullable<ReturnType<typeof measured>>} curve @param {[number, number]} bytes the axis
 * @returns {(bytes: number) => void}
 */
export function draw(place, { points, caption }, [least, most]) {
  const values = points.map(({ value }) => value);
  // A logarithm shows the steep beginning and the flat end of a perplexity at once.
  const scale = Math.min(...values) > 0 ? Math.log : (/** @type {number} */ value) => value;
  const [low, high] = [Math.min(...values.map(scale)), Math.max(...values.map(scale))];
  const x = (/** @type {number} */ at) => LEFT + ((at - least) / (most - least || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (/** @type {number} */ value) => TOP + (1 - (scale(value) - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const label = `${caption}: from ${number(values[0])} to ${number(values[values.length - 1])}`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of [values.reduce((a, b) => Math.max(a, b)), values.reduce((a, b) => Math.min(a, b))]) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  drawing.append(svg("text", { x: LEFT, y: HEIGHT - 8 }, sized(least)));
  drawing.append(svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, sized(most)));
  drawing.append(svg("polyline", { class: "line", points: points.map((p) => `${x(p.bytes)},${y(p.value)}`).join(" ") }));
  for (const p of points) {
    const dot = svg("circle", { class: "point", cx: x(p.bytes), cy: y(p.value), r: 3.5 });
    dot.append(svg("title", {}, `${sized(p.bytes)}: ${number(p.value)}`));
    drawing.append(dot);
  }
  const here = svg("line", { class: "here", y1: TOP, y2: HEIGHT - BOTTOM });
  drawing.append(here);
  place.replaceChildren(drawing);
  return (bytes) => {
    here.setAttribute("x1", String(x(bytes)));
    here.setAttribute("x2", String(x(bytes)));
  };
}

/** @param {HTMLElement} table @param {NonNullable<ReturnType<typeof measured>>} curve */
export function tabulate(table, { points, metric }) {
  fill(table, ["resident bytes", "blocks", metric], points.map((p) => [sized(p.bytes), counted(p.blocks), number(p.value)]));
}
