/** The verdict: is the run healthy, what is wrong, and what to do about it. */

import { copyButton } from "./copy.js";
import { element, fill } from "./dom.js";
import { counted, short } from "./numbers.js";
import { primaryOf } from "./sites.js";

export const MARKS = new Map([
  ["healthy", "✓"],
  ["info", "i"],
  ["warning", "!"],
  ["critical", "✕"],
  ["unknown", "?"],
]);

/** @param {import("./pane.js").Actions} actions */
export function createVerdict(actions) {
  const waiting = element("p", { class: "facts" }, "Judging the run …");
  const place = element("section", { class: "card verdict", "aria-label": "Verdict" }, waiting);
  /** @type {import("./types.js").Report | undefined} */
  let last;
  return {
    element: place,
    /** @param {import("./types.js").Report} report */
    draw(report) {
      if (report === last) return; // what is being read or copied stays where it is
      last = report;
      place.className = `card verdict ${report.verdict}`;
      const primary = primaryOf(report);
      fill(place, head(report, primary), ...(primary ? cause(primary, actions) : nothingWrong(report)), footer(report));
    },
  };
}

/**
 * @param {import("./types.js").Severity} severity
 * @returns {HTMLElement} a sign that differs in form, not in colour alone
 */
export function sign(severity) {
  return element("span", { class: `sign ${severity}`, "aria-hidden": "true" }, MARKS.get(severity) ?? "?");
}

/**
 * @param {import("./types.js").Report} report
 * @param {import("./types.js").Finding | undefined} primary
 * @returns {HTMLElement}
 */
function head(report, primary) {
  // A loss that was captured at first and has no number at last is NaN: losses are recorded as they are.
  const loss = report.first_loss === null ? null : `loss ${short(report.first_loss)} → ${short(report.last_loss ?? "inf")}`;
  const facts = [report.model, counted(report.steps, "step"), loss].filter((fact) => fact);
  const words = primary ? [element("span", { class: "rule" }, primary.title)] : [];
  return element(
    "header",
    {},
    element("h2", { class: "headline" }, sign(report.verdict), report.headline, ...words),
    element("p", { class: "facts" }, facts.join(" · ")),
  );
}

/**
 * @param {import("./types.js").Finding} finding
 * @param {import("./pane.js").Actions} actions
 * @returns {HTMLElement[]}
 */
function cause(finding, actions) {
  const where = element("button", { type: "button", class: "link", onclick: () => actions.find(finding) }, "Show it below");
  const line = element("p", { class: "facts" }, `${finding.sure}, ${finding.when}. `, where);
  const candidates = finding.candidates ? [element("p", {}, finding.candidates)] : [];
  return [element("p", { class: "message" }, finding.message), line, ...candidates, remedy(finding.remedy)];
}

/**
 * @param {{text: string, code: string | null}} given
 * @returns {HTMLElement}
 */
function remedy({ text, code }) {
  const block = code ? [element("div", { class: "code" }, element("pre", { tabindex: 0 }, code), copyButton(code))] : [];
  return element("div", { class: "remedy" }, element("h3", {}, "What to do"), element("p", {}, text), ...block);
}

/**
 * @param {import("./types.js").Report} report
 * @returns {HTMLElement[]}
 */
function nothingWrong(report) {
  if (report.source === "written") {
    return [
      element("p", { class: "message" }, "The numbers of this run are not here, only the report that the training wrote."),
    ];
  }
  if (report.verdict === "unknown") {
    return [
      element(
        "p",
        { class: "message" },
        "No rule could look yet: the run has too few steps. The page looks again as it grows.",
      ),
    ];
  }
  return [element("p", { class: "message" }, `None of the ${report.checked.length} rules that looked found anything wrong.`)];
}

/**
 * What the verdict rests on.
 *
 * @param {import("./types.js").Report} report
 * @returns {HTMLElement}
 */
function footer(report) {
  const skipped = Object.entries(report.skipped);
  const sampled = `${counted(report.checked.length, "rule")} checked on ${counted(report.sampled_steps, "sampled step")}`;
  const rest = skipped.length ? `, ${skipped.length} could not look` : "";
  const reasons = skipped.map(([rule, reason]) => element("li", {}, element("span", { class: "rule" }, rule), ` ${reason}`));
  const extra = [...report.damage, ...report.notes].map((sentence) => element("p", { class: "note" }, sentence));
  const summary = element("summary", {}, `${sampled}${rest}`);
  const inside = reasons.length
    ? element("details", {}, summary, element("ul", {}, ...reasons))
    : element("p", {}, `${sampled}.`);
  return element("footer", {}, ...extra, inside);
}
