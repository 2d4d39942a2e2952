/** Numbers as codes of the palette, so that painting and comparing need whole numbers only. */

import { FIRST, LEVELS, MISSING, NONFINITE, ZERO } from "./ramp.js";

/**
 * @typedef {object} Codes
 * @property {Uint16Array} cells row after row
 * @property {number} rows
 * @property {number} columns
 * @property {Float32Array} rest of each row the mean of its codes: what stands out is far from it
 */

/**
 * @param {{data: Float32Array, shape: [number, number]}} table
 * @param {import("./types.js").ScaleKind} scale
 * @param {import("./types.js").Extent | null} extent that the ramp spans
 * @returns {Codes}
 */
export function encode(table, scale, extent) {
  const [rows, columns] = table.shape;
  const cells = new Uint16Array(rows * columns);
  const rest = new Float32Array(rows);
  const code = coder(scale, extent ?? { low: 0, high: 1 });
  for (let row = 0; row < rows; row++) {
    let [sum, count] = [0, 0];
    for (let cell = row * columns; cell < (row + 1) * columns; cell++) {
      const found = code(table.data[cell]);
      cells[cell] = found;
      if (found >= FIRST && found < NONFINITE) {
        sum += found;
        count++;
      }
    }
    rest[row] = count ? sum / count : FIRST;
  }
  return { cells, rows, columns, rest };
}

/**
 * How much a code stands out in a row whose codes are otherwise around `rest`.
 *
 * @param {number} code
 * @param {number} rest
 * @param {import("./types.js").ScaleKind} scale
 * @returns {number} -1 for what is missing
 */
export function prominence(code, rest, scale) {
  if (code === MISSING) return -1;
  if (code === NONFINITE) return 1e6;
  if (code === ZERO) return LEVELS;
  return scale === "share" ? code - FIRST : Math.abs(code - rest);
}

/**
 * One line of codes for several rows: of each column the code that stands out most.
 *
 * @param {Codes} codes
 * @param {import("./types.js").ScaleKind} scale
 * @param {readonly number[]} rows
 * @returns {{codes: Uint16Array, rest: number}}
 */
export function merged({ cells, columns, rest }, scale, rows) {
  if (rows.length === 1) return { codes: cells.subarray(rows[0] * columns, (rows[0] + 1) * columns), rest: rest[rows[0]] };
  const line = new Uint16Array(columns).fill(MISSING);
  const most = new Float32Array(columns).fill(-1);
  for (const row of rows) {
    for (let column = 0; column < columns; column++) {
      const code = cells[row * columns + column];
      const far = prominence(code, rest[row], scale);
      if (far > most[column]) [line[column], most[column]] = [code, far];
    }
  }
  return { codes: line, rest: rows.reduce((sum, row) => sum + rest[row], 0) / rows.length };
}

/**
 * @param {import("./types.js").ScaleKind} scale
 * @param {import("./types.js").Extent} extent
 * @returns {(value: number) => number}
 */
function coder(scale, extent) {
  const log = scale === "log";
  const low = log ? Math.log(extent.low) : extent.low;
  const width = (log ? Math.log(extent.high) : extent.high) - low || 1;
  return (value) => {
    if (Number.isNaN(value)) return MISSING;
    if (value === Infinity || value === -Infinity) return NONFINITE;
    if (log && value <= 0) return ZERO;
    const level = Math.round((((log ? Math.log(value) : value) - low) / width) * (LEVELS - 1));
    return FIRST + (level < 0 ? 0 : level >= LEVELS ? LEVELS - 1 : level);
  };
}
