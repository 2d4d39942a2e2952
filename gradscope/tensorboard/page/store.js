/** What was chosen: one value, replaced as a whole, and those who want to know. */

/** @type {import("./types.js").State} */
export const NOTHING_CHOSEN = Object.freeze({
  run: null,
  versus: null,
  stat: null,
  module: null,
  step: null,
  first: null,
  last: null,
  flipped: Object.freeze([]),
});

/**
 * @typedef {object} Store
 * @property {() => import("./types.js").State} get
 * @property {(change: Partial<import("./types.js").State>) => void} set
 * @property {(listener: (now: import("./types.js").State) => void) => void} subscribe
 */

/**
 * @param {import("./types.js").State} initial
 * @returns {Store}
 */
export function createStore(initial) {
  let state = initial;
  /** @type {((now: import("./types.js").State) => void)[]} */
  const listeners = [];
  return {
    get: () => state,
    set(change) {
      const next = { ...state, ...change };
      if (Object.keys(next).every((key) => Object.is(Reflect.get(next, key), Reflect.get(state, key)))) return;
      state = Object.freeze(next);
      for (const listener of listeners) listener(state);
    },
    subscribe: (listener) => void listeners.push(listener),
  };
}
