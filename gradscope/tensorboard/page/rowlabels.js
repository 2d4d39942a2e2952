/** The tree of modules beside the heat map: choose a row, fold a group, by pointer or keyboard. */

import { element, refill } from "./dom.js";

/**
 * @typedef {object} RowLabels
 * @property {HTMLElement} element
 * @property {(view: View) => void} draw
 */

/**
 * @typedef {object} View
 * @property {readonly import("./tree.js").Row[]} rows
 * @property {number} from the first row that is in sight
 * @property {number} to one after the last
 * @property {number} height of a row
 * @property {number} offset of row 0 from the top
 * @property {number} chosen index of a row, or -1
 * @property {ReadonlyMap<number, import("./types.js").Severity>} marks severity of the worst finding, by site
 * @property {(row: import("./tree.js").Row) => string} type class of the module; empty where it is none
 */

/**
 * @param {string} id that no other pane has
 * @param {{choose: (row: import("./tree.js").Row) => void, fold: (row: import("./tree.js").Row) => void}} heard
 * @returns {RowLabels}
 */
export function createRowLabels(id, heard) {
  /** @type {View | null} */
  let view = null;
  const list = element("div", {
    class: "row-labels",
    role: "tree",
    tabindex: 0,
    "aria-label": "Modules in execution order",
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (view) view = { ...view, chosen: onKey(event, view, heard) }; // the next key may come before the next drawing
    },
  });
  return {
    element: list,
    draw(next) {
      view = next;
      const shown = next.rows.slice(next.from, next.to);
      const drawn = (/** @type {import("./tree.js").Row} */ row, /** @type {number} */ index) =>
        label(id, row, next.from + index, next, heard);
      refill(list, [next.from, next.height, next.offset, next.chosen, ...shown.map((row) => facts(row, next))], () =>
        shown.map(drawn),
      );
      const seen = next.chosen >= next.from && next.chosen < next.to;
      if (seen) list.setAttribute("aria-activedescendant", `${id}-row-${next.chosen}`);
      else list.removeAttribute("aria-activedescendant");
    },
  };
}

/**
 * @param {import("./tree.js").Row} row
 * @param {View} view
 * @returns {unknown[]} all that its label tells
 */
function facts(row, view) {
  const { path, label, depth, folded, size, place, children, below } = row;
  return [path, label, depth, folded, size, place, children.length, below.length, view.type(row), severityOf(row, view)];
}

/**
 * @param {import("./tree.js").Row} row
 * @param {View} view
 * @returns {import("./types.js").Severity | undefined} of the worst finding of what the row stands for
 */
function severityOf(row, { marks }) {
  const found = (row.folded ? row.below : row.sites).map((site) => marks.get(site));
  return /** @type {const} */ (["critical", "warning", "info"]).find((severity) => found.includes(severity));
}

/**
 * @param {string} id
 * @param {import("./tree.js").Row} row
 * @param {number} index
 * @param {View} view
 * @param {{choose: (row: import("./tree.js").Row) => void, fold: (row: import("./tree.js").Row) => void}} heard
 * @returns {HTMLElement}
 */
function label(id, row, index, view, heard) {
  const group = row.children.length > 0;
  const fold = (/** @type {Event} */ event) => {
    event.stopPropagation();
    heard.fold(row);
  };
  const severity = severityOf(row, view);
  const twisty = element(
    "span",
    { class: "twisty", "aria-hidden": "true", onclick: group ? fold : () => {} },
    group ? "▸" : "",
  );
  return element(
    "div",
    {
      id: `${id}-row-${index}`,
      class: `row-label${group ? " group" : ""}`,
      role: "treeitem",
      title: [row.path || "(model)", view.type(row)].filter(Boolean).join(" · "),
      style: `top: ${view.offset + index * view.height}px; height: ${view.height}px; --depth: ${row.depth}`,
      "aria-level": row.depth + 1,
      "aria-setsize": row.size,
      "aria-posinset": row.place,
      "aria-expanded": group ? String(!row.folded) : null,
      "aria-selected": String(index === view.chosen),
      onclick: () => heard.choose(row),
    },
    twisty,
    element("span", { class: "row-name" }, row.label),
    element("span", { class: "row-type" }, view.type(row)),
    row.folded && element("span", { class: "row-count" }, `${row.below.length} inside`),
    severity && element("span", { class: `dot ${severity}`, role: "img", "aria-label": `named by a finding: ${severity}` }),
  );
}

/**
 * @param {KeyboardEvent} event
 * @param {View} view
 * @param {{choose: (row: import("./tree.js").Row) => void, fold: (row: import("./tree.js").Row) => void}} heard
 * @returns {number} the row that is chosen then
 */
function onKey(event, view, heard) {
  const { rows, chosen } = view;
  const at = Math.max(0, chosen);
  const row = rows[at];
  const moves = new Map([
    ["ArrowDown", chosen + 1],
    ["ArrowUp", at - 1],
    ["Home", 0],
    ["End", rows.length - 1],
  ]);
  const wanted = moves.get(event.key);
  const next = wanted === undefined ? chosen : Math.min(rows.length - 1, Math.max(0, wanted));
  const openable = row?.children.length > 0;
  const folding = { ArrowRight: row?.folded, ArrowLeft: !row?.folded, Enter: true, " ": true }[event.key];
  if (wanted !== undefined) heard.choose(rows[next]);
  else if (openable && folding) heard.fold(row);
  else return chosen;
  event.preventDefault();
  return next;
}
