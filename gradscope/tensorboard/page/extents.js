/** What the axes and colours of all panes span together, so that what looks alike is alike. */

import { curveExtents } from "./curves.js";
import { magnitudesIn, sharesIn } from "./magnitudes.js";
import { profileExtent } from "./profileplot.js";
import { colourExtent } from "./range.js";
import { remembering } from "./remembering.js";

/** @typedef {import("./types.js").Extent} Extent */
/** @typedef {import("./types.js").Extents} Extents */

/** @returns {(data: import("./types.js").Data) => Extents} of one pane, which works out nothing twice */
export function createExtents() {
  const colourOf = remembering(colourExtent);
  const curvesOf = remembering(curveExtents);
  const magnitudesOf = remembering(magnitudesIn);
  const shareOf = remembering(sharesIn);
  return ({ matrix, scalars, profile, histogram }) => {
    const ranges = [matrix?.range, scalars?.range].flatMap((range) => (range ? [{ low: range[0], high: range[1] }] : []));
    const colour = matrix ? colourOf(matrix) : null;
    const magnitudes = histogram ? magnitudesOf(histogram) : null;
    return {
      steps: united(ranges),
      colours: matrix && colour ? { [matrix.stat]: colour } : {},
      profile: profileExtent(profile),
      magnitudes: histogram && magnitudes ? { [histogram.kind]: magnitudes } : {},
      shares: histogram ? { [histogram.kind]: shareOf(histogram) } : {},
      scalars: curvesOf(scalars),
    };
  };
}

/**
 * @param {readonly Extents[]} all
 * @returns {Extents} what spans those of all panes
 */
export function shared(all) {
  const curves = all[0]?.scalars ?? [];
  return {
    steps: united(all.map(({ steps }) => steps)),
    colours: unitedByName(all.map(({ colours }) => colours)),
    profile: united(all.map(({ profile }) => profile)),
    magnitudes: unitedByName(all.map(({ magnitudes }) => magnitudes)),
    shares: unitedByName(all.map(({ shares }) => shares)),
    scalars: curves.map((_, index) => united(all.map(({ scalars }) => scalars[index]))),
  };
}

/**
 * @param {readonly (Extent | null)[]} extents
 * @returns {Extent | null}
 */
function united(extents) {
  const known = extents.filter((extent) => extent !== null);
  if (!known.length) return null;
  return { low: Math.min(...known.map(({ low }) => low)), high: Math.max(...known.map(({ high }) => high)) };
}

/**
 * Only what has one name is compared: the scale of one statistic says nothing of another's.
 *
 * @param {readonly Record<string, Extent>[]} all
 * @returns {Record<string, Extent>}
 */
function unitedByName(all) {
  const names = new Set(all.flatMap((extents) => Object.keys(extents)));
  const spanning = (/** @type {string} */ name) => united(all.map((extents) => extents[name] ?? null));
  return Object.fromEntries([...names].map((name) => [name, /** @type {Extent} */ (spanning(name))]));
}
