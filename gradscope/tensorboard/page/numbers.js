/** Numbers and steps as the page words them. */

/**
 * As short as tells enough, as in the report: `0.812`, `12345`, `1.2e-7`, `not finite`; a dash for what was not captured.
 *
 * @param {import("./types.js").Reading | undefined} value
 * @returns {string}
 */
export function short(value) {
  if (value === null || value === undefined || (typeof value === "number" && Number.isNaN(value))) return "–";
  if (typeof value === "string" || !Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1000 && size < 1e5) return value.toFixed(0);
  return size >= 1e-3 && size < 1000 ? trimmed(value.toPrecision(3)) : trimmed(value.toExponential(1));
}

/**
 * As few digits as tell this float32 from all others.
 *
 * @param {number} value
 * @returns {string}
 */
export function exact(value) {
  if (Number.isNaN(value)) return "not captured";
  if (!Number.isFinite(value)) return "not finite (NaN or infinity)";
  const digits = [6, 7, 8, 9].find((count) => Math.fround(Number(value.toPrecision(count))) === Math.fround(value)) ?? 17;
  return String(Number(value.toPrecision(digits)));
}

/**
 * @param {import("./types.js").Reading | undefined} value
 * @returns {number} NaN for what was not captured
 */
export function real(value) {
  if (typeof value === "number") return value;
  if (value === null || value === undefined) return NaN;
  return value === "-inf" ? -Infinity : Infinity;
}

/**
 * @param {number} first
 * @param {number} last
 * @returns {string}
 */
export function span(first, last) {
  return first === last ? `step ${whole(first)}` : `steps ${whole(first)} to ${whole(last)}`;
}

/**
 * @param {number} value
 * @returns {string} with its thousands set apart
 */
export function whole(value) {
  return value.toLocaleString("en");
}

/**
 * @param {number} count
 * @param {string} thing
 * @returns {string}
 */
export function counted(count, thing) {
  return `${whole(count)} ${thing}${count === 1 ? "" : "s"}`;
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/**
 * @param {number} exponent
 * @returns {string} `10⁻³`
 */
export function powerOfTen(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[Number(digit)]);
  return `10${exponent < 0 ? "⁻" : ""}${digits.join("")}`;
}

/**
 * @param {string} digits
 * @returns {string}
 */
function trimmed(digits) {
  return digits.replace(/(\.\d*?)0+(e|$)/, "$1$2").replace(/\.(e|$)/, "$1");
}
