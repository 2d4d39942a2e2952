/** Draws what a pane shows over the steps and at the chosen one. */

import { drawAxis } from "./axis.js";
import { chosenModule, chosenStatistic, histogramPlace } from "./chosen.js";
import { counted, span, whole } from "./numbers.js";
import { timeScale } from "./scene.js";
import { moduleOf } from "./sites.js";

const PADDING = 32; // pixels left and right of a card's content

/** @typedef {import("./types.js").Data} Data */
/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Extents} Extents */

/**
 * @param {any} views
 * @param {import("./assembly.js").Parts} parts
 * @param {Data} data
 * @param {State} state
 * @param {Extents} extents
 * @param {import("./scene.js").Scene | null} scene
 */
export function drawTimeline(views, parts, data, state, extents, scene) {
  const statistic = chosenStatistic(data.schema, state.stat);
  if (data.schema) views.statistics.draw(data.schema.statistics, statistic?.name ?? "");
  drawAbsence(views, parts, data, state, extents);
  parts.timeline.classList.toggle("waiting", !scene && parts.nothing.hidden);
  if (!extents.steps) return;
  const scale = timeScale(state, extents.steps, parts.axis.clientWidth);
  const step = state.step ?? data.profile?.step ?? null;
  views.curves.draw(data.scalars ? { scalars: data.scalars, scale, extents: extents.scalars, step } : null);
  views.lane.draw(data.report?.findings ?? [], scale);
  views.heatmap.draw(scene);
  views.table.draw(scene);
  drawAxis(parts.axisCanvas, scale, step);
  parts.back.hidden = state.first === null;
  parts.hint.hidden = state.first !== null;
  parts.zoomed.textContent = state.first === null ? "" : span(scale.first, scale.last);
  parts.meaning.textContent = statistic ? meaning(statistic, scene, data) : "";
}

/**
 * Says so where there is no heat map; the curves stand where they are known.
 *
 * @param {any} views
 * @param {import("./assembly.js").Parts} parts
 * @param {Data} data
 * @param {State} state
 * @param {Extents} extents
 */
function drawAbsence(views, parts, { schema, report }, state, extents) {
  const lacking = schema && !chosenStatistic(schema, state.stat);
  parts.nothing.hidden = !lacking;
  parts.body.hidden = report?.source === "written"; // of which there is nothing to draw
  if (lacking) {
    parts.nothing.textContent = schema.statistics.length
      ? `This run has no ${state.stat}: none of its modules gives it. Choose another statistic above.`
      : "No step was sampled yet. The first ones are written within seconds of training.";
  }
  for (const plot of parts.plots) plot.hidden = Boolean(lacking && !extents.steps); // else their width is to be known
  views.heatmap.element.hidden = parts.words.hidden = Boolean(lacking);
}

/**
 * @param {import("./types.js").Statistic} statistic
 * @param {import("./scene.js").Scene | null} scene
 * @param {Data} data
 * @returns {string}
 */
function meaning(statistic, scene, { schema, scalars }) {
  const sentences = [`${statistic.title}: ${statistic.text}.`];
  if (scene?.matrix.data.every(Number.isNaN)) sentences.push("Nothing of it was captured here.");
  if (scene?.matrix.thinned) sentences.push("Where several steps share a cell, it shows the one that stands out most.");
  const last = schema?.last_step ?? null;
  if (schema && last !== null && scalars?.range) {
    const steps = scalars.range[1] - scalars.range[0] + 1;
    if (steps > schema.sampled) {
      sentences.push(`${whole(schema.sampled)} of ${counted(steps, "step")} were sampled, the last at step ${whole(last)}.`);
    }
  }
  if (scene?.schema.cut) sentences.push(scene.schema.cut);
  return sentences.join(" ");
}

/**
 * @param {any} views
 * @param {import("./assembly.js").Parts} parts
 * @param {Data} data
 * @param {State} state
 * @param {Extents} extents
 */
export function drawMoment(views, parts, data, state, extents) {
  const { profile, histogram } = data;
  const chosen = chosenModule(data, state);
  const lacking = Boolean(data.schema?.histograms.length) && !histogramPlace(data, state);
  views.profile.element.hidden = !profile?.rows.length;
  views.histogram.element.hidden = !extents.steps || !(histogram || lacking);
  parts.body.classList.toggle("alone", profile?.rows.length === 0 && !histogram);
  if (profile?.rows.length) {
    const width = views.profile.element.clientWidth - PADDING;
    const module = chosen === null ? null : (moduleOf(data.schema, chosen) ?? chosen);
    views.profile.draw({ profile, extent: extents.profile, module, width: Math.max(200, width) });
  }
  if (lacking) views.histogram.lack(chosen);
  else if (histogram && extents.steps) {
    const width = Math.max(200, views.histogram.element.clientWidth - PADDING);
    const scale = timeScale(state, extents.steps, width);
    const [extent, share] = [extents.magnitudes[histogram.kind], extents.shares[histogram.kind]?.high ?? 0];
    views.histogram.draw({ histogram, extent, share, scale, step: state.step ?? profile?.step ?? null, width });
  }
}
