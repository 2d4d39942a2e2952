/** The elements of a pane: which view stands where. */

import { element, fill } from "./dom.js";

/** @typedef {ReturnType<typeof assemble>} Parts */

/**
 * @param {any} views
 * @param {import("./pane.js").Actions} actions
 */
export function assemble(views, actions) {
  const axisCanvas = element("canvas", { "aria-hidden": "true" });
  const axis = element("div", { class: "axis" }, axisCanvas);
  const zoomed = element("span", { class: "facts" });
  const whole = element("button", { type: "button", class: "link", onclick: () => actions.zoom(null, null) }, "Whole run");
  const tools = element("div", { class: "tools" }, views.statistics.element);
  const strips = element("div", { class: "strips top" }, views.curves.element, ...views.lane.elements);
  const nothing = element("p", { class: "nothing", hidden: true });
  const hint = element("span", { class: "facts hint" }, " · drag to zoom");
  const back = element("span", { class: "zoomed" }, zoomed, " ", whole);
  const label = element("span", { class: "lane-label" }, "Step", hint, back);
  const bottom = element("div", { class: "strips bottom" }, label, axis);
  const meaning = element("p", { class: "note" });
  const words = element("div", { class: "words" }, views.heatmap.legend, meaning, views.table.element);
  const inside = [tools, strips, nothing, views.heatmap.element, bottom, words];
  const timeline = element("section", { class: "card timeline", "aria-label": "Over the steps" }, ...inside);
  const moment = element("div", { class: "moment" }, views.profile.element, views.histogram.element);
  const story = element("div", { class: "story" }, views.verdict.element, views.findings.element);
  const title = element("h1", { class: "pane-title" });
  const trouble = element("div", { class: "trouble", role: "alert", hidden: true });
  const body = element("div", { class: "body" }, timeline, moment);
  const pane = element("article", { class: "pane" }, title, trouble, story, views.written.element, body);
  const plots = [strips, bottom, words, views.heatmap.element];
  return { pane, title, trouble, axis, axisCanvas, hint, back, zoomed, meaning, nothing, plots, words, timeline, body };
}

/**
 * @param {HTMLElement} place
 * @param {import("./types.js").Data} data
 */
export function drawTrouble(place, data) {
  const sentences = [...new Set(Object.values(data.errors))];
  place.hidden = !sentences.length;
  if (place.textContent !== sentences.join("")) fill(place, ...sentences.map((sentence) => element("p", {}, sentence)));
}
