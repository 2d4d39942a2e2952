/** The tree of modules beside the heat map: choose a row, fold a group, by pointer or keyboard. */

import { element, fill } from "./dom.js";

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
    onkeydown: (/** @type {KeyboardEvent} */ event) => view && onKey(event, view, heard),
  });
  return {
    element: list,
    draw(next) {
      view = next;
      const shown = next.rows.slice(next.from, next.to);
      fill(list, ...shown.map((row, index) => label(id, row, next.from + index, next, heard)));
      const seen = next.chosen >= next.from && next.chosen < next.to;
      if (seen) list.setAttribute("aria-activedescendant", `${id}-row-${next.chosen}`);
      else list.removeAttribute("aria-activedescendant");
    },
  };
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
  const severity = worst(row.folded ? row.below : row.sites, view.marks);
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
 * @param {readonly number[]} sites
 * @param {ReadonlyMap<number, import("./types.js").Severity>} marks
 * @returns {import("./types.js").Severity | undefined}
 */
function worst(sites, marks) {
  const found = sites.map((site) => marks.get(site));
  return /** @type {const} */ (["critical", "warning", "info"]).find((severity) => found.includes(severity));
}

/**
 * @param {KeyboardEvent} event
 * @param {View} view
 * @param {{choose: (row: import("./tree.js").Row) => void, fold: (row: import("./tree.js").Row) => void}} heard
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
  const next = moves.get(event.key);
  const openable = row?.children.length > 0;
  if (next !== undefined) heard.choose(rows[Math.min(rows.length - 1, Math.max(0, next))]);
  else if (openable && (event.key === "ArrowRight" ? row.folded : event.key === "ArrowLeft" && !row.folded)) heard.fold(row);
  else if (openable && (event.key === "Enter" || event.key === " ")) heard.fold(row);
  else return;
  event.preventDefault();
}
