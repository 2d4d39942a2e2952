"""The pulses that are held: every step's cheap scalars, thinned where there is no room for more."""

from __future__ import annotations

from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.memory.thinning import LEFT
from gradscope.memory.thinning import Marks
from gradscope.memory.thinning import highest
from gradscope.memory.thinning import lowest
from gradscope.memory.thinning import outgrowing
from gradscope.memory.thinning import ranked
from gradscope.memory.thinning import thinned
from gradscope.records import PULSE_FIELDS
from gradscope.trends import spans_of

Rows = npt.NDArray[np.float64]  # [steps, PULSE_FIELDS]

_STEP, _FOREIGN = PULSE_FIELDS.index("step"), PULSE_FIELDS.index("foreign")
_NORM = PULSE_FIELDS.index("gradient_norm")
_RISING = [PULSE_FIELDS.index(name) for name in ("loss", "gradient_norm", "learning_rate")]
_AVERAGED = [PULSE_FIELDS.index(name) for name in ("seconds", "own_seconds")]


@final
class Pulses:
    """Pulses in the order in which they came, of one part of the record after the other."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._part = 0  # rows before the present part of the record
        self._lowest = np.inf  # step in this part

    @cached_property
    def _rows(self) -> Rows:
        return np.empty((self._most, len(PULSE_FIELDS)))

    def begin(self) -> None:
        self._part, self._lowest = self._count, np.inf

    @property
    def free(self) -> int:
        return self._most - self._count

    def add(self, rows: Rows) -> None:
        """Take as many rows as are free at most."""
        first = float(rows[:, _STEP].min())
        if first < self._lowest:
            self._lowest = first
            before = np.flatnonzero(self._rows[: self._part, _STEP] < first)
            self._keep(np.concatenate([before, np.arange(self._part, self._count)]), part=len(before))
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def held(self) -> Rows:
        return _in_order(self._rows[: self._count])

    @property
    def alarming(self) -> npt.NDArray[np.int64]:
        """Steps at which the loss, the gradient's norm or the learning rate outgrew all before, by most first."""
        rows = self.held()
        steps: npt.NDArray[np.int64] = rows[:, _STEP].astype(np.int64)
        return steps[ranked(outgrowing(_magnitudes(rows)))]

    def thin(self, sampled: npt.NDArray[np.int64]) -> None:
        """Let go of rows until there is room for more; those of the steps ``sampled`` stay."""
        old = self._rows[: self._part, _STEP].max(initial=-np.inf)
        rows = fewer_pulses(self.held(), int(LEFT * self._most), sampled=sampled)
        self._rows[: len(rows)] = rows
        self._count = len(rows)
        self._part = int(np.searchsorted(rows[:, _STEP], old, side="right"))

    def _keep(self, places: npt.NDArray[np.intp], *, part: int) -> None:
        if len(places) < self._count:
            self._rows[: len(places)] = self._rows[places]
            self._count = len(places)
        self._part = part


def fewer_pulses(rows: Rows, most: int, *, sampled: npt.NDArray[np.int64] | None = None) -> Rows:
    """No more than ``most`` of the rows, which come in order; their seconds are means over the steps that each stands for."""
    steps = rows[:, _STEP].astype(np.int64)
    values = _magnitudes(rows)
    marks = Marks(
        rising=values,
        extremes=np.concatenate([highest(values), lowest(values)]),
        worth=np.isfinite(rows[:, _NORM]),
        wanted=steps[:0],
        fixed=np.flatnonzero(np.isin(steps, steps[:0] if sampled is None else sampled)),
    )
    kept = thinned(steps, marks, places=most)
    if kept.all():
        return rows
    # What comes after the last row that is kept has none to be counted in; the last row is always kept.
    places = np.flatnonzero(kept)
    starts = np.concatenate([[0], places[:-1] + 1])
    spans = spans_of(steps)
    fewer = rows[places]
    with np.errstate(invalid="ignore"):
        fewer[:, _AVERAGED] = (
            np.add.reduceat(rows[:, _AVERAGED] * spans[:, None], starts) / np.add.reduceat(spans, starts)[:, None]
        )
    return fewer


def _magnitudes(rows: Rows) -> Rows:
    """The loss, the gradient's norm and the learning rate; a loss of NaN counts as infinite where there was one."""
    values: Rows = np.abs(rows[:, _RISING])
    broken = np.isnan(values[:, 0]) & (rows[:, PULSE_FIELDS.index("backwards")] > 0)
    values[broken, 0] = np.inf
    return values


def _in_order(rows: Rows) -> Rows:
    """In the order of their steps; the last row of a step and optimizer counts."""
    if (np.diff(rows[:, _STEP]) > 0).all():
        return np.array(rows)
    _, last = np.unique(rows[::-1][:, [_STEP, _FOREIGN]], axis=0, return_index=True)
    latest: Rows = rows[np.sort(len(rows) - 1 - last)]
    order = np.argsort(latest[:, _STEP], kind="stable")
    ordered: Rows = latest[order]
    return ordered
