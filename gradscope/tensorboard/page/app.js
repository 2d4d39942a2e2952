/** The page as a whole: what was chosen, the runs that there are, and a pane for each that is shown. */

import { createActions } from "./actions.js";
import { askJson } from "./api.js";
import { createChoice } from "./choice.js";
import { element, fill, onceAFrame } from "./dom.js";
import { createEmpty, reasonForNothing } from "./empty.js";
import { shared } from "./extents.js";
import { createHeader } from "./header.js";
import { KEYS } from "./keys.js";
import { keepLooking } from "./live.js";
import { createPane } from "./pane.js";
import { createStore } from "./store.js";
import { followTheme } from "./theme.js";
import { createTooltip } from "./tooltip.js";
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
  const choice = createChoice(root);
  const actions = createActions(store, () => panes, tooltip, (text) => (spoken.textContent = text));

  function draw() {
    if (!runs) return;
    const state = store.get();
    const shown = choice.of(runs.runs, state.run);
    const beside = runs.runs.find(({ run }) => run === state.versus && run !== shown?.run);
    header.draw(runs.runs, shown, beside?.run ?? null);
    if (beside?.error) header.warn(`${beside.name}: ${beside.error}`);
    else header.tell(shown);
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
