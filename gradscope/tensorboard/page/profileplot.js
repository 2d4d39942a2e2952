/** Draws the depth profile: marks, their fitted lines, and decades. */

import { PLOT_FONT } from "./axis.js";
import { sized } from "./dom.js";
import { powerOfTen, real } from "./numbers.js";
import { colours } from "./theme.js";

const HEIGHT = 250;
const MARGIN = { left: 40, right: 12, top: 10, bottom: 24 };
const MANY = 60; // layers, of which marks are smaller
// What varies over the batch is what a layer tells of its input; a constant offset beside it says nothing.
export const FITTED = /** @type {const} */ ([
  { key: "signal", title: "Signal", colour: "forward" },
  { key: "gradient", title: "Gradient", colour: "backward" },
]);
export const SERIES = /** @type {const} */ ([{ key: "activation", title: "Activation", colour: "quiet" }, ...FITTED]);

/**
 * @typedef {object} View
 * @property {import("./types.js").Profile} profile
 * @property {import("./types.js").Extent | null} extent
 * @property {string | null} module
 * @property {number} width
 */

/**
 * The least and largest number above zero.
 *
 * @param {import("./types.js").Profile | undefined} profile
 * @returns {import("./types.js").Extent | null}
 */
export function profileExtent(profile) {
  const values = (profile?.rows ?? []).flatMap((row) => SERIES.map(({ key }) => real(row[key])));
  const usable = values.filter((value) => value > 0 && Number.isFinite(value));
  if (!usable.length) return null;
  return { low: usable.reduce((a, b) => Math.min(a, b)), high: usable.reduce((a, b) => Math.max(a, b)) };
}

/**
 * @param {View} view
 * @returns {{x: (row: number) => number, y: (log: number) => number, low: number, high: number}}
 */
function axes({ profile, extent, width }) {
  let [low, high] = extent ? [Math.log10(extent.low), Math.log10(extent.high)] : [-1, 0];
  if (high - low < 1) [low, high] = [(low + high) / 2 - 0.5, (low + high) / 2 + 0.5]; // no less than a decade: noise stays flat
  const plot = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const apart = plot.width / Math.max(1, profile.rows.length - 1);
  return {
    x: (row) => MARGIN.left + (profile.rows.length > 1 ? row * apart : plot.width / 2),
    y: (log) => MARGIN.top + ((high - log) / (high - low)) * plot.height,
    low,
    high,
  };
}

/**
 * @param {View} view
 * @param {number} x
 * @returns {number}
 */
export function rowAt(view, x) {
  const { x: place } = axes(view);
  const apart = place(1) - place(0) || 1;
  return Math.min(view.profile.rows.length - 1, Math.max(0, Math.round((x - place(0)) / apart)));
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {View} view
 * @param {number} hovered
 */
export function drawPlot(canvas, view, hovered) {
  const context = sized(canvas, view.width, HEIGHT);
  const paint = colours();
  const on = axes(view);
  context.font = PLOT_FONT;
  drawGrid(context, on, view, paint);
  const chosen = view.profile.rows.findIndex((row) => row.module === view.module);
  for (const [row, alpha] of [
    [chosen, 0.22],
    [hovered, 0.12],
  ]) {
    if (row < 0) continue;
    context.globalAlpha = alpha;
    context.fillStyle = paint.ink;
    context.fillRect(on.x(row) - 4, MARGIN.top, 8, HEIGHT - MARGIN.top - MARGIN.bottom);
  }
  context.globalAlpha = 1;
  for (const series of SERIES) drawSeries(context, on, view.profile, series, paint[series.colour]);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {ReturnType<typeof axes>} on
 * @param {View} view
 * @param {ReturnType<typeof colours>} paint
 */
function drawGrid(context, on, view, paint) {
  context.strokeStyle = paint.line;
  context.fillStyle = paint.quiet;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const every = Math.max(1, Math.ceil((on.high - on.low) / 8));
  for (let power = Math.ceil(on.low / every) * every; power <= on.high; power += every) {
    const y = Math.round(on.y(power)) + 0.5;
    context.strokeRect(MARGIN.left, y, view.width - MARGIN.left - MARGIN.right, 0);
    context.fillText(powerOfTen(power), MARGIN.left - 6, y);
  }
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillText("first layer", MARGIN.left, HEIGHT - 16);
  context.textAlign = "right";
  context.fillText(`last of ${view.profile.rows.length}`, view.width - MARGIN.right, HEIGHT - 16);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {ReturnType<typeof axes>} on
 * @param {import("./types.js").Profile} profile
 * @param {typeof SERIES[number]} series
 * @param {string} colour
 */
function drawSeries(context, on, profile, series, colour) {
  const fit = series.key === "activation" ? null : profile.fits[series.key];
  context.strokeStyle = context.fillStyle = colour;
  if (fit) {
    const last = profile.rows.length - 1;
    context.setLineDash([5, 4]);
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(on.x(0), on.y(fit.intercept));
    context.lineTo(on.x(last), on.y(fit.intercept + fit.slope * last));
    context.stroke();
    context.setLineDash([]);
  }
  const size = profile.rows.length > MANY ? 2 : 3.5;
  profile.rows.forEach((row, index) => {
    const value = real(row[series.key]);
    if (!(value > 0) && value !== Infinity && value !== -Infinity) return;
    const finite = Number.isFinite(value);
    mark(context, series.key, on.x(index), finite ? on.y(Math.log10(value)) : MARGIN.top, size, finite);
  });
}

/**
 * A disc for the signal, a square for the gradient, a ring for the activation, a cross at the top for what is not finite.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {"activation" | "signal" | "gradient"} key
 * @param {number} x
 * @param {number} y
 * @param {number} size
 * @param {boolean} finite
 */
function mark(context, key, x, y, size, finite) {
  context.beginPath();
  if (!finite) {
    context.moveTo(x - 4, y - 4);
    context.lineTo(x + 4, y + 4);
    context.moveTo(x + 4, y - 4);
    context.lineTo(x - 4, y + 4);
    context.lineWidth = 2;
    context.stroke();
    return;
  }
  if (key === "gradient") context.rect(x - size, y - size, 2 * size, 2 * size);
  else context.arc(x, y, size, 0, 2 * Math.PI);
  context.lineWidth = 1;
  if (key === "activation") context.stroke();
  else context.fill();
}
