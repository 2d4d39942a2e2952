/** What stands where there is nothing to show: why, and what to do. */

import { copyButton } from "./copy.js";
import { element, fill } from "./dom.js";

const MOST_NAMED = 5;
const ATTACH = `import gradscope

scope = gradscope.attach(model, "runs/first-try")  # before the training loop; train as before`;

export function createEmpty() {
  const place = element("section", { class: "card empty", "aria-label": "Nothing to show", hidden: true });
  let shown = "";
  return {
    element: place,
    hide() {
      place.hidden = true;
      shown = "";
    },
    /**
     * @param {string} title
     * @param {string} text
     * @param {string} [code]
     */
    show(title, text, code) {
      place.hidden = false;
      if (shown === title + text) return; // what is being read or copied stays where it is
      shown = title + text;
      const block = code && element("div", { class: "code" }, element("pre", { tabindex: 0 }, code), copyButton(code));
      fill(place, element("h2", {}, title), element("p", {}, text), block ?? null);
    },
  };
}

/**
 * What to say where there is no run to show.
 *
 * @param {import("./types.js").Runs} runs
 * @param {import("./types.js").Run | undefined} run
 * @param {string | null} asked the run that the address names
 * @returns {[string, string, string?] | null} null where the run can be shown
 */
export function reasonForNothing(runs, run, asked) {
  if (run?.error) return ["This run cannot be shown", run.error];
  if (run) return run.max_step === null ? waiting(run.name) : null;
  if (asked !== null && runs.runs.length) {
    return [
      `There is no run ${asked} here`,
      "Choose another run above; if it is still to come, the page shows it once it is there.",
    ];
  }
  return runs.others.length ? foreign(runs.others) : NO_DATA;
}

/** @type {[string, string, string]} */
const NO_DATA = [
  "No data yet",
  "Watch a training with the line below and give TensorBoard the same log directory. This page looks for new data by itself.",
  ATTACH,
];

/**
 * @param {string} name
 * @returns {[string, string]}
 */
function waiting(name) {
  return [
    `${name} has not made a step yet`,
    "The first steps are written within seconds of training. This page looks for them by itself.",
  ];
}

/**
 * @param {readonly string[]} others
 * @returns {[string, string, string]}
 */
function foreign(others) {
  const more = others.length > MOST_NAMED ? " and others" : "";
  const names = others.slice(0, MOST_NAMED).join(", ") + more;
  const text = `What is in this log directory (${names}) was written by other tools: it has no layers to show.`;
  return ["Only other tools’ data here", `${text} Watch the training with the line below.`, ATTACH];
}
