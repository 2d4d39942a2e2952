"""What the tab shows where gradscope's files are incomplete: one sentence, from a page that needs none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import final

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

INCOMPLETE = (
    "The GradScope tab cannot be shown: expected all files of the gradscope package, found that some are missing or cannot be "
    "imported. Install gradscope again in the environment that TensorBoard runs in, and restart TensorBoard. The report is "
    "still to be had from `gradscope report LOGDIR`."
)

_MODULE = """export function render() {{
  const note = document.createElement("p");
  note.setAttribute("role", "alert");
  note.style.cssText = "font: 15px/1.5 sans-serif; max-width: 60ch; margin: 3em auto; color: #777";
  note.textContent = {sentence};
  document.body.append(note);
}}
"""


def apologetic_module(sentence: str) -> str:
    """A module in place of the page's ``index.js`` that says ``sentence``."""
    return _MODULE.format(sentence=json.dumps(sentence))


@final
class Apology(base_plugin.TBPlugin):  # type: ignore[misc]
    """Stands in for the plugin where that cannot be imported."""

    plugin_name = "gradscope"

    def __init__(self, context: base_plugin.TBContext) -> None:
        """Nothing of the context is needed."""

    def get_plugin_apps(self) -> Mapping[str, Callable[..., Any]]:
        return {"/static/index.js": wrappers.Request.application(_index)}

    def is_active(self) -> bool:
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="GradScope")


def _index(request: wrappers.Request) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, apologetic_module(INCOMPLETE), "text/javascript")
    return response
