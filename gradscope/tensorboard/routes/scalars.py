"""Loss, gradient norm and learning rate of every step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.tensorboard.pulses import own_rows
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import packed
from gradscope.tensorboard.routes.arguments import span
from gradscope.tensorboard.routes.arguments import window
from gradscope.tensorboard.thinning import extremes
from gradscope.tensorboard.view import View

SERIES = ("loss", "gradient_norm", "learning_rate")


def answer(view: View, arguments: Mapping[str, str]) -> Reply:
    pulses = own_rows(view.pulses)
    steps = pulses[:, PULSE_FIELDS.index("step")].astype(np.int64)
    rows, columns = window(arguments, steps)
    shown = [extreme for name in SERIES for extreme in extremes(_series(pulses[rows], name), columns)]
    header = {
        "etag": view.etag,
        "rows": [f"{name}.{end}" for name in SERIES for end in ("low", "high")],
        **columns.facts,
        "range": span(steps),
    }
    return packed(header, np.stack(shown))


def _series(pulses: npt.NDArray[np.float64], name: str) -> Array:
    """One field, with what is not finite as infinity: a loss of NaN is no gap where there was a backward pass."""
    values = pulses[:, PULSE_FIELDS.index(name)]
    if name == "loss":
        values = np.where(np.isnan(values) & (pulses[:, PULSE_FIELDS.index("backwards")] > 0), np.inf, values)
    with np.errstate(over="ignore"):
        return np.where(np.isinf(values), np.inf, values).astype(np.float32)
