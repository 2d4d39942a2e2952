/** Fetches what one run needs to show a state, and nothing twice. */

import { askJson, askTable } from "./api.js";
import { createFetching } from "./fetching.js";
import { siteOf, primaryOf } from "./sites.js";

const MOST_CELLS = 2e6; // of a matrix
const FEWEST_COLUMNS = 128;
const MOST_COLUMNS = 1536;
const MOST_HISTOGRAMS = 512;

/**
 * @typedef {object} Loader
 * @property {import("./types.js").Data} data
 * @property {() => void} retry
 * @property {(state: import("./types.js").State, run: string, etag: string, width: number) => void} want
 */

/**
 * @param {() => void} changed called whenever something has come in
 * @returns {Loader}
 */
export function createLoader(changed) {
  /** @type {import("./types.js").Data} */
  const data = { errors: {} };
  const { want, retry } = createFetching(data, changed);
  return {
    data,
    retry,
    want(state, run, etag, width) {
      const range = { first: state.first, last: state.last };
      const columns = bounded(width, 1);
      want("schema", run, etag, () => askJson("schema", { run }));
      want("report", run, etag, () => askJson("report", { run }));
      want("scalars", { columns, ...range }, etag, () => askTable("scalars", { run, columns, ...range }));
      if (!data.schema) return;
      const stat = chosenStatistic(data.schema, state.stat);
      if (stat) {
        const parameters = {
          run,
          stat: stat.name,
          columns: bounded(width, data.schema.kinds[stat.kind]?.length ?? 1),
          ...range,
        };
        want("matrix", parameters, etag, () => askTable("matrix", parameters));
      }
      if (!data.report && !data.errors.report && state.step === null) return; // the report says which step tells most
      const step = state.step ?? data.report?.profile_step ?? null;
      want("profile", step, etag, () => askJson("profile", { run, step }));
      const place = histogramPlace(data, state);
      if (!place) return;
      const histogram = { run, ...place, columns: Math.min(columns, MOST_HISTOGRAMS), ...range };
      want("histogram", histogram, etag, () => askTable("histogram", histogram));
    },
  };
}

/**
 * @param {import("./types.js").Schema | undefined} schema
 * @param {string | null} name
 * @returns {import("./types.js").Statistic | undefined} the one of that name, else the first
 */
export function chosenStatistic(schema, name) {
  return schema?.statistics.find((statistic) => statistic.name === name) ?? schema?.statistics[0];
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

/**
 * @param {number} width
 * @param {number} rows
 * @returns {number} columns that are worth asking for
 */
function bounded(width, rows) {
  const fair = Math.max(FEWEST_COLUMNS, Math.floor(MOST_CELLS / Math.max(1, rows)));
  return Math.max(FEWEST_COLUMNS, Math.min(MOST_COLUMNS, Math.ceil(width / 64) * 64, fair));
}
