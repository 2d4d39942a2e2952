/** The keyboard over the heat map. */

import { describeCell } from "./cells.js";
import { columnAt } from "./steps.js";

const ZOOM = 0.5; // of the steps in sight
const STRIDE = 10; // columns with Shift

export const KEYS =
  "Left and right arrow: sampled step; with Shift ten at once. Up and down: module. Plus and minus: zoom around the step. " +
  "Escape: the whole run. Home and End: first and last step.";

/**
 * @param {KeyboardEvent} event
 * @param {import("./scene.js").Scene} scene
 * @param {import("./pane.js").Actions} actions
 * @returns {import("./scene.js").Scene} as it is then: the next key may come before the next drawing
 */
export function onKey(event, scene, actions) {
  const act = action(event, scene, actions);
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return scene;
  event.preventDefault();
  return { ...scene, ...act() };
}

/**
 * @param {KeyboardEvent} event
 * @param {import("./scene.js").Scene} scene
 * @param {import("./pane.js").Actions} actions
 * @returns {(() => Partial<import("./scene.js").Scene> | void) | undefined}
 */
function action(event, scene, actions) {
  const stride = event.shiftKey ? STRIDE : 1;
  const last = scene.matrix.first.length - 1;
  const keys = new Map([
    ["ArrowLeft", () => go(scene, actions, 0, current(scene) - stride)],
    ["ArrowRight", () => go(scene, actions, 0, current(scene) + stride)],
    ["ArrowUp", () => go(scene, actions, -1, current(scene))],
    ["ArrowDown", () => go(scene, actions, 1, current(scene))],
    ["Home", () => go(scene, actions, 0, 0)],
    ["End", () => go(scene, actions, 0, last)],
    ["+", () => zoom(scene, actions, ZOOM)],
    ["=", () => zoom(scene, actions, ZOOM)],
    ["-", () => zoom(scene, actions, 1 / ZOOM)],
    ["Escape", () => actions.zoom(null, null)],
  ]);
  return keys.get(event.key);
}

/**
 * @param {import("./scene.js").Scene} scene
 * @returns {number} the column of the chosen step
 */
function current(scene) {
  return columnAt(scene.matrix.first, scene.chosenStep ?? scene.scale.first);
}

/**
 * @param {import("./scene.js").Scene} scene
 * @param {import("./pane.js").Actions} actions
 * @param {number} down rows
 * @param {number} column
 * @returns {Partial<import("./scene.js").Scene>} what is chosen then
 */
function go(scene, actions, down, column) {
  const row = Math.min(scene.rows.length - 1, Math.max(0, scene.chosenRow + down));
  const { first } = scene.matrix;
  const step = first[Math.min(first.length - 1, Math.max(0, column))];
  const cell = describeCell(scene, row, step);
  if (!cell) return {};
  actions.choose(down ? { module: scene.rows[row].path } : { step });
  actions.say(`${cell.name}. ${cell.lines.join(". ")}`);
  return down ? { chosenRow: row } : { chosenStep: step };
}

/**
 * @param {import("./scene.js").Scene} scene
 * @param {import("./pane.js").Actions} actions
 * @param {number} factor
 */
function zoom(scene, actions, factor) {
  const { first, last } = scene.scale;
  const middle = scene.chosenStep ?? (first + last) / 2;
  const half = ((last + 1 - first) * factor) / 2;
  actions.zoom(Math.round(middle - half), Math.round(middle + half));
}
