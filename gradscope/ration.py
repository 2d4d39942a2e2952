"""How much a run may write: plenty at first, then so much a day, however large and fast the training."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import final

DAY = 86400.0  # seconds


@final
class Ration:
    """Bytes that may be written: ``start`` at once, and ``a_day`` more, evenly, for each day that passes."""

    def __init__(self, *, start: float, a_day: float, clock: Callable[[], float] = monotonic) -> None:
        self.start = start
        self._a_day = a_day
        self._clock = clock
        self._began = clock()
        self._spent = 0

    @property
    def room(self) -> float:
        """Bytes that may still be written now; below 0 where more was."""
        return self.start + self._a_day * (self._clock() - self._began) / DAY - self._spent

    def spend(self, size: int) -> None:
        self._spent += size
