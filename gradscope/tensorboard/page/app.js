/** The page as a whole: what was chosen, the runs that there are, and a pane for each that is shown. */

import { askJson } from "./api.js";
import { element, fill, onceAFrame } from "./dom.js";
import { createEmpty, reasonForNothing } from "./empty.js";
import { createHeader } from "./header.js";
import { KEYS, onKey } from "./keys.js";
import { keepLooking } from "./live.js";
import { createPane, united } from "./pane.js";
import { createStore } from "./store.js";
import { followTheme } from "./theme.js";
import { createTooltip } from "./tooltip.js";
import { toggled } from "./tree.js";
import { onAddress, readState, writeState } from "./urlstate.js";

/** @param {HTMLElement} root */
export function start(root) {
  const store = createStore(readState());
  const header = createHeader(store);
  const empty = createEmpty();
  const tooltip = createTooltip();
  const spoken = element("p", { class: "unseen", "aria-live": "polite" });
  const place = element("main", { class: "panes" });
  const keys = element("p", { class: "unseen", id: "keys" }, KEYS);
  fill(root, header.element, empty.element, place, tooltip.element, spoken, keys);

  /** @type {import("./types.js").Runs | null} */
  let runs = null;
  /** @type {import("./pane.js").Pane[]} */
  let panes = [];
  const redraw = onceAFrame(draw);
  const actions = createActions(
    store,
    () => panes,
    tooltip,
    (text) => (spoken.textContent = text),
  );

  function draw() {
    if (!runs) return;
    const state = store.get();
    const shown = runs.runs.find(({ run }) => run === state.run) ?? (state.run === null ? latest(runs.runs) : undefined);
    const beside = runs.runs.find(({ run }) => run === state.versus && run !== shown?.run);
    header.draw(runs.runs, shown, beside?.run ?? null);
    header.tell(shown);
    const reason = reasonForNothing(runs, shown, state.run);
    if (reason) empty.show(...reason);
    else empty.hide();
    const wanted = reason || !shown ? [] : beside && !beside.error ? [shown, beside] : [shown];
    panes = keptPanes(place, panes, wanted, actions, redraw);
    panes.forEach((pane, index) => pane.want(state, wanted[index].etag));
    const extents = shared(panes.map((pane) => pane.extents()));
    panes.forEach((pane, index) => pane.draw(state, extents, panes.length > 1 ? wanted[index].name : ""));
  }

  store.subscribe((state) => {
    writeState(state);
    redraw();
  });
  onAddress(() => store.set(readState()));
  followTheme(redraw);
  new ResizeObserver(redraw).observe(root);
  keepLooking(async () => {
    try {
      runs = await askJson("runs");
      for (const pane of panes) pane.retry();
      redraw();
    } catch (error) {
      header.warn(/** @type {Error} */ (error).message);
    }
  });
}

/**
 * @param {import("./store.js").Store} store
 * @param {() => import("./pane.js").Pane[]} panes
 * @param {import("./tooltip.js").Tooltip} tooltip
 * @param {(text: string) => void} say
 * @returns {import("./pane.js").Actions}
 */
function createActions(store, panes, tooltip, say) {
  /** @type {import("./pane.js").Actions} */
  const actions = {
    choose: (what) => store.set({ ...what }),
    find(finding) {
      const { first, last, flipped, module } = store.get();
      const outside = first !== null && last !== null && (finding.first_step < first || finding.first_step > last);
      const path = finding.modules.at(0);
      store.set({
        module: path ?? module,
        step: finding.first_step,
        ...(outside ? { first: null, last: null } : {}),
        flipped: panes()[0]?.reveal(path, flipped) ?? flipped,
      });
      say(`Moved to ${finding.rule}, step ${finding.first_step}${path === undefined ? "" : `, ${path}`}.`);
      document.querySelector(".timeline")?.scrollIntoView({ block: "nearest" });
    },
    fold: (path) => store.set({ flipped: toggled(store.get().flipped, path) }),
    zoom: (first, last) => store.set(within(first, last, shared(panes().map((pane) => pane.extents())).steps)),
    stat: (stat) => store.set({ stat }),
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

/**
 * The panes of these runs, those kept that are there already.
 *
 * @param {HTMLElement} place
 * @param {import("./pane.js").Pane[]} panes
 * @param {readonly import("./types.js").Run[]} wanted
 * @param {import("./pane.js").Actions} actions
 * @param {() => void} changed
 * @returns {import("./pane.js").Pane[]}
 */
function keptPanes(place, panes, wanted, actions, changed) {
  const same = panes.length === wanted.length && panes.every((pane, index) => pane.run === wanted[index].run);
  if (same) return panes;
  const known = new Map(panes.map((pane) => [pane.run, pane]));
  const next = wanted.map(
    ({ run }, index) => known.get(run) ?? createPane(run, `pane-${index}-${Date.now()}`, actions, changed),
  );
  place.classList.toggle("two", next.length > 1);
  fill(place, ...next.map((pane) => pane.element));
  return next;
}

/**
 * @param {readonly import("./types.js").Extents[]} all
 * @returns {import("./types.js").Extents} the same scales for all that are shown
 */
function shared(all) {
  const curves = all[0]?.scalars ?? [];
  return {
    steps: united(all.map(({ steps }) => steps)),
    colour: united(all.map(({ colour }) => colour)),
    profile: united(all.map(({ profile }) => profile)),
    scalars: curves.map((_, index) => united(all.map(({ scalars }) => scalars[index]))),
  };
}

/**
 * @param {readonly import("./types.js").Run[]} runs
 * @returns {import("./types.js").Run | undefined} the last that can be shown: names mostly begin with a time
 */
function latest(runs) {
  return runs.findLast(({ error }) => !error) ?? runs.at(-1);
}
