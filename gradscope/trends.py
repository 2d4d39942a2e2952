"""Small robust statistics over series: slopes, trends, spikes, and how long something has lasted."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gradscope import middles

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Table = npt.NDArray[np.float32]

SPIKE_WINDOW = 30  # values looked back on
SPIKE_LEAST = 10  # of them, that say what is usual
SPIKE_FLOOR = 0.1  # smallest spread of the logarithm that counts, so that flat series raise nothing
START = 21  # values that the noise is estimated from with which a series starts
LEAST_START = 8  # of them, that it can be estimated from
AS_HIGH = 3.0  # times the highest before, up to which values of a series that leaps pass for one more excursion
FOR_GOOD = 10  # values that a series has to stay as high as it was before, to be told from one more excursion
MOST_LEVEL = 10  # values at most that say where it started
NORMAL_SPREAD = 1.4826  # standard deviation over median absolute deviation of normal numbers
NOISE = 2.5  # standard deviations of a difference of two values that noise explains


def theil_sen(values: Floats) -> float:
    """Median of the slopes between all pairs, NaN-safe: the slope of a line through ``values`` against 0, 1, 2, …

    Source: P. K. Sen, 1968. NaN where fewer than two values are finite.
    """
    index = np.flatnonzero(np.isfinite(values))
    if len(index) < 2:
        return float("nan")
    y = np.asarray(values, dtype=np.float64)[index]
    i, j = np.triu_indices(len(index), k=1)
    return middles.median((y[j] - y[i]) / (index[j] - index[i]))


def geometric(values: Floats) -> tuple[float, float]:
    """Growth a step of a positive series' logarithm, and the standard deviation from the line that has it (least squares)."""
    logs, places = np.log(values), np.arange(len(values))
    slope, offset = np.polyfit(places, logs, 1)
    return float(slope), float(np.std(logs - slope * places - offset))


def falls(values: Floats, *, z: float = 1.645) -> bool:
    """Whether the series goes down, by the one-sided Mann-Kendall test (p < 0.05 at the default ``z``)."""
    y = np.asarray(values, dtype=np.float64)
    y = y[np.isfinite(y)]
    n = len(y)
    if n < 8:
        return False
    i, j = np.triu_indices(n, k=1)
    s = float(np.sign(y[j] - y[i]).sum())
    deviation = np.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # of S under no trend
    return bool(s / deviation < -z)


def spike_scores(series: Floats) -> npt.NDArray[np.float64]:
    """Robust z of each value against the 30 before it, on a logarithmic scale; 0 for the first ten.

    z = (ln s_t - median) / max(1.4826 MAD, 0.1) over the window. Values that are not positive are left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(series, dtype=np.float64))
    logs[~np.isfinite(logs)] = np.nan
    scores = np.zeros(len(logs))
    if len(logs) < 11:
        return scores
    padded = np.concatenate([np.full(SPIKE_WINDOW, np.nan), logs[:-1]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW)
    enough = np.isfinite(windows).sum(axis=1) >= 10
    seen = windows[enough]
    middle = row_medians(seen)
    spread = NORMAL_SPREAD * row_medians(np.abs(seen - middle[:, None]))
    scores[enough] = (logs[enough] - middle) / np.maximum(spread, SPIKE_FLOOR)
    return np.nan_to_num(scores, nan=0.0)


def largest_before(series: Floats) -> npt.NDArray[np.float64]:
    """The largest of the 30 values before each; infinity for the first ten, and where all before are zero."""
    if not len(series):
        return np.zeros(0)
    padded = np.concatenate([np.zeros(SPIKE_WINDOW), np.asarray(series, dtype=np.float64)[:-1]])
    largest = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW).max(axis=1)
    return np.where((np.arange(len(series)) < SPIKE_LEAST) | (largest == 0), np.inf, largest)


def row_medians(table: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Median of the entries of each row that are not NaN; NaN where there is none. Infinity counts."""
    if not table.size:
        return np.full(len(table), np.nan)
    ordered = np.sort(np.asarray(table, dtype=np.float64), axis=1)  # NaN goes last
    count = np.count_nonzero(~np.isnan(ordered), axis=1)
    rows = np.arange(len(ordered))
    low = ordered[rows, np.maximum(count - 1, 0) // 2]
    high = ordered[rows, np.minimum(count // 2, ordered.shape[1] - 1)]
    middle = np.add(low, high, out=2 * low, where=np.isfinite(low) & np.isfinite(high)) / 2  # an infinite half stands alone
    return np.where(count > 0, middle, np.nan)


def lasting(held: Mask, *, least: int, window: int) -> Mask:
    """Where at least ``least`` of the last ``window`` samples held, this one included; along the first axis."""
    if window <= 1:
        return held
    counts = np.cumsum(held, axis=0, dtype=np.int64)
    counts[window:] = counts[window:] - counts[:-window]
    return held & (counts >= least)


def level_start(values: Floats) -> npt.NDArray[np.float64]:
    """The first values, up to the one that differs from the first by more than noise explains; [] where that is not known.

    Second differences of a series that falls smoothly are all but nothing; those of noise have a variance of 6 sigma².
    """
    first = np.asarray(values[:START], dtype=np.float64)
    if len(first) < LEAST_START or not (np.abs(first) < 1e100).all():  # finite, and so are their differences
        return first[:0]
    sigma = middles.median(np.abs(np.diff(first, 2))) / 0.6745 / math.sqrt(6)
    away = np.abs(first[:MOST_LEVEL] - first[0]) > NOISE * math.sqrt(2) * sigma
    return first[: int(np.argmax(away)) if away.any() else MOST_LEVEL]


def as_high_before(values: Floats, since: int, ceiling: float) -> bool:
    """Whether the last values, those from ``since`` on, are few, and it came back below ``ceiling`` from about as high before.

    Of squared errors of which 2 % are absurd every other batch's may be a hundred times the usual.
    """
    last, before = values[since:], values[:since]
    return 0 < len(last) < FOR_GOOD and bool(((before > ceiling) & (AS_HIGH * before >= middles.median(last))).any())


def smoothed(values: Floats, *, width: int = 5) -> npt.NDArray[np.float64]:
    """Running median of the last ``width`` values; the start looks back on what there is. NaN counts as infinity."""
    y = np.where(np.isnan(values), np.inf, np.asarray(values, dtype=np.float64))
    padded = np.concatenate([np.repeat(y[:1], width - 1), y])
    return middles.medians(np.lib.stride_tricks.sliding_window_view(padded, width)) if len(y) else y


def carried_on(table: Table) -> Table:
    """The table with its gaps filled by what stood above them; float32 [steps, sites], NaN above the first."""
    seen = np.where(np.isnan(table), -1, np.arange(len(table))[:, None])
    last = np.maximum.accumulate(seen, axis=0) if len(table) else seen
    return np.where(last >= 0, np.take_along_axis(table, np.maximum(last, 0), axis=0), np.float32(np.nan))


def median_of(values: Floats) -> float:
    """Median of the finite values; NaN where there is none."""
    finite = np.asarray(values)[np.isfinite(values)]
    return middles.median(finite) if len(finite) else float("nan")


def spans_of(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many steps each row of pulses stands for: from the row before it to its own."""
    return np.maximum(np.diff(steps, prepend=steps[:1] - 1), 1)
