/** One run on the page: its verdict, its steps, and what holds at the chosen one. */

import { drawAxis } from "./axis.js";
import { colourExtent } from "./range.js";
import { createCurves, curveExtents } from "./curves.js";
import { element, fill } from "./dom.js";
import { createFindings } from "./findings.js";
import { createHeatmap } from "./heatmap.js";
import { createHistogram } from "./histogram.js";
import { createLane } from "./lane.js";
import { chosenModule, chosenStatistic, createLoader } from "./loader.js";
import { span } from "./numbers.js";
import { createNumberTable } from "./numbertable.js";
import { createProfile, profileExtent } from "./profile.js";
import { remembering } from "./remembering.js";
import { createSceneMaker, timeScale } from "./scene.js";
import { moduleOf, siteOf } from "./sites.js";
import { createStatistics } from "./statistics.js";
import { revealing } from "./tree.js";
import { createVerdict } from "./verdict.js";
import { createWritten } from "./written.js";

const PADDING = 32; // pixels left and right of a card's content

/**
 * What a person can do, whichever view they do it in.
 *
 * @typedef {object} Actions
 * @property {(what: {module?: string, step?: number}) => void} choose
 * @property {(finding: import("./types.js").Finding) => void} find moves everything to the finding's module and step
 * @property {(path: string) => void} fold
 * @property {(first: number | null, last: number | null) => void} zoom
 * @property {(stat: string) => void} stat
 * @property {(step: number | null) => void} hover
 * @property {(x: number, y: number, title: string, lines: readonly string[]) => void} tell
 * @property {(text: string) => void} say aloud
 * @property {(event: KeyboardEvent, scene: import("./scene.js").Scene) => void} key
 */

/** @typedef {ReturnType<typeof createPane>} Pane */

/**
 * @param {string} run
 * @param {string} id that no other pane has
 * @param {Actions} actions
 * @param {() => void} changed
 */
export function createPane(run, id, actions, changed) {
  const loader = createLoader(changed);
  const { data } = loader;
  const sceneOf = createSceneMaker();
  const colourOf = remembering(colourExtent);
  const views = {
    verdict: createVerdict(actions),
    findings: createFindings(actions),
    written: createWritten(run),
    statistics: createStatistics(actions.stat),
    curves: createCurves(actions),
    lane: createLane(actions),
    heatmap: createHeatmap(id, actions),
    table: createNumberTable(),
    profile: createProfile(actions),
    histogram: createHistogram(actions),
  };
  const parts = assemble(views, actions);
  /** @type {import("./scene.js").Scene | null} */
  let scene = null;

  return {
    run,
    data,
    element: parts.pane,
    retry: loader.retry,
    /**
     * @param {import("./types.js").State} state
     * @param {string} etag
     */
    want: (state, etag) => loader.want(state, run, etag, parts.axis.clientWidth || 800),
    /** @returns {import("./types.js").Extents} */
    extents: () => extentsOf(data, data.matrix ? colourOf(data.matrix) : null),
    /**
     * @param {import("./types.js").State} state
     * @param {import("./types.js").Extents} extents that all panes share
     * @param {string} name shown above, where there is more than one pane
     */
    draw(state, extents, name) {
      parts.title.textContent = name;
      parts.title.hidden = !name;
      parts.pane.setAttribute("aria-label", `Run ${name || run}`);
      if (data.report) drawStory(views, data.report);
      views.verdict.element.hidden = Boolean(data.errors.report && !data.report);
      drawTrouble(parts.trouble, data);
      scene = sceneOf(data, state, extents, parts.axis.clientWidth);
      drawTimeline(views, parts, data, state, extents, scene);
      drawMoment(views, parts, data, state, extents);
    },
    /** @param {number | null} step */
    point(step) {
      views.curves.point(step);
      views.heatmap.point(step);
    },
    /**
     * The groups to flip so that the module can be seen.
     *
     * @param {string | undefined} path
     * @param {readonly string[]} flipped
     */
    reveal(path, flipped) {
      const site = scene && path !== undefined ? siteOf(scene.schema, scene.matrix.kind, path) : -1;
      return scene && site >= 0 ? revealing(scene.tree, flipped, site) : flipped;
    },
  };
}

/**
 * @param {any} views
 * @param {Actions} actions
 */
function assemble(views, actions) {
  const axisCanvas = element("canvas", { "aria-hidden": "true" });
  const axis = element("div", { class: "axis" }, axisCanvas);
  const zoomed = element("span", { class: "facts" });
  const whole = element("button", { type: "button", class: "quiet", onclick: () => actions.zoom(null, null) }, "Whole run");
  const tools = element(
    "div",
    { class: "tools" },
    views.statistics.element,
    element("span", { class: "zoomed" }, zoomed, whole),
  );
  const meaning = element("p", { class: "note" });
  const empty = element("p", { class: "nothing" });
  const strips = element("div", { class: "strips" }, views.curves.element, ...views.lane.elements);
  const hint = element("span", { class: "facts hint" }, " · drag to zoom");
  const bottom = element("div", { class: "strips" }, element("span", { class: "lane-label" }, "Step", hint), axis);
  const plots = element("div", {}, strips, views.heatmap.element, bottom, views.heatmap.legend, meaning, views.table.element);
  const timeline = element("section", { class: "card timeline", "aria-label": "Over the steps" }, tools, empty, plots);
  const moment = element("div", { class: "moment" }, views.profile.element, views.histogram.element);
  const story = element("div", { class: "story" }, views.verdict.element, views.findings.element);
  const title = element("h1", { class: "pane-title" });
  const trouble = element("div", { class: "trouble", role: "alert", hidden: true });
  const body = element("div", { class: "body" }, timeline, moment);
  const pane = element("article", { class: "pane" }, title, trouble, story, views.written.element, body);
  return { pane, title, trouble, axis, axisCanvas, zoomed, whole, meaning, empty, plots, timeline, body };
}

