/**
 * The state in the address of TensorBoard's own page, so that it can be shared: `#gradscope&p.gradscope.step=12`, the form
 * that TensorBoard leaves to plugins. Where the parent cannot be reached (a notebook's proxy), the page's own address serves.
 */

import { NOTHING_CHOSEN } from "./store.js";

const PLUGIN = "gradscope";
const PREFIX = `p.${PLUGIN}.`;
const TEXTS = /** @type {const} */ (["run", "versus", "stat", "module"]);
const NUMBERS = /** @type {const} */ (["step", "first", "last"]);

/** @returns {import("./types.js").State} */
export function readState() {
  const given = new URLSearchParams(ours(hostWindow().location.hash).join("&"));
  /** @type {Record<string, unknown>} */
  const state = { ...NOTHING_CHOSEN };
  for (const key of TEXTS) state[key] = given.get(PREFIX + key);
  for (const key of NUMBERS) state[key] = stepIn(given.get(PREFIX + key));
  if (state.first === null || state.last === null) state.first = state.last = null;
  state.flipped = given.getAll(`${PREFIX}fold`);
  return /** @type {import("./types.js").State} */ (Object.freeze(state));
}

/** @param {import("./types.js").State} state */
export function writeState(state) {
  const host = hostWindow();
  const hash = host.location.hash;
  if (host !== window && !hash.startsWith(`#${PLUGIN}`)) return; // another dashboard is shown, and the address is its own
  const kept = hash
    .replace(/^#/, "")
    .split("&")
    .filter((part) => part && !part.startsWith(PREFIX));
  const parts = [...(kept.length ? kept : [PLUGIN]), ...pairs(state)];
  try {
    const { pathname, search } = host.location; // a hash alone would go by the page's base, which is not its address
    host.history.replaceState(host.history.state, "", `${pathname}${search}#${parts.join("&")}`);
  } catch {
    // Browsers refuse more than some hundred changes in half a minute; the next change tries again.
  }
}

/** @param {() => void} listener called when somebody else changes the address */
export function onAddress(listener) {
  hostWindow().addEventListener("hashchange", listener);
}

/**
 * The window whose address a person sees.
 *
 * @returns {Window}
 */
export function hostWindow() {
  try {
    void window.parent.location.hash; // raises where the parent is of another origin
    return window.parent;
  } catch {
    return window;
  }
}

/**
 * @param {string} hash
 * @returns {string[]}
 */
function ours(hash) {
  return hash
    .replace(/^#/, "")
    .split("&")
    .filter((part) => part.startsWith(PREFIX));
}

/**
 * @param {import("./types.js").State} state
 * @returns {string[]}
 */
function pairs(state) {
  const given = [...TEXTS, ...NUMBERS].flatMap((key) => (state[key] === null ? [] : [[key, String(state[key])]]));
  const folds = state.flipped.map((path) => ["fold", path]);
  return [...given, ...folds].map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
}

/**
 * @param {string | null} text
 * @returns {number | null}
 */
function stepIn(text) {
  const step = Number(text);
  return text && Number.isSafeInteger(step) ? step : null;
}
