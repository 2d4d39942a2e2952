/** The verdict: is the run healthy, what is wrong, and what to do about it. */

import { copyButton } from "./copy.js";
import { element, refill } from "./dom.js";
import { counted, short } from "./numbers.js";
import { primaryOf } from "./sites.js";

const MARKS = new Map([
  ["healthy", "✓"],
  ["info", "i"],
  ["warning", "!"],
  ["critical", "✕"],
  ["unknown", "?"],
]);

/** @param {import("./pane.js").Actions} actions */
export function createVerdict(actions) {
  const waiting = element("p", { class: "facts" }, "Judging the run …");
  const [head, body, remedy, foot] = [element("header"), element("div"), element("div"), createFooter()];
  head.append(waiting);
  const place = element("section", { class: "card verdict", "aria-label": "Verdict" }, head, body, remedy, foot.element);
  return {
    element: place,
    /** @param {import("./types.js").Report} report */
    draw(report) {
      place.className = `card verdict ${report.verdict}`;
      const primary = primaryOf(report);
      refill(head, [report.verdict, report.headline, primary?.title, facts(report)], () => heading(report, primary));
      const told = primary ?? [report.source, report.verdict, report.checked.length];
      refill(body, told, () => (primary ? cause(primary, actions) : nothingWrong(report)));
      refill(remedy, primary?.remedy ?? null, () => (primary ? cure(primary.remedy) : []));
      foot.draw(report);
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
 * @returns {string}
 */
function facts(report) {
  // A loss that was captured at first and has no number at last is NaN: losses are recorded as they are.
  const loss = report.first_loss === null ? null : `loss ${short(report.first_loss)} → ${short(report.last_loss ?? "inf")}`;
  return [report.model, counted(report.steps, "step"), loss].filter((fact) => fact).join(" · ");
}

/**
 * @param {import("./types.js").Report} report
 * @param {import("./types.js").Finding | undefined} primary
 * @returns {HTMLElement[]}
 */
function heading(report, primary) {
  const words = primary ? [element("span", { class: "rule" }, primary.title)] : [];
  const headline = element("h2", { class: "headline" }, sign(report.verdict), report.headline, ...words);
  return [headline, element("p", { class: "facts" }, facts(report))];
}

/**
 * @param {import("./types.js").Finding} finding
 * @param {import("./pane.js").Actions} actions
 * @returns {HTMLElement[]}
 */
function cause(finding, actions) {
  const link = (/** @type {string} */ text, /** @type {boolean} */ closely) => {
    const onclick = () => actions.find(finding, closely);
    return element("button", { type: "button", class: "link", "data-name": text, onclick }, text);
  };
  const links = [link("Show it below", false), " · ", link("Zoom to it", true)];
  const line = element("p", { class: "facts" }, `${finding.sure}, ${finding.when}. `, ...links);
  const candidates = finding.candidates ? [element("p", {}, finding.candidates)] : [];
  return [element("p", { class: "message" }, finding.message), line, ...candidates];
}

/**
 * @param {{text: string, code: string | null}} remedy
 * @returns {HTMLElement[]}
 */
function cure({ text, code }) {
  const title = element("h3", {}, "What to do");
  if (!code) return [element("div", { class: "remedy" }, title, element("p", {}, text, copyButton(text)))];
  const block = element("div", { class: "code" }, element("pre", { tabindex: 0 }, code), copyButton(code));
  return [element("div", { class: "remedy" }, title, element("p", {}, text), block)];
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

/** What the verdict rests on; a list that was opened stays open. */
function createFooter() {
  const [extra, summary, list, plain] = [element("div"), element("summary"), element("ul"), element("p")];
  const details = element("details", { hidden: true }, summary, list);
  return {
    element: element("footer", {}, extra, details, plain),
    /** @param {import("./types.js").Report} report */
    draw(report) {
      const skipped = Object.entries(report.skipped);
      const sampled = counted(report.sampled_steps, "sampled step");
      const checked = `${counted(report.checked.length, "rule")} checked on ${sampled}`;
      [details.hidden, plain.hidden] = [!skipped.length, skipped.length > 0];
      summary.textContent = `${checked}, ${skipped.length} could not look`;
      plain.textContent = `${checked}.`;
      const sentences = [...report.damage, ...report.notes];
      refill(extra, sentences, () => sentences.map((sentence) => element("p", { class: "note" }, sentence)));
      refill(list, skipped, () => skipped.map(([rule, reason]) => reasonOf(rule, reason)));
    },
  };
}

/**
 * @param {string} rule
 * @param {string} reason
 * @returns {HTMLElement}
 */
function reasonOf(rule, reason) {
  return element("li", {}, element("span", { class: "rule" }, rule), ` ${reason}`);
}
