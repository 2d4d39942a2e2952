"""The plugin as TensorBoard sees it: its routes. What answers them is imported with the first request."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING
from typing import Any
from typing import final

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from gradscope.tensorboard.apology import INCOMPLETE
from gradscope.tensorboard.apology import apologetic_module
from gradscope.tensorboard.loader import NAME
from gradscope.tensorboard.loader import SAMPLES
from gradscope.tensorboard.pagefiles import PageFiles
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply

if TYPE_CHECKING:
    from gradscope.tensorboard.server import Server

ROUTES = ("runs", "report", "schema", "matrix", "profile", "histogram", "scalars", "text")
INDEX = "index.js"

_LEAST_GZIPPED = 1024  # bytes
_log = logging.getLogger("gradscope.tensorboard")


@final
class Plugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the tab's page, and the data that docs/http_api.md describes."""

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._samples = _samples(context)
        self._files = PageFiles()
        self._lock = Lock()
        self._made: Server | None = None

    def get_plugin_apps(self) -> Mapping[str, Callable[..., Any]]:
        routes = {f"/{name}": _application(partial(self._answer, name)) for name in ROUTES}
        return {**routes, "/static/*": _application(self._file)}

    def is_active(self) -> bool:
        """TensorBoard finds out by itself whether any run has data of ours."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        return base_plugin.FrontendMetadata(es_module_path=f"/static/{INDEX}", tab_name="GradScope")

    def _answer(self, name: str, request: wrappers.Request) -> Reply:
        asker = (plugin_util.context(request.environ), plugin_util.experiment_id(request.environ))
        return self._server().answer(name, asker, request.args)

    def _server(self) -> Server:
        with self._lock:
            if self._made is None:
                # Rules and reports take a tenth of a second to import, which TensorBoard's start is not to wait for.
                from gradscope.tensorboard.server import Server

                self._made = Server(self._provider, samples=self._samples)
            return self._made

    def _file(self, request: wrappers.Request) -> Reply:
        name = request.path.rpartition("/static/")[2]
        found = self._files.find(name)
        if found is not None:
            return found
        if name == INDEX:
            return Reply(apologetic_module(INCOMPLETE).encode(), "text/javascript")
        raise Failure(404, f"The page has no file {name!r}.")


def _samples(context: base_plugin.TBContext) -> int:
    """How many records of a tag TensorBoard holds; 0 for all."""
    flags = vars(context.flags) if context.flags is not None else {}
    return int((flags.get("samples_per_plugin") or {}).get(NAME, SAMPLES))


def _application(answer: Callable[[wrappers.Request], Reply]) -> Callable[..., Any]:
    """``answer`` for a web server: whatever goes wrong becomes a sentence, and TensorBoard goes on."""

    def application(request: wrappers.Request) -> wrappers.Response:
        try:
            if request.method not in ("GET", "HEAD"):
                raise Failure(405, f"Expected GET, found {request.method}.")
            reply = answer(request)
        except Failure as failure:
            reply = failure.reply
        except Exception as error:
            _log.exception("The GradScope tab could not answer %s", request.path)
            reply = Failure(500, _sentence(error)).reply
        return _respond(request, reply)

    return wrappers.Request.application(application)


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{INCOMPLETE} ({error})"
    return f"gradscope failed with {type(error).__name__}: {error}. This is a mistake in gradscope."


def _respond(request: wrappers.Request, reply: Reply) -> wrappers.Response:
    packed = reply.media_type == "application/octet-stream" and len(reply.content) >= _LEAST_GZIPPED
    content = gzip.compress(reply.content, compresslevel=1, mtime=0) if packed else reply.content
    encoding = "gzip" if packed else None
    response: wrappers.Response = http_util.Respond(
        request, content, reply.media_type, code=reply.status, content_encoding=encoding
    )
    return response
