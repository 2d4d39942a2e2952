/** Loss, gradient norm and learning rate over the steps, above the heat map and on the same axis. */

import { element, onceAFrame, sized } from "./dom.js";
import { short, span } from "./numbers.js";
import { listen } from "./pointer.js";
import { STRIPES } from "./ramp.js";
import { columnAt } from "./steps.js";
import { colours } from "./theme.js";

export const CURVES = ["Loss", "Gradient norm", "Learning rate"];
const HEIGHT = 58;
const PAD = 6; // above and below the curve
const LOG_FROM = 30; // the ratio of largest to smallest from which the axis is logarithmic

/** @typedef {{scalars: import("./types.js").Scalars, scale: import("./steps.js").StepScale, extents: (import("./types.js").Extent | null)[], step: number | null}} View */

/** @param {import("./pane.js").Actions} actions */
export function createCurves(actions) {
  /** @type {{view: View | null, hovered: number | null}} */
  const now = { view: null, hovered: null };
  const strips = CURVES.map((title, index) => createStrip(title, index, now, actions));
  const redraw = onceAFrame(
    () => now.view && strips.forEach((strip) => strip.draw(/** @type {View} */ (now.view), now.hovered)),
  );
  return {
    element: element("div", { class: "curves" }, ...strips.flatMap((strip) => [strip.label, strip.plot])),
    /** @param {View | null} view */
    draw(view) {
      now.view = view;
      redraw();
    },
    /** @param {number | null} step */
    point(step) {
      now.hovered = step;
      redraw();
    },
  };
}

/**
 * The least and largest finite number of each curve.
 *
 * @param {import("./types.js").Scalars | undefined} scalars
 * @returns {(import("./types.js").Extent | null)[]}
 */
export function curveExtents(scalars) {
  return CURVES.map((_, index) => {
    let [low, high] = [Infinity, -Infinity];
    const columns = scalars?.shape[1] ?? 0;
    for (const value of scalars?.data.subarray(2 * index * columns, (2 * index + 2) * columns) ?? []) {
      if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    return low <= high ? { low, high } : null;
  });
}

/**
 * @param {string} title
 * @param {number} index
 * @param {{view: View | null}} now
 * @param {import("./pane.js").Actions} actions
 */
function createStrip(title, index, now, actions) {
  const value = element("span", { class: "curve-value" });
  const range = element("span", { class: "curve-range" });
  const canvas = element("canvas", { role: "img" });
  const plot = element("div", { class: "curve-plot" }, canvas);
  const step = (/** @type {number} */ x) => now.view?.scale.step(x) ?? 0;
  listen(plot, {
    hover: (x) => actions.hover(step(x)),
    leave: () => actions.hover(null),
    choose: (x) => actions.choose({ step: step(x) }),
    drag: () => {},
    zoom: (from, to) => actions.zoom(step(from), step(to)),
    reset: () => actions.zoom(null, null),
  });
  return {
    label: element("div", { class: "curve-label" }, element("span", {}, title), value, range),
    plot,
    /**
     * @param {View} view
     * @param {number | null} hovered
     */
    draw(view, hovered) {
      const at = hovered ?? view.step ?? view.scale.last;
      value.textContent = short(valueAt(view.scalars, index, at));
      range.textContent = drawStrip(canvas, view, index, hovered);
      canvas.setAttribute("aria-label", `${title} over ${span(view.scale.first, view.scale.last)}. ${range.textContent}`);
    },
  };
}

/**
 * @param {import("./types.js").Scalars} scalars
 * @param {number} index of the curve
 * @param {number} step
 * @returns {number}
 */
function valueAt(scalars, index, step) {
  const columns = scalars.shape[1];
  const column = columnAt(scalars.first, step);
  return column < 0 ? NaN : scalars.data[(2 * index + 1) * columns + column];
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {View} view
 * @param {number} index
 * @param {number | null} hovered
 * @returns {string} the axis in words
 */
function drawStrip(canvas, view, index, hovered) {
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
    [hovered, 0.5],
  ])) {
    if (step === null || step < view.scale.first || step > view.scale.last) continue;
    context.globalAlpha = alpha;
    context.fillStyle = paint.ink;
    context.fillRect(Math.round(view.scale.x(step + 0.5)), 0, 1, HEIGHT);
  }
  context.globalAlpha = 1;
  if (!extent) return "not captured";
  return extent.low === extent.high
    ? `always ${short(extent.low)}`
    : `${short(extent.low)} to ${short(extent.high)}${log ? ", log" : ""}`;
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
  const columns = scalars.shape[1];
  const [low, high] = [0, 1].map((half) =>
    scalars.data.subarray((2 * index + half) * columns, (2 * index + half + 1) * columns),
  );
  context.beginPath();
  let drawing = false;
  for (let column = 0; column < columns; column++) {
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
  const columns = scalars.shape[1];
  const high = scalars.data.subarray((2 * index + 1) * columns, (2 * index + 2) * columns);
  for (let column = 0; column < columns; column++) {
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
