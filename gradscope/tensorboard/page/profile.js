/** The depth profile: the scale of signal and gradient from the first layer to the last, at one step. */

import { element, fill, onceAFrame } from "./dom.js";
import { short, whole } from "./numbers.js";
import { drawPlot, FITTED, rowAt, SERIES } from "./profileplot.js";

/** @typedef {import("./profileplot.js").View} View */

/** @param {import("./pane.js").Actions} actions */
export function createProfile(actions) {
  /** @type {{view: View | null, hovered: number}} */
  const now = { view: null, hovered: -1 };
  const canvas = element("canvas", { role: "img" });
  const facts = element("ul", { class: "slopes" });
  const step = element("span", { class: "step-number" });
  const go = (/** @type {"previous" | "next"} */ where) => {
    const to = now.view?.profile[where];
    if (typeof to === "number") actions.choose({ step: to });
  };
  const back = element(
    "button",
    { type: "button", class: "quiet", "aria-label": "Previous sampled step", onclick: () => go("previous") },
    "‹",
  );
  const on = element(
    "button",
    { type: "button", class: "quiet", "aria-label": "Next sampled step", onclick: () => go("next") },
    "›",
  );
  const redraw = onceAFrame(() => now.view && drawPlot(canvas, now.view, now.hovered));
  canvas.addEventListener("pointermove", (event) => {
    now.hovered = now.view ? rowAt(now.view, event.offsetX) : -1;
    const row = now.view?.profile.rows[now.hovered];
    if (row) actions.tell(event.clientX, event.clientY, `${row.name} · ${row.type}`, numbers(row));
    redraw();
  });
  canvas.addEventListener("pointerleave", () => {
    now.hovered = -1;
    actions.hover(null);
    redraw();
  });
  canvas.addEventListener("click", () => {
    const row = now.view?.profile.rows[now.hovered];
    if (row) actions.choose({ module: row.module });
  });
  const heading = element(
    "div",
    { class: "card-head" },
    element("h2", {}, "Depth profile"),
    element("span", { class: "stepper" }, back, step, on),
  );
  return {
    element: element("section", { class: "card", "aria-label": "Depth profile" }, heading, canvas, facts),
    /** @param {View} view */
    draw(view) {
      now.view = view;
      step.textContent = `step ${whole(view.profile.step)}`;
      back.disabled = view.profile.previous === null;
      on.disabled = view.profile.next === null;
      fill(
        facts,
        ...FITTED.map((series) => element("li", { class: series.colour }, slope(series, view.profile))),
        element("li", { class: "quiet" }, "Activation: the signal and its constant part"),
      );
      canvas.setAttribute("aria-label", described(view.profile));
      redraw();
    },
  };
}

/**
 * @param {import("./types.js").ProfileRow} row
 * @returns {string[]}
 */
function numbers(row) {
  return [
    `Signal ${short(row.signal)}, activation ${short(row.activation)}`,
    `Gradient ${short(row.gradient)}`,
    `Update ratio ${short(row.update)}`,
  ];
}

/**
 * @param {typeof FITTED[number]} series
 * @param {import("./types.js").Profile} profile
 * @returns {string}
 */
function slope(series, profile) {
  const fit = profile.fits[series.key];
  if (!fit) return `${series.title}: too few layers for a slope`;
  const sign = fit.slope < 0 ? "−" : "+";
  return `${series.title}: ${sign}${Math.abs(fit.slope).toFixed(3)} decades a layer, × ${short(10 ** fit.slope)}`;
}

/**
 * @param {import("./types.js").Profile} profile
 * @returns {string}
 */
function described(profile) {
  const [first, last] = [profile.rows.at(0), profile.rows.at(-1)];
  if (!first || !last) return "Depth profile: no layer was captured.";
  const ends = SERIES.map(
    ({ key, title }) => `${title} ${short(first[key])} in ${first.name}, ${short(last[key])} in ${last.name}`,
  );
  const slopes = FITTED.map((series) => slope(series, profile));
  return `Depth profile at step ${profile.step}. ${[...ends, ...slopes].join(". ")}.`;
}
