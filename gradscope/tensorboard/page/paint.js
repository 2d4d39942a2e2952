/** Fills a canvas with cells: a pass over whole numbers, fast enough for every frame. */

import { prominence } from "./encode.js";
import { MISSING, NONFINITE, palette, stripePixels } from "./ramp.js";
import { colours } from "./theme.js";

const LEAST_STRIPES = 3; // pixels that a cell that is not finite takes at least, so that one step can be seen
const STRIPE = 3; // pixels

/**
 * One line of cells, `null` where there is none; its codes, one a column, and what they are around.
 *
 * @typedef {{codes: Uint16Array, rest: number} | null} Line
 */

/**
 * Paints `lines` from `top` on, each `height` pixels high; both may be fractions. Sizes are pixels of the canvas.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {import("./types.js").ScaleKind} scale
 * @param {{from: Int32Array, to: Int32Array}} columns
 * @param {readonly Line[]} lines
 * @param {{top: number, height: number, gap: number}} place
 */
export function paint(context, scale, columns, lines, place) {
  const { width, height } = context.canvas;
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [pixelOf, stripes] = [palette(colours().missing), stripePixels()];
  const shown = new Uint16Array(width);
  const from = Math.max(0, Math.floor(-place.top / place.height));
  for (let at = from; at < lines.length; at++) {
    const top = Math.round(place.top + at * place.height);
    if (top >= height) break;
    const line = lines[at];
    if (!line) continue;
    const bottom = Math.min(height, Math.round(place.top + (at + 1) * place.height) - place.gap);
    pick(shown, line, scale, columns);
    fillLine(pixels, width, Math.max(0, top), Math.max(bottom, top + 1), shown, pixelOf, stripes);
  }
  context.putImageData(image, 0, 0);
}

/**
 * The row and column that stand out most among those that a pixel shows; -1, -1 where nothing was captured.
 *
 * @param {import("./encode.js").Codes} codes
 * @param {import("./types.js").ScaleKind} scale
 * @param {readonly number[]} rows
 * @param {number} from
 * @param {number} to
 * @returns {[number, number]}
 */
export function outstanding(codes, scale, rows, from, to) {
  /** @type {[number, number]} */
  let found = [-1, -1];
  let most = -1;
  for (const row of rows) {
    for (let column = Math.max(0, from); column <= to && from >= 0; column++) {
      const far = prominence(codes.cells[row * codes.columns + column], codes.rest[row], scale);
      if (far > most) [found, most] = [[row, column], far];
    }
  }
  return found;
}

/**
 * @param {Uint16Array} shown filled with the code of each pixel
 * @param {NonNullable<Line>} line
 * @param {import("./types.js").ScaleKind} scale
 * @param {{from: Int32Array, to: Int32Array}} columns
 */
function pick(shown, line, scale, columns) {
  for (let pixel = 0; pixel < shown.length; pixel++) {
    const [from, to] = [columns.from[pixel], columns.to[pixel]];
    shown[pixel] = from < 0 ? MISSING : line.codes[from];
    if (from < 0 || from === to) continue;
    let most = prominence(shown[pixel], line.rest, scale);
    for (let column = from + 1; column <= to; column++) {
      const far = prominence(line.codes[column], line.rest, scale);
      if (far > most) [shown[pixel], most] = [line.codes[column], far];
    }
  }
  widen(shown);
}

/** @param {Uint16Array} shown in which stretches that are not finite become wide enough to be seen */
function widen(shown) {
  for (let pixel = 0; pixel < shown.length; pixel++) {
    if (shown[pixel] !== NONFINITE) continue;
    let end = pixel;
    while (end < shown.length && shown[end] === NONFINITE) end++;
    const until = Math.min(shown.length, Math.max(end, pixel + LEAST_STRIPES));
    shown.fill(NONFINITE, pixel, until);
    pixel = until;
  }
}

/**
 * @param {Uint32Array} pixels
 * @param {number} width
 * @param {number} top
 * @param {number} bottom
 * @param {Uint16Array} shown
 * @param {Uint32Array} pixelOf
 * @param {[number, number]} stripes
 */
function fillLine(pixels, width, top, bottom, shown, pixelOf, stripes) {
  for (let y = top; y < bottom; y++) {
    const start = y * width;
    for (let x = 0; x < width; x++) {
      const code = shown[x];
      pixels[start + x] = code === NONFINITE ? stripes[Math.floor((x + y) / STRIPE) & 1] : pixelOf[code];
    }
  }
}
