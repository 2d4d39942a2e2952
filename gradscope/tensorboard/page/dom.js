/** Elements, made from data that is never read as markup. */

/**
 * An element with attributes and children. Strings become text nodes; a key that begins with `on` is a listener; an attribute
 * that is null, undefined or false is left out.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      made.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(.../** @type {(Node | string)[]} */ (children.filter((child) => child)));
  return made;
}

/**
 * Puts `children` in place of what `parent` holds.
 *
 * @param {Element} parent
 * @param {...(Node | string | null | undefined | false)} children
 */
export function fill(parent, ...children) {
  parent.replaceChildren(.../** @type {(Node | string)[]} */ (children.filter((child) => child)));
}

/** @type {WeakMap<Element, string>} */
const madeFrom = new WeakMap();

/**
 * Puts what is made from `facts` into `parent`, but only where they are others than last time: of a run that grows, what is
 * being read or copied stays where it is. The focus stays on the button of the same `data-name`.
 *
 * @param {Element} parent
 * @param {unknown} facts
 * @param {() => (Node | string | null | undefined | false)[]} make
 */
export function refill(parent, facts, make) {
  const key = JSON.stringify(facts);
  if (madeFrom.get(parent) === key) return;
  madeFrom.set(parent, key);
  const focused = document.activeElement;
  const name = focused && parent.contains(focused) ? focused.getAttribute("data-name") : null;
  fill(parent, ...make());
  const same = [...parent.querySelectorAll("[data-name]")].find((other) => other.getAttribute("data-name") === name);
  if (name !== null && same instanceof HTMLElement) same.focus({ preventScroll: true });
}

/**
 * Calls `draw` once before the next frame is painted, however often it was asked to.
 *
 * @param {() => void} draw
 * @returns {() => void}
 */
export function onceAFrame(draw) {
  let asked = false;
  return () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        draw();
      });
    }
  };
}

/**
 * Gives the canvas this size in CSS pixels at the screen's resolution, and a context that draws in CSS pixels.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 * @returns {CanvasRenderingContext2D}
 */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
