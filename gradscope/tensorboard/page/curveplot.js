/** Draws one curve over the steps: a line, a mark on top where it is not finite, the chosen step. */

import { sized } from "./dom.js";
import { short } from "./numbers.js";
import { STRIPES } from "./ramp.js";
import { colours } from "./theme.js";

const HEIGHT = 58;
const PAD = 6; // above and below the curve
const LOG_FROM = 30; // the ratio of largest to smallest from which the axis is logarithmic

/**
 * @typedef {object} View
 * @property {import("./types.js").Scalars} scalars
 * @property {import("./steps.js").StepScale} scale
 * @property {(import("./types.js").Extent | null)[]} extents
 * @property {number | null} step
 */

/**
 * @typedef {object} Pointed
 * @property {number | null} step under the pointer
 * @property {readonly [number, number] | null} drag pixels from and to
 */

/**
 * @param {HTMLCanvasElement} canvas
 * @param {View} view
 * @param {number} index
 * @param {Pointed} pointed
 * @returns {string} the axis in words
 */
export function drawStrip(canvas, view, index, pointed) {
  const context = sized(canvas, view.scale.width, HEIGHT);
  const paint = colours();
  const extent = view.extents[index];
  const log = extent !== null && extent.low > 0 && extent.high / extent.low > LOG_FROM;
  const y = height(extent, log);
  drawNonfinite(context, view, index);
  context.fillStyle = context.strokeStyle = paint.accent;
  context.lineJoin = "round";
  context.lineWidth = 1.5;
  drawBand(context, view, index, y);
  for (const [step, alpha] of /** @type {const} */ ([
    [view.step, 1],
    [pointed.step, 0.5],
  ])) {
    if (step === null || step < view.scale.first || step > view.scale.last) continue;
    context.globalAlpha = alpha;
    context.fillStyle = paint.ink;
    context.fillRect(Math.round(view.scale.x(step + 0.5)), 0, 1, HEIGHT);
  }
  context.globalAlpha = 1;
  if (pointed.drag) shade(context, view.scale.width, pointed.drag);
  if (!extent) return "not captured";
  return extent.low === extent.high
    ? `always ${short(extent.low)}`
    : `${short(extent.low)} to ${short(extent.high)}${log ? ", log" : ""}`;
}

/**
 * The least and the largest number of each column of one curve.
 *
 * @param {import("./types.js").Scalars} scalars
 * @param {number} index
 * @returns {Float32Array[]}
 */
export function endsOf({ data, shape: [, columns] }, index) {
  return [2 * index, 2 * index + 1].map((row) => data.subarray(row * columns, (row + 1) * columns));
}

/**
 * A line through the columns, as thick as the numbers of a column are apart.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {number} index
 * @param {(value: number) => number} y
 */
function drawBand(context, { scalars, scale }, index, y) {
  const [low, high] = endsOf(scalars, index);
  context.beginPath();
  let drawing = false;
  for (let column = 0; column < low.length; column++) {
    const x = scale.x((scalars.first[column] + scalars.last[column] + 1) / 2);
    if (!Number.isFinite(low[column])) {
      drawing = false;
      continue;
    }
    const top = Number.isFinite(high[column]) ? high[column] : low[column];
    if (drawing) context.lineTo(x, y(low[column]));
    else context.moveTo(x, y(low[column]));
    if (top !== low[column]) context.lineTo(x, y(top));
    drawing = true;
  }
  context.stroke();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {View} view
 * @param {number} index
 */
function drawNonfinite(context, { scalars, scale }, index) {
  const [, high] = endsOf(scalars, index);
  for (let column = 0; column < high.length; column++) {
    if (Math.abs(high[column]) !== Infinity) continue;
    const left = scale.x(scalars.first[column]);
    const right = scale.x(scalars.last[column] + 1);
    context.fillStyle = STRIPES[0];
    context.fillRect(left, 0, Math.max(2, right - left), 4);
    context.globalAlpha = 0.14;
    context.fillRect(left, 0, Math.max(2, right - left), HEIGHT);
    context.globalAlpha = 1;
  }
}

/**
 * @param {import("./types.js").Extent | null} extent
 * @param {boolean} log
 * @returns {(value: number) => number}
 */
function height(extent, log) {
  if (!extent || extent.low === extent.high) return () => HEIGHT / 2;
  const on = log ? Math.log : (/** @type {number} */ value) => value;
  const [low, high] = [on(extent.low), on(extent.high)];
  return (value) => HEIGHT - PAD - ((on(value) - low) / (high - low)) * (HEIGHT - 2 * PAD);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} width
 * @param {readonly [number, number]} drag
 */
function shade(context, width, [from, to]) {
  context.fillStyle = "rgba(127, 127, 127, 0.35)";
  context.fillRect(0, 0, from, HEIGHT);
  context.fillRect(to, 0, width - to, HEIGHT);
}
