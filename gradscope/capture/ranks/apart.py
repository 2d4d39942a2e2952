"""Which rank's number stands furthest from those of all the others, from a few sums over all ranks.

Of N ranks with numbers x, without knowing them one by one: the mean and the spread of all but the largest, or but the smallest,
follow from the sum, the sum of squares, and that extreme. So one rank that stands apart is measured by the others alone, and
does not hide in a spread that it has made itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradscope.capture.ranks.packing import Packer
from gradscope.capture.ranks.packing import Sums
from gradscope.capture.ranks.packing import Unpacker

_ROUNDING = 1e-6  # of the numbers' size: float32 counts no finer


@dataclass(frozen=True)
class Apart:
    """Of each place, the rank whose number is furthest from the others' mean."""

    distance: Sums  # from that mean, signed; NaN with fewer than two ranks
    rank: Sums
    spread: Sums  # standard deviation of the others; NaN where there is but one other


def pack(packer: Packer, values: npt.NDArray[np.floating]) -> None:
    """NaN, and what is not finite: this rank has no number there."""
    held = np.where(np.isfinite(values), values, np.nan).astype(np.float32).astype(np.float64)
    there = ~np.isnan(held)
    packer.total(there)
    packer.total(np.where(there, held, 0.0))
    packer.total(np.where(there, held**2, 0.0))
    packer.high(held)
    packer.low(held)


def unpack(unpacker: Unpacker, count: int) -> Apart:
    ranks, total, squares = (unpacker.total(count) for _ in range(3))
    (high, high_rank), (low, low_rank) = unpacker.high(count), unpacker.low(count)
    above, above_spread = _others(ranks, total, squares, high)
    below, below_spread = _others(ranks, total, squares, low)
    # Of two ranks each is as far from the other: then the one that is not the first is named.
    up = np.where(ranks == 2, high_rank > low_rank, np.abs(high - above) >= np.abs(low - below))
    distance = np.where(up, high - above, low - below)
    return Apart(
        np.where(ranks >= 2, distance, np.nan), np.where(up, high_rank, low_rank), np.where(up, above_spread, below_spread)
    )


def _others(ranks: Sums, total: Sums, squares: Sums, left_out: Sums) -> tuple[Sums, Sums]:
    """Mean and standard deviation of all but one number."""
    with np.errstate(all="ignore"):
        count = ranks - 1
        mean = (total - left_out) / count
        variance = (squares - left_out**2) / count - mean**2
        spread = np.sqrt(np.maximum(variance, (_ROUNDING * mean) ** 2))
    return np.where(count >= 1, mean, np.nan), np.where(count >= 2, spread, np.nan)
