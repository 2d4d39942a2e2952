/** Looks every few seconds whether a run has grown, as long as somebody looks at the page. */

import { hostWindow } from "./urlstate.js";

const EVERY = 3000; // milliseconds

/** @param {() => Promise<void>} look */
export function keepLooking(look) {
  let looking = false;
  const turn = async () => {
    if (looking || !inSight()) return;
    looking = true;
    await look().finally(() => (looking = false));
  };
  setInterval(turn, EVERY);
  document.addEventListener("visibilitychange", turn);
  return turn();
}

/** @returns {boolean} false also where TensorBoard hides the frame, another of its tabs being chosen */
export function inSight() {
  const host = hostWindow();
  const frame = host === window ? null : window.frameElement;
  const hidden = frame !== null && host.getComputedStyle(frame).visibility === "hidden";
  return document.visibilityState === "visible" && window.innerWidth > 0 && !hidden;
}
