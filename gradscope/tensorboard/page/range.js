/** The numbers that the colours of the heat map span. */

const WIDEST = 12; // decades that a logarithmic scale shows; beyond that, colours within a layer could not be told apart
const OUTLYING = 0.05; // share of cells at either end that may then lie outside
const LOOKED_AT = 20000; // cells, evenly spread

/**
 * A share goes from 0 to 1 always. Of a run that blew up, the scale is that of most of its cells.
 *
 * @param {import("./types.js").Matrix} matrix
 * @returns {import("./types.js").Extent | null}
 */
export function colourExtent(matrix) {
  if (matrix.scale === "share") return { low: 0, high: 1 };
  if (matrix.low === null || matrix.high === null) return null;
  const whole = { low: matrix.low, high: matrix.high };
  if (matrix.scale !== "log" || Math.log10(whole.high / whole.low) <= WIDEST) return whole;
  const stride = Math.max(1, Math.floor(matrix.data.length / LOOKED_AT));
  const some = matrix.data.filter((value, cell) => cell % stride === 0 && value > 0 && value < Infinity).sort();
  if (!some.length) return whole;
  const at = (/** @type {number} */ share) => some[Math.round(share * (some.length - 1))];
  return { low: Math.max(whole.low, at(OUTLYING) / 10), high: Math.min(whole.high, at(1 - OUTLYING) * 10) };
}
