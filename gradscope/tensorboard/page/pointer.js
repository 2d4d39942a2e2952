/** Mouse, pen and touch over a plot of steps: hover, choose by a click, zoom by dragging, the whole run by a double click. */

const LEAST_DRAG = 5; // pixels; what is less is a click with an unsteady hand

/**
 * @typedef {object} Heard
 * @property {(x: number, y: number, event: PointerEvent) => void} hover
 * @property {() => void} leave
 * @property {(x: number, y: number) => void} choose
 * @property {(range: [number, number] | null) => void} drag while it goes on; null once it is over
 * @property {(from: number, to: number) => void} zoom once it is done
 * @property {() => void} reset
 */

/**
 * @param {HTMLElement} target
 * @param {Heard} heard
 */
export function listen(target, heard) {
  /** @type {number | null} */
  let start = null;
  const at = (/** @type {PointerEvent} */ event) => {
    const box = target.getBoundingClientRect();
    return [Math.min(box.width, Math.max(0, event.clientX - box.left)), event.clientY - box.top];
  };
  const dragged = (/** @type {number} */ x) => start !== null && Math.abs(x - start) >= LEAST_DRAG;
  target.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    [start] = at(event);
    target.setPointerCapture(event.pointerId);
  });
  target.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (start !== null && dragged(x)) heard.drag([Math.min(start, x), Math.max(start, x)]);
    heard.hover(x, y, event);
  });
  const end = () => {
    start = null;
    heard.drag(null);
  };
  target.addEventListener("pointerup", (event) => {
    const [from, [x, y]] = [start, at(event)];
    const far = dragged(x);
    end();
    if (from !== null && far) heard.zoom(Math.min(from, x), Math.max(from, x));
    else if (from !== null) heard.choose(x, y);
  });
  target.addEventListener("pointercancel", end);
  target.addEventListener("pointerleave", () => heard.leave());
  target.addEventListener("dblclick", () => heard.reset());
}
