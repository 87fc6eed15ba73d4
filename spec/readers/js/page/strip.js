/** All blocks of a file as rows of pixels, in the order of the file. */

/** Colours that people with any kind of colour vision can tell apart (Okabe and Ito). */
export const COLOURS = new Map([
  ["raw", "#999999"],
  ["sign", "#0072b2"],
  ["plane", "#56b4e9"],
  ["sparse", "#e69f00"],
  ["lowrank", "#009e73"],
]);
const BAD = [213, 0, 50];
const ROWS = 6;
const FAINT = 56;

export class Strip {
  /** @type {Uint8Array} 1: verified, 2: damaged */
  #state;

  /** @param {HTMLCanvasElement} canvas @param {import("../bstk.js").Container} file */
  constructor(canvas, file) {
    this.canvas = canvas;
    this.file = file;
    this.#state = new Uint8Array(file.index.count);
    this.colours = file.metadata.forms.map(({ kind }) => {
      const text = COLOURS.get(kind) ?? "#000000";
      return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    });
  }

  /** Note what verifying found of a block. @param {number} block @param {boolean} fine */
  mark(block, fine) {
    this.#state[block] = fine ? 1 : 2;
  }

  /** @param {number} loaded how many leading blocks are loaded */
  draw(loaded) {
    const { canvas, file } = this;
    const { index, available } = file;
    const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    const row = 12;
    canvas.width = width;
    canvas.height = ROWS * (row + 4) - 4;
    const context = canvas.getContext("2d");
    if (!context || !available) return;
    const image = context.createImageData(width, canvas.height);
    const total = Number(index.offset[available - 1]) + index.stored[available - 1];
    let b = 0;
    for (let cell = 0; cell < ROWS * width; cell++) {
      const byte = (cell / (ROWS * width)) * total;
      while (b + 1 < available && Number(index.offset[b + 1]) <= byte) b++;
      const state = this.#state[b];
      const [r, g, blue] = state === 2 ? BAD : this.colours[index.form[b]];
      const top = Math.floor(cell / width) * (row + 4);
      for (let y = top; y < top + row; y++) {
        // A verified block has a dark foot; a damaged one is red throughout.
        const foot = state === 1 && y >= top + row - 3;
        image.data.set(foot ? [20, 120, 60, 255] : [r, g, blue, b < loaded || state === 2 ? 255 : FAINT], 4 * (y * width + (cell % width)));
      }
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `${loaded} of ${available} blocks loaded`);
  }
}
