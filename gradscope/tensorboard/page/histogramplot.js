/** Draws magnitudes over time: powers of two against steps, brightness being the share of elements. */

import { PLOT_FONT } from "./axis.js";
import { sized } from "./dom.js";
import { encode, merged } from "./encode.js";
import { binsShown, edges, emptyColumns, magnitude } from "./magnitudes.js";
import { span } from "./numbers.js";
import { paint } from "./paint.js";
import { columnAt, pixelColumns, stepScale } from "./steps.js";
import { colours } from "./theme.js";

export const LEFT = 40; // pixels for the magnitudes' names
const HEIGHT = 190;
const MOST_LABELS = 7;

/**
 * @typedef {object} View
 * @property {import("./types.js").Histogram} histogram
 * @property {import("./types.js").Extent | undefined} extent powers of two
 * @property {number} share of elements that the brightest colour stands for
 * @property {import("./steps.js").StepScale} scale
 * @property {number | null} step
 * @property {number} width
 */

/**
 * @param {View} view
 * @returns {import("./steps.js").StepScale}
 */
export function plotScale({ scale, width }) {
  return stepScale(scale.first, scale.last, Math.max(1, width - LEFT));
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {View} view
 */
export function drawPlot(canvas, view) {
  const { histogram, step } = view;
  const scale = plotScale(view);
  const bins = binsShown(histogram, view.extent);
  const cells = drawCells(view, scale, bins);
  const target = sized(canvas, view.width, HEIGHT);
  target.drawImage(cells, LEFT, 0, scale.width, HEIGHT);
  drawMagnitudes(target, bins, histogram.lowest);
  if (step === null || step < scale.first || step > scale.last) return;
  const x = Math.round(LEFT + scale.x(step + 0.5));
  target.fillStyle = "rgba(0, 0, 0, 0.65)";
  target.fillRect(x - 1, 0, 3, HEIGHT);
  target.fillStyle = "#ffffff";
  target.fillRect(x, 0, 1, HEIGHT);
}

/**
 * What a point of the picture says.
 *
 * @param {View} view
 * @param {number} x
 * @param {number} y
 * @returns {{title: string, lines: string[]} | null}
 */
export function describe(view, x, y) {
  const { histogram } = view;
  const bins = binsShown(histogram, view.extent);
  const bin = bins[Math.floor((y / HEIGHT) * bins.length)];
  const column = columnAt(histogram.first, plotScale(view).step(x - LEFT));
  if (bin === undefined || column < 0) return null;
  const share = histogram.data[bin * histogram.shape[1] + column];
  const steps = span(histogram.first[column], histogram.last[column]);
  if (Number.isNaN(share)) return { title: "Not captured", lines: [steps] };
  return { title: `${(100 * share).toFixed(2)} % of elements`, lines: [edges(histogram, bin), steps] };
}

/**
 * @param {View} view
 * @param {import("./steps.js").StepScale} scale
 * @param {readonly number[]} bins
 * @returns {HTMLCanvasElement}
 */
function drawCells({ histogram, share }, scale, bins) {
  const cells = document.createElement("canvas");
  sized(cells, scale.width, HEIGHT);
  const empty = emptyColumns(histogram);
  const data = histogram.data.map((value, cell) => (empty[cell % empty.length] ? NaN : value));
  const codes = encode({ data, shape: histogram.shape }, "share", { low: 0, high: share || 1 });
  const lines = bins.map((bin) => merged(codes, "share", [bin]));
  const context = /** @type {CanvasRenderingContext2D} */ (cells.getContext("2d"));
  const place = { top: 0, height: cells.height / bins.length, gap: 0 };
  paint(context, "share", pixelColumns(scale, histogram, cells.width), lines, place);
  return cells;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {readonly number[]} bins
 * @param {number} lowest
 */
function drawMagnitudes(context, bins, lowest) {
  context.font = PLOT_FONT;
  context.fillStyle = colours().quiet;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const every = Math.ceil(bins.length / MOST_LABELS);
  bins.forEach((bin, index) => {
    if (index % every) return;
    const y = Math.min(HEIGHT - 6, Math.max(6, ((index + 0.5) / bins.length) * HEIGHT));
    context.fillText(magnitude(bin + lowest), LEFT - 6, y);
  });
}
