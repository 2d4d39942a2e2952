/**
 * Colours for numbers. The ramp is viridis (S. van der Walt and N. Smith, 2015; CC0): its lightness rises evenly, so it reads
 * the same with any colour vision and in grey. What is not finite is striped, as no number is.
 */

const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 73, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [110, 206, 88],
  [181, 222, 43],
  [253, 231, 37],
];

// What a cell of an encoded table holds; numbers stand from FIRST to FIRST + LEVELS - 1.
export const MISSING = 0;
export const ZERO = 1;
export const FIRST = 2;
export const LEVELS = 256;
export const NONFINITE = FIRST + LEVELS;

export const STRIPES = /** @type {const} */ (["#e4004f", "#ffffff"]);
const ZERO_COLOUR = [24, 6, 32]; // darker than the ramp's dark end

/**
 * The colour of each code as a pixel of ImageData.
 *
 * @param {string} missing the colour of what was not captured, as `#rrggbb`
 * @returns {Uint32Array}
 */
export function palette(missing) {
  const pixels = new Uint8ClampedArray(4 * (NONFINITE + 1));
  pixels.set([...channels(missing), 255], 4 * MISSING);
  pixels.set([...ZERO_COLOUR, 255], 4 * ZERO);
  for (let level = 0; level < LEVELS; level++) {
    pixels.set([...ramp(level / (LEVELS - 1)), 255], 4 * (FIRST + level));
  }
  return new Uint32Array(pixels.buffer);
}

/**
 * A CSS gradient from the ramp's low end to its high end.
 *
 * @returns {string}
 */
export function gradient() {
  return `linear-gradient(to right, ${VIRIDIS.map((colour) => `rgb(${colour.join(",")})`).join(", ")})`;
}

/** @returns {string} the colour of zeros on a logarithmic scale, where they have no place */
export function zeroColour() {
  return `rgb(${ZERO_COLOUR.join(",")})`;
}

/** @returns {[number, number]} the stripes' two colours as pixels */
export function stripePixels() {
  const bytes = STRIPES.flatMap((colour) => [...channels(colour), 255]);
  const [one, other] = new Uint32Array(new Uint8Array(bytes).buffer);
  return [one, other];
}

/**
 * @param {string} colour as `#rrggbb`
 * @returns {number[]}
 */
function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/**
 * @param {number} share from 0 to 1
 * @returns {number[]}
 */
function ramp(share) {
  const at = share * (VIRIDIS.length - 1);
  const left = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[left].map((value, channel) => Math.round(value + (VIRIDIS[left + 1][channel] - value) * (at - left)));
}
