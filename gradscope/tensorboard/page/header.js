/** The bar on top: which run, beside which other, and how far it is. */

import { element, fill } from "./dom.js";
import { whole } from "./numbers.js";

/** @param {import("./store.js").Store} store */
export function createHeader(store) {
  const run = element("select", { id: "run", onchange: () => store.set(freshRun(run.value)) });
  const besides = () => store.set({ run: run.value || null, versus: versus.value || null });
  const versus = element("select", { id: "versus", onchange: besides });
  const status = element("p", { class: "status", role: "status" });
  let known = "";
  return {
    element: element(
      "header",
      { class: "bar" },
      element("label", { for: "run" }, "Run"),
      run,
      element("label", { for: "versus" }, "beside"),
      versus,
      status,
    ),
    /**
     * @param {readonly import("./types.js").Run[]} runs
     * @param {import("./types.js").Run | undefined} shown
     * @param {string | null} beside
     */
    draw(runs, shown, beside) {
      const names = JSON.stringify(runs.map(({ run, name }) => [run, name]));
      if (names !== known) {
        known = names;
        fill(run, ...options(runs));
        fill(versus, element("option", { value: "" }, "no other"), ...options(runs));
      }
      run.value = shown?.run ?? "";
      versus.value = beside ?? "";
      run.disabled = !runs.length;
      versus.disabled = runs.length < 2;
    },
    /** @param {import("./types.js").Run | undefined} shown */
    tell(shown) {
      const step = shown?.max_step;
      const text =
        typeof step === "number"
          ? `up to step ${whole(step)}${shown?.complete !== false ? "" : ", a choice of its sampled steps"}`
          : "";
      tellIn(status, text, "off"); // of a run that grows it would be read out again and again
      status.classList.remove("bad");
    },
    /** @param {string} sentence */
    warn(sentence) {
      tellIn(status, sentence, "polite");
      status.classList.add("bad");
    },
  };
}

/**
 * @param {HTMLElement} status
 * @param {string} text
 * @param {"off" | "polite"} live
 */
function tellIn(status, text, live) {
  status.setAttribute("aria-live", live);
  if (status.textContent !== text) status.textContent = text;
}

/**
 * @param {readonly import("./types.js").Run[]} runs
 * @returns {HTMLElement[]}
 */
function options(runs) {
  return runs.map(({ run, name }) => element("option", { value: run }, name));
}

/**
 * @param {string} run
 * @returns {Partial<import("./types.js").State>} what was chosen in the last run says nothing of this one
 */
function freshRun(run) {
  return { run, module: null, step: null, first: null, last: null, flipped: [] };
}
