/** Which run is shown where the address names none: the one that began last, until somebody has begun to read. */

const SIGNS = ["pointerdown", "keydown", "wheel"]; // that somebody does

/** @param {HTMLElement} root */
export function createChoice(root) {
  let read = false;
  /** @type {string | null} */
  let kept = null;
  for (const sign of SIGNS) root.addEventListener(sign, () => (read = true), { capture: true, passive: true });
  return {
    /**
     * @param {readonly import("./types.js").Run[]} runs
     * @param {string | null} named by the address
     * @returns {import("./types.js").Run | undefined}
     */
    of(runs, named) {
      if (named !== null) return runs.find(({ run }) => run === named);
      const shown = (read && runs.find(({ run }) => run === kept)) || latest(runs);
      kept = shown?.run ?? null;
      return shown;
    },
  };
}

/**
 * @param {readonly import("./types.js").Run[]} runs
 * @returns {import("./types.js").Run | undefined} of those that can be shown, if any can
 */
function latest(runs) {
  const sound = runs.filter(({ error }) => !error);
  const begun = (/** @type {import("./types.js").Run} */ run) => run.begun ?? -Infinity;
  return (sound.length ? sound : [...runs]).sort((one, other) => begun(one) - begun(other)).at(-1);
}
