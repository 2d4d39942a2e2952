/** Findings as bars over the steps that they hold for, between the curves and the heat map. */

import { element, fill } from "./dom.js";

const MOST = 8; // bars; the list of findings has them all
const LEAST = 5; // pixels

/** @param {import("./pane.js").Actions} actions */
export function createLane(actions) {
  const label = element("div", { class: "lane-label" });
  const plot = element("div", { class: "lane" });
  return {
    elements: [label, plot],
    /**
     * @param {readonly import("./types.js").Finding[]} findings
     * @param {import("./steps.js").StepScale} scale
     */
    draw(findings, scale) {
      const seen = findings.filter((finding) => finding.first_step <= scale.last && finding.last_step >= scale.first);
      const shown = seen.filter((finding) => finding.severity !== "info").slice(0, MOST);
      label.textContent = shown.length ? "Findings" : "";
      fill(plot, ...shown.map((finding) => bar(finding, scale, actions)));
    },
  };
}

/**
 * @param {import("./types.js").Finding} finding
 * @param {import("./steps.js").StepScale} scale
 * @param {import("./pane.js").Actions} actions
 * @returns {HTMLElement}
 */
function bar(finding, scale, actions) {
  const left = Math.min(scale.width - LEAST, Math.max(0, scale.x(finding.first_step)));
  const right = Math.min(scale.width, scale.x(finding.last_step + 1));
  const late = left > scale.width * 0.6; // the name stands before the bar where there is no room behind it
  const text = element("span", { class: `lane-name${late ? " late" : ""}` }, finding.rule);
  const attributes = {
    type: "button",
    class: `lane-bar ${finding.severity}`,
    tabindex: -1, // the list of findings is for the keyboard
    title: `${finding.rule}, ${finding.when}`,
    style: `--left: ${left}px; --width: ${Math.max(LEAST, right - left)}px`,
    onclick: () => actions.find(finding),
  };
  return element("button", attributes, element("span", { class: "lane-span" }), text);
}
