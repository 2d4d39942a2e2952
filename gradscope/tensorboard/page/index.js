/** What TensorBoard calls once the tab is opened. */

import { start } from "./app.js";
import { element } from "./dom.js";

export function render() {
  const styles = new URL("./style.css", import.meta.url).href;
  document.head.append(element("link", { rel: "stylesheet", href: styles }));
  document.title = "GradScope";
  document.documentElement.lang = "en";
  const root = element("div", { class: "page" });
  document.body.append(root);
  start(root);
}
