"""Which steps of a long run are held on to: the first, the last, those that stand out, and evenly ever fewer of the others.

Pure functions of what a run has shown, so that a live run and a replay of its record hold on to the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradscope.trends import Mask

RISE = 2.0  # times the largest of late that makes a value stand out
LATELY = 16  # rows looked back on for it
APPEARED = 1000.0  # e-folds that count where there was nothing before
BEFORE, AFTER = 2, 1  # neighbours that stay with what stands out, to see it come and go

# Shares of the places. What is left, an eighth at least, goes to steps that are spread evenly over the run.
FIRST = 1 / 8
LAST = 1 / 4
OUTSTANDING = 1 / 8
EXTREME = 1 / 16
WANTED = 1 / 8
FIXED = 3 / 16
FEWEST_PLACES = 32

LEFT = 0.75  # of the most that may be held, after some were let go

Steps = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]
Table = npt.NDArray[Any]


@dataclass(frozen=True)
class Marks:
    """What makes some of a run's steps worth more than others; of all that come in ranks, the most important come first."""

    rising: Table  # [steps, series]: what outgrows those before it stands out
    extremes: Rows  # rows that hold the largest or smallest of something
    worth: Table  # how much was captured at each step
    wanted: Steps  # steps that stay with their neighbours
    fixed: Rows  # rows that stay


def thinned(steps: Steps, marks: Marks, *, places: int) -> Mask:
    """Which of ``steps``, which come in order, stay where there is room for ``places``; 32 at least."""
    places = max(places, FEWEST_PLACES)
    if len(steps) <= places:
        return np.ones(len(steps), dtype=bool)
    kept = np.zeros(len(steps), dtype=bool)
    kept[: int(FIRST * places)] = True
    kept[len(steps) - int(LAST * places) :] = True
    around = BEFORE + 1 + AFTER
    risen = ranked(outgrowing(marks.rising))[: int(OUTSTANDING * places) // around]
    kept[_neighbours(risen, len(steps))] = True
    kept[_distinct(marks.extremes, int(EXTREME * places))] = True
    kept[marks.fixed[: int(FIXED * places)]] = True
    wanted = np.searchsorted(steps, marks.wanted[: int(WANTED * places) // around])
    kept[_neighbours(wanted, len(steps))] = True
    return kept | _evenly(steps, marks.worth, kept, places)


def outgrowing(table: Table) -> npt.NDArray[np.float64]:
    """By how many e-folds each number outgrows those before it in its column, of late and ever; 0 where by less than RISE.

    What rises again after a higher start counts by what it outgrows of late; what was never there before counts most.
    """
    scores = np.zeros(table.shape)
    if len(table) < 2:
        return scores
    missing = np.isnan(table)
    values = np.where(missing | (table < 0), 0, table)
    seen = np.logical_or.accumulate(~missing, axis=0)[:-1]
    recent, ever = _peak_of_late(values)[:-1], np.maximum.accumulate(values, axis=0)[:-1]
    risen = seen & (values[1:] >= RISE * recent) & (values[1:] > recent)
    now = values[1:][risen]
    scores[1:][risen] = _growth(now, recent[risen]) + _growth(now, ever[risen])
    return scores


def _peak_of_late(values: Table) -> Table:
    """The largest of each value and the LATELY - 1 before it; LATELY is a power of two."""
    peaks: Table = values.copy()
    reach = 1
    while reach < LATELY:
        peaks[reach:] = np.maximum(peaks[reach:], peaks[:-reach])
        reach *= 2
    return peaks


def _growth(values: Table, peaks: Table) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        growth: npt.NDArray[np.float64] = np.where(values > peaks, np.log(values) - np.log(peaks), 0.0)
    return np.minimum(growth, APPEARED)


def ranked(scores: npt.NDArray[np.float64]) -> Rows:
    """Rows with a score, each once: those with the highest of a column in turn, then with the second highest, and so on."""
    if not len(scores):
        return np.zeros(0, dtype=np.intp)
    order = np.argsort(-scores, axis=0, kind="stable")  # of equal scores the earliest comes first
    found: Rows = order[np.take_along_axis(scores, order, axis=0) > 0]
    return _distinct(found, len(scores))


def highest(table: Table) -> Rows:
    """For each column in turn, the first row that holds its largest value; columns that hold none are left out."""
    rows = np.argmax(np.where(np.isnan(table), -np.inf, table), axis=0) if len(table) else np.zeros(0, dtype=np.intp)
    return rows[~np.isnan(table[rows, np.arange(table.shape[1])])] if len(table) else rows


def lowest(table: Table) -> Rows:
    """For each column in turn, the first row that holds its smallest value."""
    return highest(-table)


def _distinct(rows: Rows, most: int) -> Rows:
    return np.array(list(dict.fromkeys(rows.tolist()))[:most], dtype=np.intp)


def _neighbours(rows: Rows, count: int) -> Rows:
    beside = rows[:, None] + np.arange(-BEFORE, AFTER + 1)
    clipped: Rows = np.clip(beside, 0, count - 1)
    return clipped.reshape(-1)


def _evenly(steps: Steps, worth: Table, kept: Mask, places: int) -> Mask:
    """One step by chance, and the one of most worth, of every stretch of a length that leaves no more than ``places``.

    Lengths are powers of two and stretches begin at their multiples: what stays of a long stretch stayed of each shorter one.
    """
    width = 1
    while True:
        chosen = _of_each_stretch(steps, worth, width)
        if np.count_nonzero(chosen | kept) <= places:
            return chosen
        width *= 2


def _of_each_stretch(steps: Steps, worth: Table, width: int) -> Mask:
    chosen = np.zeros(len(steps), dtype=bool)
    stretch, chance = steps // width, _scattered(steps)
    ends = np.append(stretch[1:] != stretch[:-1], True)
    chosen[np.lexsort((chance, stretch))[ends]] = True
    chosen[np.lexsort((chance, worth, stretch))[ends]] = True
    return chosen


def _scattered(steps: Steps) -> npt.NDArray[np.uint64]:
    """A number for each step as if by chance, that no loop's period falls in with: the last rounds of SplitMix64.

    Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
    """
    mixed: npt.NDArray[np.uint64] = steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
