/** The shapes of what travels between the modules of the page; docs/http_api.md says what the server's replies mean. */

/** @typedef {number | "inf" | "-inf" | null} Reading A number of a JSON reply. */

/** @typedef {"healthy" | "info" | "warning" | "critical" | "unknown"} Severity */

/**
 * @typedef {object} Run
 * @property {string} run
 * @property {string} name
 * @property {string} etag
 * @property {number | null} max_step
 * @property {number | null} begun
 * @property {string | null} error
 * @property {boolean | null} complete
 * @property {Severity | null} verdict
 */

/** @typedef {{runs: Run[], others: string[], version: string}} Runs */

/**
 * @typedef {object} Finding
 * @property {string} rule
 * @property {string} title
 * @property {string} kind
 * @property {Severity} severity
 * @property {string[]} modules
 * @property {number} first_step
 * @property {number} last_step
 * @property {string} when
 * @property {string} sure
 * @property {boolean} explained
 * @property {boolean} primary
 * @property {string} message
 * @property {{text: string, code: string | null}} remedy
 * @property {string | null} candidates
 */

/**
 * @typedef {object} Report
 * @property {Severity} verdict
 * @property {string} headline
 * @property {string} source
 * @property {number} steps
 * @property {number} sampled_steps
 * @property {string} model
 * @property {string} device
 * @property {Reading} overhead
 * @property {Reading} first_loss
 * @property {Reading} last_loss
 * @property {Finding[]} findings
 * @property {Record<string, string>} skipped
 * @property {string[]} checked
 * @property {string[]} notes
 * @property {string[]} damage
 * @property {number | null} profile_step
 */

/** @typedef {{path: string, call: number, name: string, module: string}} Site */

/** @typedef {"log" | "share" | "linear"} ScaleKind */

/** @typedef {{name: string, title: string, kind: string, scale: ScaleKind, main: boolean, text: string}} Statistic */

/**
 * @typedef {object} Schema
 * @property {number | null} first_step
 * @property {number | null} last_step
 * @property {number} sampled
 * @property {Record<string, Site[]>} kinds
 * @property {{path: string, name: string, type: string, role: string, order: number | null}[]} modules
 * @property {Statistic[]} statistics
 * @property {string[]} histograms
 * @property {string | null} cut
 */

/**
 * What all binary replies say of their columns, and the numbers themselves, row after row.
 *
 * @typedef {object} Table
 * @property {[number, number]} shape
 * @property {number[]} first
 * @property {number[]} last
 * @property {number[]} count
 * @property {boolean} thinned
 * @property {[number, number] | null} range
 * @property {Float32Array} data
 */

/**
 * @typedef {object} MatrixFacts
 * @property {string} stat
 * @property {string} kind
 * @property {ScaleKind} scale
 * @property {number | null} low
 * @property {number | null} high
 * @property {number} nonfinite
 */

/** @typedef {Table & MatrixFacts} Matrix */

/** @typedef {Table & {rows: string[]}} Scalars */

/** @typedef {Table & {kind: string, site: number, name: string, lowest: number}} Histogram */

/** @typedef {{slope: number, intercept: number, count: number}} Fit */

/**
 * @typedef {object} ProfileRow
 * @property {string} module
 * @property {string} name
 * @property {string} type
 * @property {Reading} activation
 * @property {Reading} signal
 * @property {Reading} gradient
 * @property {Reading} update
 */

/**
 * @typedef {object} Profile
 * @property {number} step
 * @property {number | null} previous
 * @property {number | null} next
 * @property {ProfileRow[]} rows
 * @property {{activation: Fit | null, signal: Fit | null, gradient: Fit | null}} fits
 */

/**
 * What was chosen, and what the address holds.
 *
 * @typedef {object} State
 * @property {string | null} run
 * @property {string | null} versus the run beside it
 * @property {string | null} stat
 * @property {string | null} module path of a module or parameter
 * @property {number | null} step
 * @property {number | null} first of the steps zoomed to; null for the whole run
 * @property {number | null} last
 * @property {readonly string[]} flipped groups of the tree that are folded where they would be open, or the other way round
 */

/** @typedef {{low: number, high: number}} Extent */

/**
 * What axes and colours span.
 *
 * @typedef {object} Extents
 * @property {Extent | null} steps
 * @property {Record<string, Extent>} colours of the heat map, by statistic
 * @property {Extent | null} profile
 * @property {Record<string, Extent>} magnitudes powers of two that histograms show, by kind
 * @property {Record<string, Extent>} shares of elements that the brightest colour of histograms stands for, by kind
 * @property {(Extent | null)[]} scalars
 */

/**
 * What was fetched of one run so far.
 *
 * @typedef {object} Data
 * @property {Report} [report]
 * @property {Schema} [schema]
 * @property {Matrix} [matrix]
 * @property {Scalars} [scalars]
 * @property {Profile} [profile]
 * @property {Histogram} [histogram]
 * @property {Record<string, string>} errors what could not be fetched, and the server's sentence
 */

export {};
