"""Every run, cheaply: the page asks for this every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.legible import one_line
from gradscope.tensorboard.judging import Judgement
from gradscope.tensorboard.naming import base_of
from gradscope.tensorboard.naming import names_of
from gradscope.tensorboard.source import Listing
from gradscope.tensorboard.source import Tags
from gradscope.tensorboard.source import begun
from gradscope.tensorboard.source import etag_of
from gradscope.tensorboard.source import max_step
from gradscope.tensorboard.source import newer
from gradscope.tensorboard.view import View
from gradscope.version import __version__

MOST_OTHERS = 20

Known = Mapping[str, tuple[View | None, Judgement | None]]


def document(listing: Listing, known: Known) -> dict[str, Any]:
    names = names_of(listing.runs)
    bases = {base_of(run) for run in listing.runs}
    others = [one_line(run) for run in listing.all_runs if run not in bases and base_of(run) == run]
    return {
        "runs": [_run(run, names[run], tags, *known[run]) for run, tags in listing.runs.items()],
        "others": others[:MOST_OTHERS],
        "version": __version__,
    }


def _run(run: str, name: str, tags: Tags, view: View | None, judgement: Judgement | None) -> dict[str, Any]:
    report = judgement.report if judgement is not None else None
    described = view is not None and view.error is None and view.described
    return {
        "run": run,
        "name": one_line(name),
        "etag": etag_of(tags),
        "max_step": max_step(tags),
        "begun": begun(tags),
        "started": view.info.started if view is not None and described else None,
        "model": one_line(view.info.model) if view is not None and described else None,
        "error": newer(tags),
        "complete": view.complete if view is not None and view.error is None else None,
        "verdict": report.verdict_label if report is not None and (report.checked or report.findings) else None,
        "diagnosis": report.diagnosis if report is not None else None,
    }
