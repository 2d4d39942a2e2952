/** Keeps what was made from the same things, so that a redrawing costs little. */

/**
 * @template {readonly unknown[]} Given
 * @template Made
 * @param {(...given: Given) => Made} make
 * @returns {(...given: Given) => Made} which makes nothing anew while it is given the same
 */
export function remembering(make) {
  /** @type {Given | null} */
  let last = null;
  /** @type {Made} */
  let made;
  return (...given) => {
    if (!last || given.some((value, index) => value !== last?.[index])) made = make(...given);
    last = given;
    return made;
  };
}
