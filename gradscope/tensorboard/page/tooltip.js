/** The little card with exact numbers beside the pointer; one for the whole page. */

import { element, fill } from "./dom.js";

const OFFSET = 14; // pixels from the pointer

/**
 * @typedef {object} Tooltip
 * @property {HTMLElement} element
 * @property {(x: number, y: number, title: string, lines: readonly string[]) => void} show at a point of the page's window
 * @property {() => void} hide
 */

/** @returns {Tooltip} */
export function createTooltip() {
  const box = element("div", { class: "tooltip", role: "presentation", hidden: true });
  return {
    element: box,
    show(x, y, title, lines) {
      fill(box, element("strong", {}, title), ...lines.map((line) => element("span", {}, line)));
      box.hidden = false;
      const { offsetWidth: width, offsetHeight: height } = box;
      const left = x + OFFSET + width > window.innerWidth ? x - OFFSET - width : x + OFFSET;
      const top = Math.min(y + OFFSET, window.innerHeight - height - 4);
      box.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
    },
    hide() {
      box.hidden = true;
    },
  };
}
