/** Fetches what one run needs to show a state, and nothing twice. */

import { askJson, askTable } from "./api.js";
import { chosenStatistic, histogramPlace } from "./chosen.js";
import { createFetching } from "./fetching.js";

const MOST_CELLS = 2e6; // of a matrix
const FEWEST_COLUMNS = 128;
const MOST_COLUMNS = 1536;
const MOST_HISTOGRAMS = 512;
const PATIENCE = 600; // milliseconds

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
  let [patient, waiting] = [true, false];
  /** The report says which step and module tell most; where it takes long, others will do until then. */
  const awaitsReport = (/** @type {import("./types.js").State} */ state) => {
    if (data.report || data.errors.report || (state.step !== null && state.module !== null) || !patient) return false;
    if (!waiting) {
      waiting = true;
      setTimeout(() => {
        patient = false;
        changed();
      }, PATIENCE);
    }
    return true;
  };
  return {
    data,
    retry,
    want(state, run, etag, width) {
      const range = { first: state.first, last: state.last };
      const columns = bounded(width, 1);
      want("schema", run, etag, () => askJson("schema", { run }));
      want("scalars", { columns, ...range }, etag, () => askTable("scalars", { run, columns, ...range }));
      if (data.errors.schema && !data.schema) want("report", run, etag, () => askJson("report", { run }));
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
      // Judging a large run keeps the server busy for seconds: what is to be seen at once is asked for before.
      if (stat && !data.matrix && !data.errors.matrix) return;
      want("report", run, etag, () => askJson("report", { run }));
      if (!data.schema.sampled || awaitsReport(state)) return;
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
 * @param {number} width
 * @param {number} rows
 * @returns {number} columns that are worth asking for
 */
function bounded(width, rows) {
  const fair = Math.max(FEWEST_COLUMNS, Math.floor(MOST_CELLS / Math.max(1, rows)));
  return Math.max(FEWEST_COLUMNS, Math.min(MOST_COLUMNS, Math.ceil(width / 64) * 64, fair));
}
