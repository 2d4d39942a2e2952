/** The magnitudes in one module over time. */

import { PLOT_FONT } from "./axis.js";
import { element, onceAFrame, sized } from "./dom.js";
import { encode, merged } from "./encode.js";
import { counted, span } from "./numbers.js";
import { paint } from "./paint.js";
import { columnAt, pixelColumns, stepScale } from "./steps.js";
import { colours } from "./theme.js";

const HEIGHT = 190;
const LEFT = 40;
const LEAST_BINS = 12;
const TITLES = new Map([
  ["activation", "Activations"],
  ["activation_gradient", "Gradients of activations"],
  ["weight", "Weights"],
  ["weight_gradient", "Gradients of weights"],
]);

/** @typedef {{histogram: import("./types.js").Histogram, scale: import("./steps.js").StepScale, step: number | null, width: number}} View */

/** @param {import("./pane.js").Actions} actions */
export function createHistogram(actions) {
  /** @type {View | null} */
  let view = null;
  const title = element("h2", {}, "Magnitudes over time");
  const name = element("span", { class: "path" });
  const canvas = element("canvas", { role: "img" });
  const note = element("p", { class: "note" });
  const redraw = onceAFrame(() => view && drawPlot(canvas, view));
  canvas.addEventListener("pointermove", (event) => {
    const told = view && describe(view, event.offsetX, event.offsetY);
    if (told) actions.tell(event.clientX, event.clientY, told.title, told.lines);
  });
  canvas.addEventListener("pointerleave", () => actions.hover(null));
  canvas.addEventListener("click", (event) => {
    if (view && event.offsetX >= LEFT) actions.choose({ step: plotScale(view).step(event.offsetX - LEFT) });
  });
  const heading = element("div", { class: "card-head" }, title, name);
  return {
    element: element("section", { class: "card", "aria-label": "Magnitudes over time" }, heading, canvas, note),
    /** @param {View} next */
    draw(next) {
      view = next;
      const { kind, name: site } = next.histogram;
      title.textContent = `${TITLES.get(kind) ?? kind} over time`;
      name.textContent = site || "(model)";
      const { count } = next.histogram;
      const recorded = count.reduce((sum, steps) => sum + steps, 0);
      const most = highest(next.histogram);
      note.textContent = most
        ? `Share of elements by magnitude, from 0 (dark) to ${(100 * most).toFixed(0)} % (bright), at ${counted(recorded, "recorded step")}.`
        : "No histogram of this module was recorded in these steps.";
      canvas.setAttribute(
        "aria-label",
        `${title.textContent} in ${name.textContent}, ${span(next.scale.first, next.scale.last)}`,
      );
      redraw();
    },
  };
}

/**
 * @param {import("./types.js").Histogram} histogram
 * @returns {number}
 */
function highest(histogram) {
  return histogram.data.reduce((most, value) => (value > most ? value : most), 0);
}

/**
 * @param {View} view
 * @returns {import("./steps.js").StepScale}
 */
function plotScale({ scale, width }) {
  return stepScale(scale.first, scale.last, Math.max(1, width - LEFT));
}

/**
 * The bins that hold anything, a few more at either end.
 *
 * @param {import("./types.js").Histogram} histogram
 * @returns {number[]} from the largest magnitude to the smallest
 */
function binsShown({ data, shape: [bins, columns] }) {
  const used = Array.from({ length: bins }, (_, bin) =>
    data.subarray(bin * columns, (bin + 1) * columns).some((value) => value > 0),
  );
  let low = Math.max(0, used.indexOf(true) - 1);
  let high = Math.min(bins - 1, used.lastIndexOf(true) + 1);
  while (high - low + 1 < Math.min(LEAST_BINS, bins)) {
    if (low > 0) low--;
    if (high < bins - 1) high++;
  }
  return Array.from({ length: high - low + 1 }, (_, index) => high - index);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {View} view
 */
function drawPlot(canvas, view) {
  const { histogram, step } = view;
  const scale = plotScale(view);
  const bins = binsShown(histogram);
  const cells = document.createElement("canvas");
  const context = sized(cells, scale.width, HEIGHT);
  const empty = emptyColumns(histogram);
  const data = histogram.data.map((value, cell) => (empty[cell % empty.length] ? NaN : value));
  const codes = encode({ data, shape: histogram.shape }, "share", { low: 0, high: highest(histogram) || 1 });
  const lines = bins.map((bin) => merged(codes, "share", [bin]));
  paint(context, "share", pixelColumns(scale, histogram, cells.width), lines, {
    top: 0,
    height: cells.height / bins.length,
    gap: 0,
  });
  const target = sized(canvas, view.width, HEIGHT);
  target.drawImage(cells, LEFT, 0, scale.width, HEIGHT);
  drawMagnitudes(target, bins, histogram.lowest);
  if (step === null || step < scale.first || step > scale.last) return;
  target.fillStyle = "#ffffff";
  target.fillRect(Math.round(LEFT + scale.x(step + 0.5)), 0, 1.5, HEIGHT);
}

/**
 * @param {import("./types.js").Histogram} histogram
 * @returns {boolean[]} columns in which nothing was captured
 */
function emptyColumns({ data, shape: [bins, columns] }) {
  return Array.from({ length: columns }, (_, column) => {
    for (let bin = 0; bin < bins; bin++) if (data[bin * columns + column] > 0) return false;
    return true;
  });
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
  const every = Math.ceil(bins.length / 7);
  bins.forEach((bin, index) => {
    if (index % every) return;
    const y = Math.min(HEIGHT - 6, Math.max(6, ((index + 0.5) / bins.length) * HEIGHT));
    context.fillText(magnitude(bin + lowest), LEFT - 6, y);
  });
}

/**
 * @param {View} view
 * @param {number} x
 * @param {number} y
 */
function describe(view, x, y) {
  const { histogram } = view;
  const bins = binsShown(histogram);
  const bin = bins[Math.floor((y / HEIGHT) * bins.length)];
  const column = columnAt(histogram.first, plotScale(view).step(x - LEFT));
  if (x < LEFT || bin === undefined || column < 0) return null;
  const share = histogram.data[bin * histogram.shape[1] + column];
  const edges = `${magnitude(bin + histogram.lowest)} ≤ |x| < ${magnitude(bin + histogram.lowest + 1)}`;
  return {
    title: `${(100 * share).toFixed(2)} % of elements`,
    lines: [edges, span(histogram.first[column], histogram.last[column])],
  };
}

/**
 * @param {number} exponent of two
 * @returns {string}
 */
function magnitude(exponent) {
  const value = 2 ** exponent;
  return value >= 0.01 && value < 1000 ? String(Number(value.toPrecision(2))) : value.toExponential(0);
}
