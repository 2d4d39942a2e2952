/** What one cell of the heat map says, exactly. */

import { exact, span } from "./numbers.js";
import { outstanding } from "./paint.js";
import { columnAt } from "./steps.js";

/**
 * @typedef {object} Cell
 * @property {string} name of the site
 * @property {string} path to choose it by
 * @property {number} step the first that was sampled in what the cell shows
 * @property {string[]} lines
 */

/**
 * @param {import("./scene.js").Scene} scene
 * @param {number} index of the row
 * @param {number} step
 * @param {number} [until] the last step that is meant, where a pixel shows several
 * @returns {Cell | null} null outside the map
 */
export function describeCell(scene, index, step, until = step) {
  const row = scene.rows[index];
  if (!row) return null;
  const { matrix, codes } = scene;
  const to = columnAt(matrix.first, until);
  const from = Math.max(0, columnAt(matrix.first, step));
  if (to < 0) return { name: row.path, path: row.path, step, lines: [`Nothing sampled up to step ${step}.`] };
  if (!row.rows.length)
    return { name: row.path, path: row.path, step: matrix.first[from], lines: ["A group; its modules are below."] };
  const [found, column] = outstanding(codes, matrix.scale, row.rows, from, to);
  const [site, at] = found < 0 ? [row.rows[0], from] : [found, column];
  const known = scene.schema.kinds[matrix.kind][site];
  const value = matrix.data[site * codes.columns + at];
  return {
    name: known.name || "(model)",
    path: known.name,
    step: matrix.first[at],
    lines: [`${scene.statistic.title}: ${exact(value)}`, when(matrix, at, from, to), ...group(row)],
  };
}

/**
 * @param {import("./types.js").Matrix} matrix
 * @param {number} at
 * @param {number} from
 * @param {number} to
 * @returns {string}
 */
function when(matrix, at, from, to) {
  const own = span(matrix.first[at], matrix.last[at]);
  const several = matrix.count.slice(from, to + 1).reduce((sum, count) => sum + count, 0);
  const text = own[0].toUpperCase() + own.slice(1);
  return several > 1 ? `${text}; stands out most of ${several} sampled steps here` : text;
}

/**
 * @param {import("./tree.js").Row} row
 * @returns {string[]}
 */
function group(row) {
  return row.rows.length > 1 ? [`Stands out most of ${row.rows.length} in ${row.path}`] : [];
}
