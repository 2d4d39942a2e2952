/** The other findings, each a button that moves everything to its module and step. */

import { element, refill } from "./dom.js";
import { sign } from "./verdict.js";

const MOST_NAMED = 2; // modules

/** @param {import("./pane.js").Actions} actions */
export function createFindings(actions) {
  const list = element("ol", { class: "findings" });
  const title = element("h2", {}, "Also found");
  const place = element("section", { class: "card also", "aria-label": "Findings", hidden: true }, title, list);
  return {
    element: place,
    /** @param {import("./types.js").Report} report */
    draw(report) {
      const others = report.findings.filter((finding) => !finding.primary);
      place.hidden = !others.length;
      refill(list, others, () => others.map((finding) => element("li", {}, item(finding, actions))));
    },
  };
}

/**
 * @param {import("./types.js").Finding} finding
 * @param {import("./pane.js").Actions} actions
 * @returns {HTMLElement}
 */
function item(finding, actions) {
  const named = finding.modules.slice(0, MOST_NAMED).join(", ");
  const more = finding.modules.length > MOST_NAMED ? ` and ${finding.modules.length - MOST_NAMED} more` : "";
  const facts = [`from step ${finding.first_step}`, named && named + more, finding.explained && "explained by another finding"];
  const onclick = () => actions.find(finding);
  return element(
    "button",
    { type: "button", class: "finding", "data-name": finding.rule, onclick, title: finding.message },
    sign(finding.severity),
    element("span", { class: "unseen" }, `${finding.severity}: `),
    element("span", { class: "rule" }, finding.title),
    element("span", { class: "facts" }, facts.filter((fact) => fact).join(" · ")),
  );
}
