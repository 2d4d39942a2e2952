"""One statistic over sites and steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradscope.records import Array
from gradscope.tensorboard.menu import find_statistic
from gradscope.tensorboard.menu import table_of
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import packed
from gradscope.tensorboard.routes.arguments import needed
from gradscope.tensorboard.routes.arguments import span
from gradscope.tensorboard.routes.arguments import window
from gradscope.tensorboard.thinning import most_telling
from gradscope.tensorboard.thinning import usual_of
from gradscope.tensorboard.view import View


def answer(view: View, arguments: Mapping[str, str]) -> Reply:
    name = needed(arguments, "stat")
    statistic = find_statistic(view, name)
    if statistic is None:
        raise Failure(404, f"The run has no statistic {name[:80]!r}.")
    table = table_of(view, statistic)
    rows, columns = window(arguments, table.steps, sites=table.values.shape[1])
    usual = usual_of(table.values) if columns.thinned else table.values[:0]
    shown = most_telling(table.values[rows], columns, scale=statistic.scale, usual=usual)
    low, high = _limits(table.values, positive=statistic.scale == "log")
    header = {
        "etag": view.etag,
        "stat": name,
        "kind": statistic.kind,
        "scale": statistic.scale,
        **columns.facts,
        "low": low,
        "high": high,
        "nonfinite": int(np.isinf(table.values).sum()),
        "range": span(table.steps),
    }
    return packed(header, np.ascontiguousarray(shown.T))


def _limits(values: Array, *, positive: bool) -> tuple[float | None, float | None]:
    counted = values[np.isfinite(values) & ((values > 0) | (not positive))]
    return (float(counted.min()), float(counted.max())) if counted.size else (None, None)
