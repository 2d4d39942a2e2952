/** Asks for each part of what is shown once, and again where the run has grown. */

/** @typedef {"report" | "schema" | "matrix" | "scalars" | "profile" | "histogram"} PartName */

/**
 * @typedef {object} Fetching
 * @property {(part: PartName, what: unknown, etag: string, ask: () => Promise<any>) => void} want
 * @property {() => void} retry what failed, or was of an earlier moment, is asked for again when it is wanted next
 */

/**
 * @param {import("./types.js").Data} data where replies and errors are put
 * @param {() => void} changed
 * @returns {Fetching}
 */
export function createFetching(data, changed) {
  /** @type {Map<PartName, {what: string, etag: string, pending: boolean, again: boolean}>} */
  const parts = new Map();
  return {
    want(part, what, etag, ask) {
      const text = JSON.stringify(what);
      const last = parts.get(part);
      // A run that grows faster than it can be asked for is asked for anew once the reply is there, and not before.
      if (last?.what === text && (last.pending || last.etag === etag)) return;
      const asked = { what: text, etag, pending: true, again: false };
      parts.set(part, asked);
      const settle = (/** @type {() => void} */ keep) => {
        if (parts.get(part) !== asked) return; // something else was asked for meanwhile
        asked.pending = false;
        delete data.errors[part];
        keep();
        changed();
      };
      ask().then(
        (reply) => {
          asked.again = reply.etag !== etag; // the verdict of a run that grows may be of a little earlier
          settle(() => (data[part] = reply));
        },
        (error) => {
          asked.again = true;
          settle(() => (data.errors[part] = String(error.message)));
        },
      );
    },
    retry() {
      for (const [part, { again, pending }] of parts) if (again && !pending) parts.delete(part);
    },
  };
}
