"""The whole report, to read or to copy."""

from __future__ import annotations

from collections.abc import Mapping

from gradscope.legible import several_lines
from gradscope.report import markdown
from gradscope.report import text
from gradscope.tensorboard.judging import Judgement
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.view import View

FORMATS = {"markdown": markdown.render, "text": text.render}


def answer(view: View, arguments: Mapping[str, str], judgement: Judgement | None) -> Reply:
    form = arguments.get("format") or "markdown"
    if form not in FORMATS:
        raise Failure(400, f"Expected format to be markdown or text, found {form[:40]!r}.")
    written = several_lines(view.written_report or "") if judgement is None else FORMATS[form]([judgement.report])
    return Reply(written.encode("utf-8", "replace"), "text/plain")
