/** Loss, gradient norm and learning rate over the steps, above the heat map and on the same axis. */

import { drawStrip, endsOf } from "./curveplot.js";
import { element, onceAFrame } from "./dom.js";
import { short, span } from "./numbers.js";
import { listen } from "./pointer.js";
import { columnAt } from "./steps.js";

const CURVES = ["Loss", "Gradient norm", "Learning rate"];

/** @typedef {import("./curveplot.js").View} View */
/** @typedef {import("./curveplot.js").Pointed} Pointed */
/** @typedef {{view: View | null, pointed: Pointed}} Now */

/** @param {import("./pane.js").Actions} actions */
export function createCurves(actions) {
  /** @type {Now} */
  const now = { view: null, pointed: { step: null, drag: null } };
  const redraw = onceAFrame(() => {
    const { view, pointed } = now;
    if (view) for (const strip of strips) strip.draw(view, pointed);
  });
  const strips = CURVES.map((title, index) => createStrip(title, index, now, actions, redraw));
  return {
    element: element("div", { class: "curves" }, ...strips.flatMap((strip) => [strip.label, strip.plot])),
    /** @param {View | null} view */
    draw(view) {
      now.view = view;
      redraw();
    },
    /** @param {number | null} step */
    point(step) {
      now.pointed = { ...now.pointed, step };
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
 * @param {Now} now
 * @param {import("./pane.js").Actions} actions
 * @param {() => void} redraw
 */
function createStrip(title, index, now, actions, redraw) {
  const value = element("span", { class: "curve-value" });
  const range = element("span", { class: "curve-range" });
  const canvas = element("canvas", { role: "img" });
  const plot = element("div", { class: "curve-plot" }, canvas);
  const step = (/** @type {number} */ x) => now.view?.scale.step(x) ?? 0;
  listen(plot, {
    hover: (x) => actions.hover(step(x)),
    leave: () => actions.hover(null),
    choose: (x) => actions.choose({ step: step(x) }),
    drag(range) {
      now.pointed = { ...now.pointed, drag: range };
      redraw();
    },
    zoom: (from, to) => actions.zoom(step(from), step(to)),
    reset: () => actions.zoom(null, null),
  });
  return {
    label: element("div", { class: "curve-label" }, element("span", {}, title), value, range),
    plot,
    /**
     * @param {View} view
     * @param {Pointed} pointed
     */
    draw(view, pointed) {
      const at = pointed.step ?? view.step ?? view.scale.last;
      value.textContent = valueAt(view.scalars, index, at);
      range.textContent = drawStrip(canvas, view, index, pointed);
      canvas.setAttribute("aria-label", `${title} over ${span(view.scale.first, view.scale.last)}. ${range.textContent}`);
    },
  };
}

/**
 * @param {import("./types.js").Scalars} scalars
 * @param {number} index of the curve
 * @param {number} step
 * @returns {string} the least and the largest number, where several steps share a column
 */
function valueAt(scalars, index, step) {
  const column = columnAt(scalars.first, step);
  if (column < 0 || step > scalars.last[column]) return short(null);
  const [low, high] = endsOf(scalars, index).map((end) => short(end[column]));
  return low === high ? high : `${low} to ${high}`;
}
