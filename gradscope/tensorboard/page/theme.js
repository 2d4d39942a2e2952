/** Light or dark, as TensorBoard is, and the colours that canvases draw with. */

import { hostWindow } from "./urlstate.js";

const DARK_CLASS = "dark-mode"; // of TensorBoard's body

/**
 * Keeps `data-theme` of the page as TensorBoard's, or as the system's where the page stands alone.
 *
 * @param {() => void} changed
 */
export function followTheme(changed) {
  const host = hostWindow();
  const body = host === window ? null : host.document.body;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const dark = body ? body.classList.contains(DARK_CLASS) : system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    changed();
  };
  apply();
  if (body) new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
}

/**
 * The theme's colours by the names of their CSS variables.
 *
 * @returns {{ink: string, quiet: string, line: string, card: string, missing: string, forward: string, backward: string,
 *   accent: string}}
 */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: of("ink"),
    quiet: of("quiet"),
    line: of("line"),
    card: of("card"),
    missing: of("missing"),
    forward: of("forward"),
    backward: of("backward"),
    accent: of("accent"),
  };
}
