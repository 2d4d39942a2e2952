"""One sampled step over the depth of the net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope import middles
from gradscope.depth import decades
from gradscope.depth import slopes
from gradscope.legible import one_line
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.tensorboard.blocks import MOST_STEPS
from gradscope.tensorboard.judging import Judgement
from gradscope.tensorboard.menu import table_named
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import as_json
from gradscope.tensorboard.routes.arguments import whole_number
from gradscope.tensorboard.routes.shown import shown_path
from gradscope.tensorboard.view import View
from gradscope.timeline import Timeline
from gradscope.trends import theil_sen

COLUMNS = {
    "activation": "activation.rms",
    "signal": "activation.signal",
    "gradient": "activation_gradient.rms",
    "update": "update.ratio",
}
FITTED = ("activation", "signal", "gradient")
LEAST_FITTED = 3
MOST_PAIRED = 512  # rows of which every pair's slope is looked at


def answer(view: View, arguments: Mapping[str, str], judgement: Judgement | None) -> Reply:
    if not len(view.steps):
        raise Failure(404, "No step of this run was sampled so far.")
    usual = judgement.report.profile_step if judgement is not None else None
    default = int(view.steps[-1]) if usual is None else usual
    asked = whole_number(arguments, "step", least=-MOST_STEPS, most=MOST_STEPS, default=default)
    return Reply(as_json(document(view, max(int(np.searchsorted(view.steps, asked, side="right")) - 1, 0))), "application/json")


def document(view: View, row: int) -> dict[str, Any]:
    """The profile at the sampled step ``row``."""
    steps = view.steps
    numbers = {name: table_named(view, statistic).at(steps[row : row + 1])[0] for name, statistic in COLUMNS.items()}
    types = {module.path: module.type for module in view.info.modules}
    rows = [_row(view, types, numbers, site, parameter) for site, parameter in _layers(view)]
    return {
        "etag": view.etag,
        "step": int(steps[row]),
        "previous": int(steps[row - 1]) if row > 0 else None,
        "next": int(steps[row + 1]) if row + 1 < len(steps) else None,
        "rows": rows,
        "fits": {name: _fit(np.array([found[name] for found in rows], dtype=np.float64)) for name in FITTED},
    }


def _layers(view: View) -> list[tuple[int, int | None]]:
    """Module site and parameter site of each row: the matrix layers, else the leaf modules that ran."""
    timeline = Timeline(view.info, [Frame(0, view.schema, {})])
    if timeline.layers:
        return [(layer.site, layer.parameter) for layer in timeline.layers]
    parents = {site.path.rpartition(".")[0] for site in view.schema.modules if site.path}
    return [(i, None) for i, site in enumerate(view.schema.modules) if site.call == 0 and site.path not in parents]


def _row(
    view: View, types: Mapping[str, str], numbers: Mapping[str, Array], site: int, parameter: int | None
) -> dict[str, Any]:
    path = view.schema.modules[site].path
    return {
        "module": path,
        "name": shown_path(path),
        "type": one_line(types.get(path, "")),
        "site": site,
        **{name: float(numbers[name][site]) for name in FITTED},
        "update": float(numbers["update"][parameter]) if parameter is not None else float("nan"),
    }


def _fit(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any] | None:
    """A robust line through the logarithms."""
    logs = decades(values)
    known = np.isfinite(logs)
    if known.sum() < LEAST_FITTED:
        return None
    slope = theil_sen(logs) if len(logs) <= MOST_PAIRED else float(slopes(logs[None])[0])
    intercept = middles.median((logs - slope * np.arange(len(logs)))[known])
    return {"slope": slope, "intercept": intercept, "count": int(known.sum())}
