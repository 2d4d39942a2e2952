"""Fewer columns than sampled steps: each stands for a stretch of steps and shows what stands out most in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import decades
from gradscope.records import Array
from gradscope.tensorboard.blocks import Steps

_FARTHEST, _BROKEN = 1e300, np.inf  # scores of a zero on a logarithmic scale, and of what is not finite


@final
@dataclass(frozen=True)
class Columns:
    """Which rows of a table, rising in their steps, each column stands for: from ``starts`` up to the next one's."""

    steps: Steps  # of the rows
    starts: npt.NDArray[np.intp]

    @property
    def ends(self) -> npt.NDArray[np.intp]:
        return np.append(self.starts, len(self.steps))[1:].astype(np.intp)

    @property
    def thinned(self) -> bool:
        return len(self.starts) < len(self.steps)

    @property
    def facts(self) -> dict[str, Any]:
        """What a header says of the columns."""
        return {
            "first": self.steps[self.starts].tolist(),
            "last": self.steps[self.ends - 1].tolist(),
            "count": (self.ends - self.starts).tolist(),
            "thinned": self.thinned,
        }


def columns_of(steps: Steps, most: int, first: int, last: int) -> Columns:
    """One column for each of the steps, which rise from ``first`` to ``last``; where that is too many, for stretches alike."""
    if len(steps) <= most:
        return Columns(steps, np.arange(len(steps)))
    stretch = (steps - first) // -(-(last - first + 1) // most)  # in whole numbers, the same on every machine
    return Columns(steps, np.flatnonzero(np.diff(stretch, prepend=-1)))


def most_telling(values: Array, columns: Columns, *, scale: str, usual: Array) -> Array:
    """The number of each stretch that stands out most from the site's ``usual`` one; [columns, sites]."""
    if not columns.thinned:
        return values
    scores = _scores(values, scale, usual)
    chosen = np.empty((len(columns.starts), values.shape[1]), dtype=np.float32)
    for i, (start, end) in enumerate(zip(columns.starts.tolist(), columns.ends.tolist(), strict=True)):
        if end - start == 1:
            chosen[i] = values[start]
        else:
            rows = scores[start:end].argmax(axis=0)
            chosen[i] = values[start:end][rows, np.arange(values.shape[1])]
    return chosen


def usual_of(values: Array) -> Array:
    """The median of the finite numbers of each site; [sites], NaN where there is none."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # NaN comes last
    counts = np.isfinite(values).sum(axis=0)
    if not len(values):
        return np.full(values.shape[1], np.nan, dtype=np.float32)
    middle: Array = ordered[np.maximum(counts - 1, 0) // 2, np.arange(values.shape[1])]
    return middle


def extremes(values: Array, columns: Columns) -> tuple[Array, Array]:
    """Least and largest finite number of each stretch of a series; infinity where anything in it is not finite."""
    finite = np.isfinite(values)
    if not len(columns.starts):
        return values[:0], values[:0]
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduceat(np.where(finite, values, np.nan), columns.starts)
        high = np.fmax.reduceat(np.where(finite, values, np.nan), columns.starts)
        broken = np.logical_or.reduceat(np.isinf(values), columns.starts)
    return np.where(broken & np.isnan(low), np.inf, low), np.where(broken, np.inf, high)


def _scores(values: Array, scale: str, usual: Array) -> npt.NDArray[np.float64]:
    if scale == "log":
        scores = np.abs(decades(np.abs(values)) - np.nan_to_num(decades(np.abs(usual))))
        scores[values == 0] = _FARTHEST
    else:
        scores = values.astype(np.float64) if scale == "share" else np.abs(values.astype(np.float64) - np.nan_to_num(usual))
    scores[np.isnan(scores)] = -_BROKEN
    scores[np.isinf(values)] = _BROKEN
    return scores
