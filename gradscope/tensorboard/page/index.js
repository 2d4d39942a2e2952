/** What TensorBoard calls once the tab is opened. Imports nothing, so that it can tell where a part of the page is missing. */

const STYLES = ["theme", "controls", "layout", "story", "timeline", "heatmap", "moment"];
const REMEDY =
  "Install gradscope again in the environment that TensorBoard runs in, restart TensorBoard and reload this page. " +
  "The report is still to be had from `gradscope report LOGDIR`.";

export async function render() {
  document.title = "GradScope";
  document.documentElement.lang = "en";
  const root = document.createElement("div");
  root.className = "page";
  document.body.append(root);
  const failed = (/** @type {string} */ what) => say(`The GradScope tab cannot be shown in full: ${what}. ${REMEDY}`);
  window.addEventListener("error", ({ error, message }) => error && failed(message));
  const styled = Promise.all(STYLES.map((name) => style(`./${name}.css`))).catch(({ message }) => failed(message));
  try {
    const [{ start }] = await Promise.all([import("./app.js"), styled]);
    start(root);
  } catch (error) {
    failed(/** @type {Error} */ (error).message);
  }
}

/**
 * @param {string} path
 * @returns {Promise<void>} once the page looks like it
 */
function style(path) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL(path, import.meta.url).href;
  const loaded = new Promise((done, fail) => {
    link.addEventListener("load", () => done(undefined));
    link.addEventListener("error", () => fail(new Error(`${path} is missing`)));
  });
  document.head.append(link);
  return /** @type {Promise<void>} */ (loaded);
}

/** @param {string} sentence */
function say(sentence) {
  if (document.querySelector("[data-broken]")) return; // the first that went wrong tells most
  const note = document.createElement("p");
  note.setAttribute("role", "alert");
  note.setAttribute("data-broken", "");
  note.style.cssText = "font: 15px/1.5 sans-serif; max-width: 60ch; margin: 3em auto; padding: 0 1em; color: #777";
  note.textContent = sentence;
  document.body.prepend(note);
}
