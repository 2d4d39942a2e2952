/** The step axis under the plots. */

import { sized } from "./dom.js";
import { whole } from "./numbers.js";
import { stepTicks } from "./steps.js";
import { colours } from "./theme.js";

const AXIS_HEIGHT = 22;
export const PLOT_FONT = "11px system-ui, sans-serif";

/**
 * @param {HTMLCanvasElement} canvas
 * @param {import("./steps.js").StepScale} scale
 * @param {number | null} marked a step whose number is set apart
 */
export function drawAxis(canvas, scale, marked) {
  const context = sized(canvas, scale.width, AXIS_HEIGHT);
  const { quiet, line, ink, card } = colours();
  context.font = PLOT_FONT;
  context.textBaseline = "top";
  context.fillStyle = quiet;
  context.strokeStyle = line;
  for (const tick of stepTicks(scale, 72)) {
    const x = scale.x(tick);
    context.strokeRect(Math.round(x) + 0.5, 0, 0, 4);
    label(context, whole(tick), x, scale.width);
  }
  if (marked === null || marked < scale.first || marked > scale.last) return;
  const text = whole(marked);
  const half = context.measureText(text).width / 2 + 5;
  const x = Math.min(scale.width - half, Math.max(half, scale.x(marked + 0.5)));
  context.fillStyle = ink;
  context.beginPath();
  context.roundRect(x - half, 2, 2 * half, 18, 4);
  context.fill();
  context.fillStyle = card;
  context.textAlign = "center";
  context.fillText(text, x, 6);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {number} x
 * @param {number} width of the plot, in which the text stays
 */
function label(context, text, x, width) {
  const half = context.measureText(text).width / 2;
  context.textAlign = "left";
  context.fillText(text, Math.min(width - 2 * half, Math.max(0, x - half)), 6);
}
