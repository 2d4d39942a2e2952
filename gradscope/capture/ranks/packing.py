"""Numbers of one rank as vectors whose sums and maxima over all ranks tell everything: also extremes, and which rank has them.

Every rank adds to one vector of float64 that is summed, and to one of int64 of which the maximum is taken. A float32 with a
rank packs into an int64 whose order is the number's: so a single maximum says both.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from typing import final

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]
Tops = npt.NDArray[np.int64]

MISSING = -(2**62)  # less than all that packs
_RANK_BITS = 20
_RANK_MASK = 2**_RANK_BITS - 1
_MAGNITUDE = np.int32(0x7FFFFFFF)


@dataclass(frozen=True)
class Packed:
    """What one rank gives, or what all of them came to."""

    sums: Sums
    tops: Tops


@final
@dataclass
class Packer:
    """Collects what a rank gives, in an order that its reader keeps to."""

    rank: int
    _sums: list[Sums] = field(default_factory=list)
    _tops: list[Tops] = field(default_factory=list)

    def total(self, values: npt.ArrayLike) -> None:
        """Add numbers that are summed."""
        self._sums.append(np.asarray(values, dtype=np.float64).reshape(-1))

    def mean(self, values: npt.NDArray[np.floating]) -> None:
        """Add numbers whose mean is asked for, over the ranks that have them; NaN: this one has not."""
        there = ~np.isnan(values)
        self.total(np.where(there, values, 0.0))
        self.total(there)

    def high(self, values: npt.NDArray[np.floating]) -> None:
        """Add numbers the largest of which is asked for, and whose it is; NaN: there is none."""
        self._tops.append(packed(values, self.rank))

    def low(self, values: npt.NDArray[np.floating]) -> None:
        """The same of the smallest."""
        self._tops.append(packed(-np.asarray(values), self.rank))

    def done(self) -> Packed:
        sums = np.concatenate(self._sums) if self._sums else np.zeros(0)
        tops = np.concatenate(self._tops) if self._tops else np.zeros(0, dtype=np.int64)
        return Packed(sums, tops)


@final
class Unpacker:
    """Reads what all ranks came to, in the order in which a ``Packer`` was given it."""

    def __init__(self, found: Packed) -> None:
        self._found = found
        self._sum = 0
        self._top = 0

    def total(self, count: int) -> Sums:
        start, self._sum = self._sum, self._sum + count
        return self._found.sums[start : self._sum]

    def mean(self, count: int) -> Sums:
        """NaN where no rank had a number."""
        total, there = self.total(count), self.total(count)
        found: Sums = np.divide(total, there, out=np.full(count, np.nan), where=there > 0)
        return found

    def high(self, count: int) -> tuple[Sums, Sums]:
        """The largest numbers, and the ranks that have them; NaN where there is none."""
        start, self._top = self._top, self._top + count
        return unpacked(self._found.tops[start : self._top])

    def low(self, count: int) -> tuple[Sums, Sums]:
        values, ranks = self.high(count)
        return -values, ranks


def packed(values: npt.ArrayLike, rank: int) -> Tops:
    """Float32 and a rank below 2^20 as int64 in the order of the numbers; MISSING for NaN."""
    held = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    bits = held.view(np.int32)
    ordered = np.where(bits >= 0, bits, bits ^ _MAGNITUDE).astype(np.int64)
    return np.where(np.isnan(held), np.int64(MISSING), (ordered << _RANK_BITS) | rank)


def unpacked(tops: Tops) -> tuple[Sums, Sums]:
    """The numbers, and their ranks; NaN for MISSING."""
    missing = tops == MISSING
    ordered = np.where(missing, 0, tops >> _RANK_BITS).astype(np.int32)
    values = np.where(ordered >= 0, ordered, ordered ^ _MAGNITUDE).astype(np.int32).view(np.float32)
    return (
        np.where(missing, np.nan, values).astype(np.float64),
        np.where(missing, np.nan, tops & _RANK_MASK).astype(np.float64),
    )
