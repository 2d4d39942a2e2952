/** Where steps lie across a plot: in true proportion, each as wide as the next. */

/**
 * @typedef {object} StepScale
 * @property {number} first
 * @property {number} last
 * @property {number} width
 * @property {(step: number) => number} x left edge of a step
 * @property {(x: number) => number} step the step at x, a whole number
 */

/**
 * @param {number} first
 * @param {number} last
 * @param {number} width
 * @returns {StepScale}
 */
export function stepScale(first, last, width) {
  const steps = last + 1 - first;
  return {
    first,
    last,
    width,
    x: (step) => ((step - first) / steps) * width,
    step: (x) => Math.min(last, Math.max(first, Math.floor(first + (x / width) * steps))),
  };
}

/**
 * The last column that begins at `step` or before; -1 where none does.
 *
 * @param {ArrayLike<number>} firsts rising
 * @param {number} step
 * @returns {number}
 */
export function columnAt(firsts, step) {
  let [low, high] = [0, firsts.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (firsts[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * The columns that each of `pixels` pixels shows, from one to another, both included; from -1 where there are none. A column
 * reaches to the next one, and the last as far as the one before it does.
 *
 * @param {StepScale} scale
 * @param {import("./types.js").Table} table
 * @param {number} pixels
 * @returns {{from: Int32Array, to: Int32Array}}
 */
export function pixelColumns(scale, table, pixels) {
  const { first, last } = table;
  const count = first.length;
  const end = count ? last[count - 1] + (count > 1 ? Math.max(1, first[count - 1] - last[count - 2]) : 1) : 0;
  const from = new Int32Array(pixels).fill(-1);
  const to = new Int32Array(pixels).fill(-1);
  const perPixel = (scale.last + 1 - scale.first) / pixels;
  for (let pixel = 0; pixel < pixels; pixel++) {
    const left = scale.first + pixel * perPixel;
    to[pixel] = columnAt(first, left + perPixel - 1e-9);
    from[pixel] = left >= end || to[pixel] < 0 ? -1 : Math.max(0, columnAt(first, left));
  }
  return { from, to };
}

/**
 * Round steps for an axis, at least `room` pixels apart.
 *
 * @param {StepScale} scale
 * @param {number} room
 * @returns {number[]}
 */
export function stepTicks(scale, room) {
  const least = Math.max(1, ((scale.last + 1 - scale.first) * room) / scale.width);
  const power = 10 ** Math.floor(Math.log10(least));
  const unit = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= least) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(scale.first / unit) * unit; tick <= scale.last && ticks.length < 100; tick += unit)
    ticks.push(tick);
  return ticks;
}
