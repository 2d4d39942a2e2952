/** The numbers of the heat map around the chosen step as a table: for screen readers, and to copy from. */

import { element, fill } from "./dom.js";
import { exact, whole } from "./numbers.js";
import { columnAt } from "./steps.js";

const MOST_ROWS = 200;
const BESIDE = 3; // columns on either side of the chosen step

export function createNumberTable() {
  /** @type {import("./scene.js").Scene | null} */
  let scene = null;
  const table = element("table");
  const details = element(
    "details",
    { class: "numbers" },
    element("summary", {}, "Numbers around the chosen step"),
    element("div", {}, table),
  );
  const redraw = () => scene && details.open && write(table, scene);
  details.addEventListener("toggle", redraw);
  return {
    element: details,
    /** @param {import("./scene.js").Scene | null} next */
    draw(next) {
      scene = next;
      redraw();
    },
  };
}

/**
 * @param {HTMLTableElement} table
 * @param {import("./scene.js").Scene} scene
 */
function write(table, scene) {
  const { matrix } = scene;
  const middle = Math.max(0, columnAt(matrix.first, scene.chosenStep ?? scene.scale.first));
  const from = Math.max(0, Math.min(middle - BESIDE, matrix.first.length - 2 * BESIDE - 1));
  const columns = matrix.first.slice(from, from + 2 * BESIDE + 1).map((_, index) => from + index);
  const head = columns.map((column) => element("th", { scope: "col" }, `step ${whole(matrix.first[column])}`));
  const rows = scene.rows.filter((row) => row.rows.length === 1).slice(0, MOST_ROWS);
  fill(
    table,
    element("caption", {}, `${scene.statistic.title}: ${scene.statistic.text}`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Module"), ...head)),
    element("tbody", {}, ...rows.map((row) => line(row, columns, scene))),
  );
}

/**
 * @param {import("./tree.js").Row} row
 * @param {readonly number[]} columns
 * @param {import("./scene.js").Scene} scene
 * @returns {HTMLElement}
 */
function line(row, columns, { matrix }) {
  const values = columns.map((column) => exact(matrix.data[row.rows[0] * matrix.shape[1] + column]));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, row.path || "(model)"),
    ...values.map((value) => element("td", {}, value)),
  );
}
