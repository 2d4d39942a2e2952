/** What lies over the heat map: where findings are, what is chosen, what is being dragged. */

import { sized } from "./dom.js";

const FLAG = 6; // pixels

/**
 * @typedef {object} Marked
 * @property {number} first step
 * @property {number} last
 * @property {readonly number[]} rows indices of rows, rising
 * @property {boolean} strong
 */

/**
 * @typedef {object} Over
 * @property {import("./steps.js").StepScale} scale
 * @property {number} height of the plot
 * @property {number} rowHeight
 * @property {number} offset of row 0 from the top
 * @property {readonly Marked[]} marks
 * @property {number} chosenRow or -1
 * @property {number | null} chosenStep
 * @property {number | null} hovered step
 * @property {[number, number] | null} drag from, to in pixels
 */

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Over} over
 */
export function drawOverlay(canvas, over) {
  const context = sized(canvas, over.scale.width, over.height);
  for (const mark of over.marks) (mark.strong ? outline : flag)(context, over, mark);
  if (over.chosenRow >= 0) {
    const top = over.offset + over.chosenRow * over.rowHeight;
    twice(context, 1, () => context.strokeRect(0.5, top + 0.5, over.scale.width - 1, over.rowHeight - 1));
  }
  if (over.hovered !== null) upright(context, over, over.hovered, 0.6);
  if (over.chosenStep !== null) upright(context, over, over.chosenStep, 1);
  if (over.drag) shade(context, over);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Over} over
 * @param {Marked} mark
 */
function outline(context, over, mark) {
  const left = Math.max(1, over.scale.x(mark.first));
  const right = Math.min(over.scale.width - 1, Math.max(over.scale.x(mark.last + 1), left + 3));
  if (right < 1 || left > over.scale.width) return;
  for (const [from, to] of stretches(mark.rows)) {
    const top = over.offset + from * over.rowHeight + 1;
    const bottom = over.offset + (to + 1) * over.rowHeight - 1;
    twice(context, 2, () => context.strokeRect(left, top, right - left, bottom - top));
  }
}

/**
 * Little flags where a finding begins, which hide less than outlines of all findings would.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Over} over
 * @param {Marked} mark
 */
function flag(context, over, mark) {
  const left = over.scale.x(mark.first);
  if (left < 0 || left > over.scale.width) return;
  for (const row of mark.rows) {
    const top = over.offset + row * over.rowHeight;
    context.beginPath();
    context.moveTo(left + 0.5, top + 0.5);
    context.lineTo(left + FLAG, top + 0.5);
    context.lineTo(left + 0.5, top + FLAG);
    context.closePath();
    twice(context, 1, () => context.stroke());
    context.fillStyle = "#ffffff";
    context.fill();
  }
}

/**
 * Draws in black and, within it, in white, so that it is seen on any colour.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {number} width
 * @param {() => void} draw
 */
function twice(context, width, draw) {
  context.lineWidth = width + 2;
  context.strokeStyle = "rgba(0, 0, 0, 0.65)";
  draw();
  context.lineWidth = width;
  context.strokeStyle = "#ffffff";
  draw();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Over} over
 * @param {number} step
 * @param {number} alpha
 */
function upright(context, over, step, alpha) {
  if (step < over.scale.first || step > over.scale.last) return;
  const x = Math.round(over.scale.x(step + 0.5));
  context.globalAlpha = alpha;
  twice(context, 1, () => {
    context.beginPath();
    context.moveTo(x + 0.5, 0);
    context.lineTo(x + 0.5, over.height);
    context.stroke();
  });
  context.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Over} over
 */
function shade(context, over) {
  const [from, to] = /** @type {[number, number]} */ (over.drag);
  context.fillStyle = "rgba(0, 0, 0, 0.45)";
  context.fillRect(0, 0, from, over.height);
  context.fillRect(to, 0, over.scale.width - to, over.height);
}

/**
 * @param {readonly number[]} rows
 * @returns {[number, number][]} stretches of neighbours, from and to
 */
function stretches(rows) {
  /** @type {[number, number][]} */
  const found = [];
  for (const row of rows) {
    const last = found.at(-1);
    if (last && row === last[1] + 1) last[1] = row;
    else found.push([row, row]);
  }
  return found;
}
