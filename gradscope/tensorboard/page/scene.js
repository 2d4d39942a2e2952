/** From what was fetched and what was chosen to what the heat map shows. Nothing here draws. */

import { encode, merged } from "./encode.js";
import { chosenModule, chosenStatistic } from "./chosen.js";
import { remembering } from "./remembering.js";
import { siteOf, sitesOf } from "./sites.js";
import { pixelColumns, stepScale } from "./steps.js";
import { hiding, moduleTree, visibleRows } from "./tree.js";

const TALLEST = 520; // pixels; what is more is scrolled
const ROW_HEIGHT = { least: 15, most: 22 };

/**
 * @typedef {object} Scene
 * @property {import("./types.js").Matrix} matrix
 * @property {import("./types.js").Schema} schema
 * @property {import("./types.js").Statistic} statistic
 * @property {import("./encode.js").Codes} codes
 * @property {readonly import("./paint.js").Line[]} lines of each row
 * @property {import("./types.js").Extent | null} extent that the colours span
 * @property {readonly import("./tree.js").Node[]} tree
 * @property {readonly import("./tree.js").Row[]} rows
 * @property {number} rowHeight
 * @property {number} height of what is in sight
 * @property {import("./steps.js").StepScale} scale
 * @property {readonly import("./overlay.js").Marked[]} marks
 * @property {ReadonlyMap<number, import("./types.js").Severity>} severities of the worst finding of each site
 * @property {number} chosenRow
 * @property {number | null} chosenStep
 */

/** @typedef {import("./types.js").Data} Data */
/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Extents} Extents */

/**
 * @returns {(data: Data, state: State, extents: Extents, width: number) => Scene | null} which keeps what did not change
 */
export function createSceneMaker() {
  const codesOf = remembering(codesIn);
  const treeOf = remembering(moduleTree);
  const rowsOf = remembering((/** @type {import("./tree.js").Node[]} */ tree, /** @type {readonly string[]} */ flipped) =>
    visibleRows(tree, new Set(flipped)),
  );
  const linesOf = remembering(linesIn);
  return (data, state, extents, width) => {
    const { matrix, schema } = data;
    const statistic = chosenStatistic(schema, state.stat);
    if (!matrix || !schema || !statistic || matrix.stat !== statistic.name || !extents.steps) return null;
    const sites = schema.kinds[matrix.kind] ?? [];
    if (sites.length !== matrix.shape[0]) return null; // the schema is of another moment, and comes again
    const tree = treeOf(sites);
    const rows = rowsOf(tree, state.flipped);
    const rowHeight = Math.max(ROW_HEIGHT.least, Math.min(ROW_HEIGHT.most, Math.floor(TALLEST / Math.max(1, rows.length))));
    const extent = extents.colours[matrix.stat] ?? null;
    const codes = codesOf(matrix, matrix.scale, extent?.low, extent?.high);
    return {
      matrix,
      schema,
      statistic,
      codes,
      lines: linesOf(codes, matrix.scale, rows),
      extent,
      tree,
      rows,
      rowHeight,
      height: Math.min(TALLEST, rows.length * rowHeight),
      scale: timeScale(state, extents.steps, width),
      ...findingsOn(data, matrix.kind, rows, state),
      chosenRow: chosenRow(rows, schema, matrix.kind, chosenModule(data, state)),
      chosenStep: state.step ?? data.profile?.step ?? null,
    };
  };
}

/**
 * @param {import("./types.js").Matrix} matrix
 * @param {import("./types.js").ScaleKind} scale
 * @param {number} [low] of the colours
 * @param {number} [high]
 */
function codesIn(matrix, scale, low, high) {
  return encode(matrix, scale, low === undefined || high === undefined ? null : { low, high });
}

/**
 * @param {import("./encode.js").Codes} codes
 * @param {import("./types.js").ScaleKind} scale
 * @param {readonly import("./tree.js").Row[]} rows
 * @returns {import("./paint.js").Line[]}
 */
function linesIn(codes, scale, rows) {
  return rows.map((row) => (row.rows.length ? merged(codes, scale, row.rows) : null));
}

/**
 * @param {State} state
 * @param {import("./types.js").Extent} steps
 * @param {number} width
 * @returns {import("./steps.js").StepScale} the whole run, or what was zoomed to
 */
export function timeScale(state, steps, width) {
  const first = state.first ?? steps.low;
  const last = Math.max(first, state.last ?? steps.high);
  return stepScale(first, last, width);
}

/**
 * The columns of each pixel at the screen's resolution.
 *
 * @param {Scene} scene
 * @param {number} pixels
 */
export function columnsOf(scene, pixels) {
  return pixelColumns(scene.scale, scene.matrix, pixels);
}

/**
 * @param {readonly import("./tree.js").Row[]} rows
 * @param {import("./types.js").Schema} schema
 * @param {string} kind
 * @param {string | null} path of a group, a module or a parameter
 * @returns {number} the row that shows it, by itself or in a folded group; -1 where none does
 */
function chosenRow(rows, schema, kind, path) {
  const named = rows.findIndex((row) => row.path === path);
  const site = named < 0 ? siteOf(schema, kind, path) : -1;
  if (site < 0) return named;
  const own = rows.findIndex((row) => !row.folded && row.sites.includes(site));
  const group = hiding(rows, site);
  return own >= 0 || !group ? own : rows.indexOf(group);
}

/**
 * @param {Data} data
 * @param {string} kind
 * @param {readonly import("./tree.js").Row[]} rows
 * @param {State} state
 * @returns {Pick<Scene, "marks" | "severities">}
 */
function findingsOn(data, kind, rows, state) {
  const severities = new Map();
  const marks = [];
  for (const finding of [...(data.report?.findings ?? [])].reverse()) {
    const sites = sitesOf(data.schema, kind, finding.modules);
    for (const site of sites) if (!graver(severities.get(site), finding.severity)) severities.set(site, finding.severity);
    const within = rows.flatMap((row, index) => (row.rows.some((site) => sites.has(site)) ? [index] : []));
    const strong = finding.primary || (finding.first_step === state.step && finding.modules[0] === state.module);
    if (within.length && finding.severity !== "info") {
      marks.push({ first: finding.first_step, last: finding.last_step, rows: within, strong });
    }
  }
  return { marks, severities };
}

const ORDER = ["info", "warning", "critical"];

/**
 * @param {string | undefined} one
 * @param {string} other
 */
function graver(one, other) {
  return one !== undefined && ORDER.indexOf(one) > ORDER.indexOf(other);
}
