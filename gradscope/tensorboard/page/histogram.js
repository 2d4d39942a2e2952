/** The magnitudes in one module over time. */

import { element, onceAFrame } from "./dom.js";
import { describe, drawPlot, LEFT, plotScale } from "./histogramplot.js";
import { counted, span } from "./numbers.js";

const TITLES = new Map([
  ["activation", "Activations"],
  ["activation_gradient", "Gradients of activations"],
  ["weight", "Weights"],
  ["weight_gradient", "Gradients of weights"],
]);

/** @typedef {import("./histogramplot.js").View} View */

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
    if (!view || event.offsetX < LEFT) return;
    const told = describe(view, event.offsetX, event.offsetY);
    actions.hover(plotScale(view).step(event.offsetX - LEFT));
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
      name.textContent = name.title = site || "(model)";
      canvas.hidden = false;
      note.textContent = meaning(next);
      const steps = span(next.scale.first, next.scale.last);
      canvas.setAttribute("aria-label", `${title.textContent} in ${name.textContent}, ${steps}`);
      redraw();
    },
    /**
     * Where the chosen module has none.
     *
     * @param {string | null} module
     */
    lack(module) {
      view = null;
      title.textContent = "Magnitudes over time";
      name.textContent = name.title = module ?? "";
      canvas.hidden = true;
      note.textContent = "No histogram of this module was recorded. Choose another one in the heat map.";
    },
  };
}

/**
 * @param {View} view
 * @returns {string}
 */
function meaning({ histogram, share }) {
  const recorded = histogram.count.reduce((sum, steps) => sum + steps, 0);
  if (!share || !histogram.data.some((value) => value > 0)) {
    return "No histogram of this module was recorded in these steps.";
  }
  const range = `from 0 (dark) to ${(100 * share).toFixed(0)} % (bright)`;
  return `Share of elements by magnitude, ${range}, at ${counted(recorded, "recorded step")}.`;
}
