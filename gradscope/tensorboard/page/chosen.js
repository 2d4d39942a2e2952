/** What is shown where nothing, or something that a run does not have, was chosen. */

import { primaryOf, siteOf } from "./sites.js";

/**
 * @param {import("./types.js").Schema | undefined} schema
 * @param {string | null} name
 * @returns {import("./types.js").Statistic | undefined} the one of that name, or the first where none was named
 */
export function chosenStatistic(schema, name) {
  return name === null ? schema?.statistics[0] : schema?.statistics.find((statistic) => statistic.name === name);
}

/**
 * What is chosen, or where nothing is, what the report is about.
 *
 * @param {import("./types.js").Data} data
 * @param {import("./types.js").State} state
 * @returns {string | null}
 */
export function chosenModule(data, state) {
  const named = state.module ?? primaryOf(data.report)?.modules[0];
  return named ?? data.schema?.kinds.activation?.[0]?.name ?? null;
}

/**
 * @param {import("./types.js").Data} data
 * @param {import("./types.js").State} state
 * @returns {{kind: string, site: number} | null} whose histograms go with what is chosen
 */
export function histogramPlace(data, state) {
  const module = chosenModule(data, state);
  const kinds = data.schema?.histograms ?? [];
  const own = chosenStatistic(data.schema, state.stat)?.kind ?? "";
  for (const kind of [own, ...kinds].filter((kind) => kinds.includes(kind))) {
    const site = siteOf(data.schema, kind, module);
    if (site >= 0) return { kind, site };
  }
  return null;
}
