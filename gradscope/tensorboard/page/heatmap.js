/** The heat map on the page: modules in execution order against steps in true proportion. */

import { describeCell } from "./cells.js";
import { element, onceAFrame, sized } from "./dom.js";
import { drawLegend } from "./legend.js";
import { counted, span } from "./numbers.js";
import { drawOverlay } from "./overlay.js";
import { paint } from "./paint.js";
import { listen } from "./pointer.js";
import { createRowLabels } from "./rowlabels.js";
import { columnsOf } from "./scene.js";

/** @typedef {import("./scene.js").Scene} Scene */

/**
 * @param {string} id that no other pane has
 * @param {import("./pane.js").Actions} actions
 */
export function createHeatmap(id, actions) {
  /** @type {{scene: Scene | null, hovered: number | null, drag: [number, number] | null, sought: string}} */
  const now = { scene: null, hovered: null, drag: null, sought: "" };
  const choose = (/** @type {import("./tree.js").Row} */ row) => actions.choose({ module: row.path });
  const labels = createRowLabels(id, { choose, fold: (row) => actions.fold(row.path) });
  const parts = makeParts(labels.element);
  const { plot, scroller, tall, cells, over, legend } = parts;

  const repaintCells = createCellPainter();
  const retouch = onceAFrame(() => {
    if (now.scene) touch(over, now.scene, scroller.scrollTop, now.hovered, now.drag);
  });
  const repaint = onceAFrame(() => {
    if (!now.scene) return;
    repaintCells(cells, now.scene, scroller.scrollTop);
    drawLabels(labels, now.scene, scroller.scrollTop);
    touch(over, now.scene, scroller.scrollTop, now.hovered, now.drag);
  });
  scroller.addEventListener("scroll", repaint);
  plot.addEventListener("keydown", (event) => {
    if (now.scene) now.scene = actions.key(event, now.scene);
  });
  const rowAt = (/** @type {number} */ y) => Math.floor((y + scroller.scrollTop) / (now.scene?.rowHeight ?? 1));
  const cellAt = (/** @type {number} */ x, /** @type {number} */ y) => {
    const { scale } = /** @type {Scene} */ (now.scene);
    return describeCell(/** @type {Scene} */ (now.scene), rowAt(y), scale.step(x), scale.step(x + 0.999));
  };
  listen(plot, {
    hover(x, y, event) {
      const cell = now.scene && cellAt(x, y);
      if (now.scene) actions.hover(now.scene.scale.step(x));
      if (cell) actions.tell(event.clientX, event.clientY, cell.name, cell.lines);
    },
    leave: () => actions.hover(null),
    choose(x, y) {
      const cell = now.scene && cellAt(x, y);
      if (cell) actions.choose({ module: cell.path, step: cell.step });
    },
    drag(range) {
      now.drag = range;
      retouch();
    },
    zoom(from, to) {
      if (now.scene) actions.zoom(now.scene.scale.step(from), now.scene.scale.step(to));
    },
    reset: () => actions.zoom(null, null),
  });

  return {
    element: scroller,
    legend,
    /** @param {Scene | null} scene */
    draw(scene) {
      now.scene = scene;
      if (!scene) return;
      scroller.style.height = `${scene.height}px`;
      tall.style.height = `${scene.rows.length * scene.rowHeight}px`;
      plot.setAttribute("aria-label", described(scene));
      drawLegend(legend, scene.matrix, scene.extent);
      now.sought = seek(scroller, scene, now.sought);
      repaint();
    },
    /** @param {number | null} step */
    point(step) {
      now.hovered = step;
      retouch();
    },
    /** Brings what is chosen into sight at the next drawing, also where it was chosen before. */
    seek() {
      now.sought = "";
    },
  };
}

/** @param {HTMLElement} labels */
function makeParts(labels) {
  const cells = element("canvas", { class: "cells", "aria-hidden": "true" });
  const over = element("canvas", { class: "over", "aria-hidden": "true" });
  const attributes = { class: "heat-plot", tabindex: 0, role: "application", "aria-describedby": "keys" };
  const plot = element("div", attributes, cells, over);
  const tall = element("div", { class: "heat-tall" }, element("div", { class: "heat-window" }, labels, plot));
  const scroller = element("div", { class: "heat-scroll" }, tall);
  return { cells, over, plot, tall, scroller, legend: element("div", { class: "legend" }) };
}

/**
 * @returns {(canvas: HTMLCanvasElement, scene: Scene, scrolled: number) => void} which paints only where anything changed
 */
function createCellPainter() {
  let painted = "";
  /** @type {Scene["lines"] | null} */
  let lines = null;
  return (canvas, scene, scrolled) => {
    const { first, last, width } = scene.scale;
    const { theme } = document.documentElement.dataset;
    const key = [first, last, width, scene.height, scene.rowHeight, scrolled, theme, window.devicePixelRatio].join();
    if (key === painted && lines === scene.lines) return;
    [painted, lines] = [key, scene.lines];
    paintCells(canvas, scene, scrolled);
  };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Scene} scene
 * @param {number} scrolled
 */
function paintCells(canvas, scene, scrolled) {
  const context = sized(canvas, scene.scale.width, scene.height);
  const ratio = canvas.height / scene.height;
  const place = { top: -scrolled * ratio, height: scene.rowHeight * ratio, gap: Math.round(ratio) };
  paint(context, scene.matrix.scale, columnsOf(scene, canvas.width), scene.lines, place);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Scene} scene
 * @param {number} scrolled
 * @param {number | null} hovered
 * @param {[number, number] | null} drag
 */
function touch(canvas, scene, scrolled, hovered, drag) {
  const { scale, height, rowHeight, marks, chosenRow, chosenStep } = scene;
  drawOverlay(canvas, { scale, height, rowHeight, marks, chosenRow, chosenStep, hovered, drag, offset: -scrolled });
}

/**
 * @param {import("./rowlabels.js").RowLabels} labels
 * @param {Scene} scene
 * @param {number} scrolled
 */
function drawLabels(labels, scene, scrolled) {
  const types = new Map(scene.schema.modules.map((module) => [module.path, module.type]));
  labels.draw({
    rows: scene.rows,
    from: Math.floor(scrolled / scene.rowHeight),
    to: Math.ceil((scrolled + scene.height) / scene.rowHeight),
    height: scene.rowHeight,
    offset: -scrolled,
    chosen: scene.chosenRow,
    marks: scene.severities,
    type: (row) => types.get(row.path) ?? "",
  });
}

/**
 * Scrolls to what was chosen, once for each choice.
 *
 * @param {HTMLElement} scroller
 * @param {Scene} scene
 * @param {string} sought
 * @returns {string} what is in sight now
 */
function seek(scroller, scene, sought) {
  const key = `${scene.rows[scene.chosenRow]?.path}/${scene.rows.length}`;
  if (key === sought || scene.chosenRow < 0) return sought;
  const top = scene.chosenRow * scene.rowHeight;
  const hidden = top < scroller.scrollTop || top + scene.rowHeight > scroller.scrollTop + scene.height;
  if (hidden) scroller.scrollTop = top - scene.height / 2;
  return key;
}

/**
 * The map in a sentence, for who does not see it.
 *
 * @param {Scene} scene
 * @returns {string}
 */
function described(scene) {
  const { statistic, rows, scale, matrix } = scene;
  const cells = matrix.nonfinite ? `; ${counted(matrix.nonfinite, "cell")} of the run not finite` : "";
  const size = `${counted(rows.length, "row")}, ${span(scale.first, scale.last)}`;
  return `Heat map of ${statistic.title.toLowerCase()}: ${size}${cells}`;
}
