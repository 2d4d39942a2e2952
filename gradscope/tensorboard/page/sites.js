/** Which row of which kind belongs to what was chosen. */

/**
 * The site of `kind` that `path` names: itself, or the first of that module, or of the module that has that parameter.
 *
 * @param {import("./types.js").Schema | undefined} schema
 * @param {string} kind
 * @param {string | null} path
 * @returns {number} -1 where there is none
 */
export function siteOf(schema, kind, path) {
  const sites = schema?.kinds[kind] ?? [];
  if (path === null) return -1;
  const named = sites.findIndex((site) => site.name === path);
  if (named >= 0) return named;
  const own = sites.findIndex((site) => site.path === path || site.module === path);
  return own >= 0 ? own : sites.findIndex((site) => site.module === moduleOf(schema, path));
}

/**
 * The sites of `kind` that a finding's modules name.
 *
 * @param {import("./types.js").Schema | undefined} schema
 * @param {string} kind
 * @param {readonly string[]} paths
 * @returns {Set<number>}
 */
export function sitesOf(schema, kind, paths) {
  const wanted = new Set(paths);
  const owners = new Set(paths.map((path) => moduleOf(schema, path)));
  const sites = schema?.kinds[kind] ?? [];
  const named = (/** @type {import("./types.js").Site} */ site) => wanted.has(site.path) || wanted.has(site.module);
  const exact = sites.flatMap((site, index) => (named(site) ? [index] : []));
  return new Set(exact.length ? exact : sites.flatMap((site, index) => (owners.has(site.module) ? [index] : [])));
}

/**
 * @param {import("./types.js").Schema | undefined} schema
 * @param {string} path of a module or a parameter
 * @returns {string | null} the path of the module
 */
export function moduleOf(schema, path) {
  if (schema?.modules.some((module) => module.path === path)) return path;
  const sites = ["weight", "weight_gradient", "update"].flatMap((kind) => schema?.kinds[kind] ?? []);
  return sites.find((site) => site.path === path)?.module ?? null;
}

/**
 * The finding that the report is about.
 *
 * @param {import("./types.js").Report | undefined} report
 * @returns {import("./types.js").Finding | undefined}
 */
export function primaryOf(report) {
  return report?.findings.find((finding) => finding.primary);
}
