/** Looks every few seconds whether a run has grown, as long as somebody looks at the page. */

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

/** @returns {boolean} false also in TensorBoard's frame once another tab was chosen */
function inSight() {
  return document.visibilityState === "visible" && window.innerWidth > 0;
}
