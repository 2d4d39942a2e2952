/** What a person can do on the page, whichever view they do it in. */

import { shared } from "./extents.js";
import { onKey } from "./keys.js";
import { toggled } from "./tree.js";

const BESIDE = 1; // times the length of a finding that are shown on either side of it
const LEAST_BESIDE = 10; // steps

/**
 * @param {import("./store.js").Store} store
 * @param {() => import("./pane.js").Pane[]} panes
 * @param {import("./tooltip.js").Tooltip} tooltip
 * @param {(text: string) => void} say
 * @returns {import("./pane.js").Actions}
 */
export function createActions(store, panes, tooltip, say) {
  // With the run that was looked at: an address that is shared shows the same, whatever run is the last by then.
  const set = (/** @type {Partial<import("./types.js").State>} */ change) =>
    store.set({ run: panes()[0]?.run ?? store.get().run, ...change });
  const steps = () => shared(panes().map((pane) => pane.extents())).steps;
  /** @type {import("./pane.js").Actions} */
  const actions = {
    choose: (what) => set({ ...what }),
    find(finding, closely = false) {
      const { first, last, flipped, module } = store.get();
      const outside = first !== null && last !== null && (finding.first_step < first || finding.first_step > last);
      const path = finding.modules.at(0);
      set({
        module: path ?? module,
        step: finding.first_step,
        ...(closely ? within(...around(finding), steps()) : outside ? { first: null, last: null } : {}),
        flipped: panes().reduce((folds, pane) => pane.reveal(path, folds), flipped),
      });
      say(`Moved to ${finding.rule}, step ${finding.first_step}${path === undefined ? "" : `, ${path}`}.`);
      document.querySelector(".timeline")?.scrollIntoView({ block: "nearest" });
    },
    fold: (path) => set({ flipped: toggled(store.get().flipped, path) }),
    zoom: (first, last) => set(within(first, last, steps())),
    stat: (stat) => set({ stat }),
    hover(step) {
      for (const pane of panes()) pane.point(step);
      if (step === null) tooltip.hide();
    },
    tell: tooltip.show,
    say,
    key: (event, scene) => onKey(event, scene, actions),
  };
  return actions;
}

/**
 * @param {import("./types.js").Finding} finding
 * @returns {[number, number]} the steps that it holds for, with what came before and after
 */
function around({ first_step: first, last_step: last }) {
  const beside = Math.max(LEAST_BESIDE, BESIDE * (last - first));
  return [first - beside, last + beside];
}

/**
 * @param {number | null} first
 * @param {number | null} last
 * @param {import("./types.js").Extent | null} steps
 * @returns {{first: number | null, last: number | null}} nothing where it would be the whole run
 */
function within(first, last, steps) {
  if (first === null || last === null || !steps) return { first: null, last: null };
  const [from, to] = [Math.max(first, steps.low), Math.min(Math.max(last, first + 1), steps.high)];
  return from <= steps.low && to >= steps.high ? { first: null, last: null } : { first: from, last: Math.max(from, to) };
}
