"""The magnitudes at one site over time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradscope.records import HISTOGRAM_LOWEST
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import packed
from gradscope.tensorboard.routes.arguments import needed
from gradscope.tensorboard.routes.arguments import span
from gradscope.tensorboard.routes.arguments import whole_number
from gradscope.tensorboard.routes.arguments import window
from gradscope.tensorboard.routes.shown import shown_name
from gradscope.tensorboard.view import View


def answer(view: View, arguments: Mapping[str, str]) -> Reply:
    kind = needed(arguments, "kind")
    if not any(kind in part.histograms for part in view.parts):
        raise Failure(404, f"The run has no histograms of {kind[:80]!r}.")
    sites = view.schema.sites(kind)
    needed(arguments, "site")
    site = whole_number(arguments, "site", least=0, most=max(len(sites) - 1, 0), default=0)
    if not sites:
        raise Failure(404, f"The run has no sites of {kind[:80]!r}.")
    table = view.histograms(kind, site)
    rows, columns = window(arguments, table.steps)
    header = {
        "etag": view.etag,
        "kind": kind,
        "site": site,
        "name": shown_name(sites[site]),
        **columns.facts,
        "lowest": HISTOGRAM_LOWEST,
        "range": span(table.steps),
    }
    return packed(header, np.ascontiguousarray(table.values[rows][columns.starts].T))
