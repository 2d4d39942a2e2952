/** A button that copies a text. */

import { element } from "./dom.js";

const SHOWN = 2000; // milliseconds for which the button says what it did

/**
 * @param {string} text
 * @returns {HTMLElement}
 */
export function copyButton(text) {
  const button = element("button", { type: "button", class: "copy", "data-name": "copy" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Select and copy it by hand";
    setTimeout(() => (button.textContent = "Copy"), SHOWN);
  });
  return element("span", { class: "copy-place", "aria-live": "polite" }, button);
}

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether it is on the clipboard
 */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text); // browsers keep the clipboard from pages that come over plain HTTP
  }
}

/**
 * @param {string} text
 * @returns {boolean}
 */
function copiedTheOldWay(text) {
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
