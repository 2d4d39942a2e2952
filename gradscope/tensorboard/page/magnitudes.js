/** Histograms as rows of powers of two, from the largest magnitude to the smallest. */

const LEAST_BINS = 12;

/** @typedef {import("./types.js").Histogram} Histogram */
/** @typedef {import("./types.js").Extent} Extent */

/**
 * The powers of two that hold anything, one more at either end; null where nothing was captured.
 *
 * @param {Histogram} histogram
 * @returns {Extent | null}
 */
export function magnitudesIn({ data, lowest, shape: [bins, columns] }) {
  const used = Array.from({ length: bins }, (_, bin) =>
    data.subarray(bin * columns, (bin + 1) * columns).some((value) => value > 0),
  );
  if (!used.includes(true)) return null;
  const [low, high] = [used.indexOf(true) - 1, used.lastIndexOf(true) + 1];
  return { low: lowest + Math.max(0, low), high: lowest + Math.min(bins - 1, high) };
}

/**
 * @param {Histogram} histogram
 * @returns {Extent} from nothing to the largest share of elements that a bin has
 */
export function sharesIn({ data }) {
  return { low: 0, high: data.reduce((most, value) => (value > most ? value : most), 0) };
}

/**
 * The bins that are shown for an extent, no fewer than make a picture.
 *
 * @param {Histogram} histogram
 * @param {Extent | undefined} extent
 * @returns {number[]} from the largest magnitude to the smallest
 */
export function binsShown({ lowest, shape: [bins] }, extent) {
  let [low, high] = extent ? [extent.low - lowest, extent.high - lowest] : [0, bins - 1];
  while (high - low + 1 < Math.min(LEAST_BINS, bins)) {
    if (low > 0) low--;
    if (high < bins - 1) high++;
  }
  return Array.from({ length: high - low + 1 }, (_, index) => high - index);
}

/**
 * @param {Histogram} histogram
 * @returns {boolean[]} columns in which nothing was captured
 */
export function emptyColumns({ data, shape: [bins, columns] }) {
  return Array.from({ length: columns }, (_, column) => {
    for (let bin = 0; bin < bins; bin++) if (data[bin * columns + column] > 0) return false;
    return true;
  });
}

/**
 * Which magnitudes a bin has; the first and the last have what lies beyond, too.
 *
 * @param {Histogram} histogram
 * @param {number} bin
 * @returns {string}
 */
export function edges({ lowest, shape: [bins] }, bin) {
  const [from, to] = [magnitude(bin + lowest), magnitude(bin + lowest + 1)];
  if (bin === 0) return `|x| < ${to}, zeros included`;
  return bin === bins - 1 ? `|x| ≥ ${from}, or not finite` : `${from} ≤ |x| < ${to}`;
}

/**
 * @param {number} exponent of two
 * @returns {string}
 */
export function magnitude(exponent) {
  const value = 2 ** exponent;
  return value >= 0.01 && value < 1000 ? String(Number(value.toPrecision(2))) : value.toExponential(0);
}
