/** The report as the training wrote it, where the numbers that it rests on are not there. */

import { askText } from "./api.js";
import { element } from "./dom.js";

/** @param {string} run */
export function createWritten(run) {
  const text = element("pre", { class: "written" });
  const place = element("section", { class: "card", "aria-label": "Report", hidden: true }, text);
  /** @type {import("./types.js").Report | undefined} */
  let last;
  return {
    element: place,
    /** @param {import("./types.js").Report} report */
    async draw(report) {
      if (report === last) return;
      last = report;
      place.hidden = report.source !== "written";
      if (place.hidden) return;
      text.textContent = await askText("text", { run }).catch((error) => String(error.message));
    },
  };
}
