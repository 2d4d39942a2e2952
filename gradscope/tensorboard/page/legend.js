/** What the colours of the heat map mean, in words and numbers. */

import { element, fill } from "./dom.js";
import { powerOfTen, short } from "./numbers.js";
import { gradient, zeroColour } from "./ramp.js";

const MOST_TICKS = 7;

/**
 * @param {HTMLElement} place
 * @param {import("./types.js").Matrix} matrix
 * @param {import("./types.js").Extent | null} extent
 */
export function drawLegend(place, matrix, extent) {
  const log = matrix.scale === "log";
  const bar = element("span", { class: "legend-bar", style: `background: ${gradient()}` });
  const ticks = extent ? scaleTicks(extent, log) : [];
  const marks = ticks.map(({ at, text }) => element("span", { class: "legend-tick", style: `left: ${100 * at}%` }, text));
  const beyond = extent && log ? outside(matrix, extent) : "";
  fill(
    place,
    log && element("span", { class: "legend-key" }, swatch("", `background: ${zeroColour()}`), "zero"),
    extent && element("span", { class: "legend-scale" }, bar, ...marks),
    element(
      "span",
      { class: "legend-note" },
      log ? `log scale: equal steps of colour are equal factors${beyond}` : "linear scale",
    ),
    element("span", { class: "legend-key" }, swatch("stripes"), "not finite"),
    element("span", { class: "legend-key" }, swatch("missing"), "not captured"),
  );
}

/**
 * @param {import("./types.js").Extent} extent
 * @param {boolean} log
 * @returns {{at: number, text: string}[]} where, as a share of the width, and what
 */
function scaleTicks({ low, high }, log) {
  if (low === high) return [{ at: 0, text: short(low) }]; // as the cells are painted
  if (!log) return [0, 0.5, 1].map((at) => ({ at, text: short(low + at * (high - low)) }));
  const [from, to] = [Math.log10(low), Math.log10(high)];
  const every = Math.max(1, Math.ceil((to - from) / MOST_TICKS));
  const ticks = [];
  for (let power = Math.ceil(from / every) * every; power <= to; power += every) {
    ticks.push({ at: (power - from) / (to - from), text: powerOfTen(power) });
  }
  const ends = [0, 1].map((at) => ({ at, text: short(at ? high : low) }));
  return ticks.length > 1 ? ticks : ends;
}

/**
 * @param {import("./types.js").Matrix} matrix
 * @param {import("./types.js").Extent} extent
 * @returns {string} what the ends of the scale also stand for
 */
function outside({ low, high }, extent) {
  const below = low !== null && low < 0.999 * extent.low ? `; the dark end also down to ${short(low)}` : "";
  return below + (high !== null && high > 1.001 * extent.high ? `; the bright end also up to ${short(high)}` : "");
}

/**
 * @param {string} kind
 * @param {string} [style]
 * @returns {HTMLElement}
 */
function swatch(kind, style) {
  return element("span", { class: `swatch ${kind}`, style });
}