/**
 * @param {any} views
 * @param {import("./types.js").Report} report
 */
function drawStory(views, report) {
  views.verdict.draw(report);
  views.findings.draw(report);
  views.written.draw(report);
}

/**
 * @param {HTMLElement} place
 * @param {import("./types.js").Data} data
 */
function drawTrouble(place, data) {
  const sentences = [...new Set(Object.values(data.errors))];
  place.hidden = !sentences.length;
  if (place.textContent !== sentences.join("")) fill(place, ...sentences.map((sentence) => element("p", {}, sentence)));
}

/**
 * @param {any} views
 * @param {ReturnType<typeof assemble>} parts
 * @param {import("./types.js").Data} data
 * @param {import("./types.js").State} state
 * @param {import("./types.js").Extents} extents
 * @param {import("./scene.js").Scene | null} scene
 */
function drawTimeline(views, parts, data, state, extents, scene) {
  const statistic = chosenStatistic(data.schema, state.stat);
  if (data.schema && statistic) views.statistics.draw(data.schema.statistics, statistic.name);
  const nothing = data.schema && !statistic;
  parts.empty.hidden = !nothing;
  parts.empty.textContent = "No step was sampled yet. The first ones are written within seconds of training.";
  parts.plots.hidden = Boolean(nothing); // else it is there from the start, so that its width is known
  parts.timeline.classList.toggle("waiting", !scene && !nothing);
  if (!extents.steps) return;
  const scale = timeScale(state, extents.steps, parts.axis.clientWidth);
  const step = state.step ?? data.profile?.step ?? null;
  views.curves.draw(data.scalars ? { scalars: data.scalars, scale, extents: extents.scalars, step } : null);
  views.lane.draw(data.report?.findings ?? [], scale);
  views.heatmap.draw(scene);
  views.table.draw(scene);
  drawAxis(parts.axisCanvas, scale, step);
  parts.whole.hidden = state.first === null;
  parts.zoomed.textContent = state.first === null ? "" : span(scale.first, scale.last);
  parts.meaning.textContent = statistic ? meaning(statistic, scene) : "";
}

/**
 * @param {import("./types.js").Statistic} statistic
 * @param {import("./scene.js").Scene | null} scene
 * @returns {string}
 */
function meaning(statistic, scene) {
  const text = `${statistic.title}: ${statistic.text}.`;
  const thinned = scene?.matrix.thinned ? " Where several steps share a cell, it shows the one that stands out most." : "";
  return text + thinned + (scene?.schema.cut ? ` ${scene.schema.cut}` : "");
}

/**
 * @param {any} views
 * @param {ReturnType<typeof assemble>} parts
 * @param {import("./types.js").Data} data
 * @param {import("./types.js").State} state
 * @param {import("./types.js").Extents} extents
 */
function drawMoment(views, parts, data, state, extents) {
  const { profile, histogram } = data;
  const chosen = chosenModule(data, state);
  views.profile.element.hidden = !profile?.rows.length;
  views.histogram.element.hidden = !histogram || !extents.steps;
  parts.body.classList.toggle("alone", profile?.rows.length === 0 && !histogram);
  if (profile?.rows.length) {
    const width = views.profile.element.clientWidth - PADDING;
    const module = chosen === null ? null : (moduleOf(data.schema, chosen) ?? chosen);
    views.profile.draw({ profile, extent: extents.profile, module, width: Math.max(200, width) });
  }
  if (histogram && extents.steps) {
    const wide = Math.max(200, views.histogram.element.clientWidth - PADDING);
    const scale = timeScale(state, extents.steps, wide);
    views.histogram.draw({ histogram, scale, step: state.step ?? profile?.step ?? null, width: wide });
  }
}

/**
 * @param {import("./types.js").Data} data
 * @param {import("./types.js").Extent | null} colour
 * @returns {import("./types.js").Extents}
 */
function extentsOf({ matrix, scalars, profile }, colour) {
  const ranges = [matrix?.range, scalars?.range].flatMap((range) => (range ? [{ low: range[0], high: range[1] }] : []));
  return {
    steps: united(ranges),
    colour,
    profile: profileExtent(profile),
    scalars: curveExtents(scalars),
  };
}

/**
 * @param {readonly (import("./types.js").Extent | null)[]} extents
 * @returns {import("./types.js").Extent | null} what spans them all
 */
export function united(extents) {
  const known = extents.filter((extent) => extent !== null);
  if (!known.length) return null;
  return { low: Math.min(...known.map(({ low }) => low)), high: Math.max(...known.map(({ high }) => high)) };
}
