/** One run on the page: its verdict, its steps, and what holds at the chosen one. */

import { assemble, drawTrouble } from "./assembly.js";
import { createCurves } from "./curves.js";
import { createExtents } from "./extents.js";
import { createFindings } from "./findings.js";
import { createHeatmap } from "./heatmap.js";
import { createHistogram } from "./histogram.js";
import { createLane } from "./lane.js";
import { createLoader } from "./loader.js";
import { drawMoment, drawTimeline } from "./paneparts.js";
import { createNumberTable } from "./numbertable.js";
import { createProfile } from "./profile.js";
import { createSceneMaker } from "./scene.js";
import { siteOf } from "./sites.js";
import { createStatistics } from "./statistics.js";
import { revealing } from "./tree.js";
import { createVerdict } from "./verdict.js";
import { createWritten } from "./written.js";

/**
 * What a person can do, whichever view they do it in.
 *
 * @typedef {object} Actions
 * @property {(what: {module?: string, step?: number}) => void} choose
 * @property {(finding: import("./types.js").Finding, closely?: boolean) => void} find moves everything to the finding's module
 *   and step; `closely` zooms in on its steps
 * @property {(path: string) => void} fold
 * @property {(first: number | null, last: number | null) => void} zoom
 * @property {(stat: string) => void} stat
 * @property {(step: number | null) => void} hover
 * @property {(x: number, y: number, title: string, lines: readonly string[]) => void} tell
 * @property {(text: string) => void} say aloud
 * @property {(event: KeyboardEvent, scene: import("./scene.js").Scene) => import("./scene.js").Scene} key
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
  const extentsOf = createExtents();
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
    element: parts.pane,
    retry: loader.retry,
    /**
     * @param {import("./types.js").State} state
     * @param {string} etag
     */
    want: (state, etag) => loader.want(state, run, etag, parts.axis.clientWidth || 800),
    /** @returns {import("./types.js").Extents} */
    extents: () => extentsOf(data),
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
     * The groups to flip so that the module can be seen; it is scrolled to.
     *
     * @param {string | undefined} path
     * @param {readonly string[]} flipped
     */
    reveal(path, flipped) {
      views.heatmap.seek();
      const site = scene && path !== undefined ? siteOf(scene.schema, scene.matrix.kind, path) : -1;
      return scene && site >= 0 ? revealing(scene.tree, flipped, site) : flipped;
    },
  };
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
