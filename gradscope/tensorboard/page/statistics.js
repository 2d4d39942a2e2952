/** Which statistic the heat map shows: the main ones at a click, the others in a list. */

import { element, fill } from "./dom.js";

/** @param {(name: string) => void} choose */
export function createStatistics(choose) {
  const group = element("div", { class: "segments", role: "radiogroup", "aria-label": "Statistic" });
  const more = element("select", { "aria-label": "Other statistics", onchange: () => more.value && choose(more.value) });
  /** @type {readonly import("./types.js").Statistic[] | null} */
  let known = null;
  return {
    element: element("div", { class: "statistics" }, group, more),
    /**
     * @param {readonly import("./types.js").Statistic[]} statistics
     * @param {string} chosen
     */
    draw(statistics, chosen) {
      if (known !== statistics) {
        known = statistics;
        fill(group, ...statistics.filter(({ main }) => main).map((statistic) => segment(statistic, group, choose)));
        const others = statistics.filter(({ main }) => !main);
        fill(
          more,
          element("option", { value: "" }, "More…"),
          ...others.map(({ name, title, text }) => element("option", { value: name, title: text }, title)),
        );
        more.hidden = !others.length;
      }
      for (const button of group.querySelectorAll("button")) {
        const on = button.value === chosen;
        button.setAttribute("aria-checked", String(on));
        button.tabIndex = on ? 0 : -1;
      }
      if (!group.querySelector("[aria-checked=true]")) group.querySelector("button")?.setAttribute("tabindex", "0");
      more.value = chosen;
      if (more.selectedIndex < 0) more.value = "";
    },
  };
}

/**
 * @param {import("./types.js").Statistic} statistic
 * @param {HTMLElement} group
 * @param {(name: string) => void} choose
 * @returns {HTMLElement}
 */
function segment({ name, title, text }, group, choose) {
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    const by = new Map([
      ["ArrowRight", 1],
      ["ArrowDown", 1],
      ["ArrowLeft", -1],
      ["ArrowUp", -1],
    ]).get(event.key);
    if (by === undefined) return;
    event.preventDefault();
    const buttons = [...group.querySelectorAll("button")];
    const next = buttons[(buttons.findIndex((button) => button.value === name) + by + buttons.length) % buttons.length];
    next.focus();
    choose(next.value);
  };
  const attributes = { type: "button", role: "radio", value: name, title: text, onclick: () => choose(name), onkeydown };
  return element("button", attributes, title);
}
