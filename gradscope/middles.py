"""Medians and percentiles. The first call of numpy's own imports ``numpy.ma``, amid the training: 1 MB and 15 ms."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def median(values: npt.ArrayLike) -> float:
    """Median of all values; NaN where there is none or one of them is NaN."""
    flat = np.asarray(values).reshape(1, -1)
    return float(medians(flat)[0]) if flat.size else math.nan


def medians(table: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Median of each row of ``table`` [rows, at least 1]; NaN where one of its values is."""
    ordered = np.sort(np.asarray(table, dtype=np.float64), axis=1)
    size = ordered.shape[1]
    middle = (ordered[:, (size - 1) // 2] + ordered[:, size // 2]) / 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, middle)  # NaN is sorted last


def percentile(values: npt.ArrayLike, share: float) -> float:
    """The value that ``share`` % of all are below, by proportion where it lies between two; there is one, and none is NaN."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    return float(np.interp(share / 100 * (len(ordered) - 1), np.arange(len(ordered)), ordered))
