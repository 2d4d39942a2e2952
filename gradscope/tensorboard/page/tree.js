/** The rows of the heat map: sites in execution order, grouped as the modules are, some groups folded. */

const MOST_ROWS = 64; // that are open at first
const DEEPEST = 24; // levels; a name with more dots keeps the rest as one

/**
 * @typedef {object} Node
 * @property {string} path of the group or site; what folding and choosing go by
 * @property {string} label
 * @property {number} depth
 * @property {number[]} sites its own; of a group usually none
 * @property {number[]} below all sites in it, its own included
 * @property {Node[]} children
 */

/** @typedef {Node & {folded: boolean, rows: readonly number[], size: number, place: number}} Row */

/**
 * @param {readonly import("./types.js").Site[]} sites
 * @returns {Node[]} the top of the tree
 */
export function moduleTree(sites) {
  const root = node("", "", -1);
  /** @type {Map<string, Node>} */
  const known = new Map();
  sites.forEach((site, index) => insert(root, known, site, index));
  return root.children.map((child) => joined(child, 0));
}

/**
 * @param {readonly Node[]} top
 * @param {ReadonlySet<string>} flipped groups that are folded where they would be open, or open where they would be folded
 * @returns {Row[]} those that are shown, from above
 */
export function visibleRows(top, flipped) {
  const limit = openDepth(top);
  /** @type {Row[]} */
  const rows = [];
  const visit = (/** @type {Node} */ at, /** @type {number} */ size, /** @type {number} */ place) => {
    const folded = at.children.length > 0 && at.depth >= limit !== flipped.has(at.path);
    const shown = folded ? at.below : at.sites;
    rows.push({ ...at, folded, rows: shown, size, place });
    if (!folded) at.children.forEach((child, index) => visit(child, at.children.length, index + 1));
  };
  top.forEach((at, index) => visit(at, top.length, index + 1));
  return rows;
}

/**
 * The group that a site cannot be seen for.
 *
 * @param {readonly Row[]} rows
 * @param {number} site
 * @returns {Row | undefined} the folded group that has the site in it
 */
export function hiding(rows, site) {
  return rows.find((row) => row.folded && row.below.includes(site));
}

/**
 * The groups to flip so that a site has a row of its own.
 *
 * @param {readonly Node[]} top
 * @param {readonly string[]} flipped
 * @param {number} site
 * @returns {readonly string[]} `flipped` itself where the site is in sight
 */
export function revealing(top, flipped, site) {
  const hidden = hiding(visibleRows(top, new Set(flipped)), site);
  if (!hidden) return flipped;
  return revealing(top, toggled(flipped, hidden.path), site);
}

/**
 * @param {readonly string[]} paths
 * @param {string} path
 * @returns {readonly string[]} without the path where it was in, with it where it was not
 */
export function toggled(paths, path) {
  return paths.includes(path) ? paths.filter((other) => other !== path) : [...paths, path];
}

/**
 * @param {Node} root
 * @param {Map<string, Node>} known nodes by their paths
 * @param {import("./types.js").Site} site
 * @param {number} index
 */
function insert(root, known, site, index) {
  const parts = (site.name || "(model)").split(".");
  const names = parts.length <= DEEPEST ? parts : [...parts.slice(0, DEEPEST - 1), parts.slice(DEEPEST - 1).join(".")];
  let at = root;
  names.forEach((name, depth) => {
    const path = names.slice(0, depth + 1).join(".");
    let next = known.get(path);
    if (!next) {
      next = node(path, name, depth);
      known.set(path, next);
      at.children.push(next);
    }
    next.below.push(index);
    at = next;
  });
  at.sites.push(index);
}

/**
 * @param {string} path
 * @param {string} label
 * @param {number} depth
 * @returns {Node}
 */
function node(path, label, depth) {
  return { path, label, depth, sites: [], below: [], children: [] };
}

/**
 * With groups of a single child drawn together: `model.encoder` is one row, not two.
 *
 * @param {Node} at
 * @param {number} depth
 * @returns {Node}
 */
function joined(at, depth) {
  let [last, label] = [at, at.label];
  while (last.children.length === 1 && !last.sites.length) {
    last = last.children[0];
    label += `.${last.label}`;
  }
  return { ...last, label, depth, children: last.children.map((child) => joined(child, depth + 1)) };
}

/**
 * The depth from which groups are folded at first, so that the tree can be taken in at one look.
 *
 * @param {readonly Node[]} top
 * @returns {number}
 */
function openDepth(top) {
  /** @type {number[]} */
  const rows = []; // by depth
  const count = (/** @type {Node} */ at) => {
    rows[at.depth] = (rows[at.depth] ?? 0) + 1;
    at.children.forEach(count);
  };
  top.forEach(count);
  let [depth, shown] = [0, rows[0] ?? 0];
  while (depth + 1 < rows.length && shown + rows[depth + 1] <= MOST_ROWS) shown += rows[++depth];
  return depth;
}
