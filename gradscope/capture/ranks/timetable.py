"""Which steps are sampled where several ranks train together and keep to a budget: on all ranks the same, by construction.

The first steps are fixed. From then on every n-th is sampled, where n is what the first rank's governor can afford; it goes
along whenever the ranks exchange numbers, and holds from LEAD steps later. No rank begins a step before it has heard all that
may say something of it, so none can take it for sampled where another does not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import final

LEAD = 8  # steps from an exchange to the first that what it says holds for
MOST_APART = 64  # steps between two exchanges, whether or not one of them is sampled
SELDOM = 4096  # steps, of which one is sampled where the budget allows hardly any


def is_meeting(step: int, *, sampled: bool) -> bool:
    """Whether the ranks exchange numbers after a step."""
    return sampled or step == _meeting_from(step)


def _meeting_from(step: int) -> int:
    """The first step, from this one on, after which numbers are exchanged even if it is not sampled."""
    return step + (-step - 1) % MOST_APART


def affordable(sample_cost: float, budget: float, bare_step: float) -> int:
    """Every how many steps one may be sampled; 0 where nothing is known yet."""
    if sample_cost <= 0 or bare_step <= 0:
        return 0
    return min(max(ceil(sample_cost / (budget * bare_step)), 1), SELDOM)


@final
class Timetable:
    """What all ranks know of the steps to come.

    ``first`` are sampled in any case. ``catch_up(step)`` brings in the exchange of a step, if need be by waiting for it;
    ``learn`` is called with what it said. An alarm is followed by ``dense`` sampled steps in a row, ``alarms`` times in a run.
    """

    def __init__(self, first: frozenset[int], *, dense: int, alarms: int, catch_up: Callable[[int], None]) -> None:
        self._first = first
        self._dense_steps = dense
        self._alarms_left = alarms
        self._catch_up = catch_up
        self._cadences: list[tuple[int, int]] = []  # from which step on, every how many; the last that has begun holds
        self._dense = range(0)
        self._met = -1  # the last step whose exchange was brought in
        self._open: list[int] = []  # sampled steps whose exchange was not
        self.alarmed = False  # something looked wrong on this rank since the last exchange

    def begin_at(self, step: int) -> None:
        """The first step has this number."""
        self._first = frozenset(first + step for first in self._first)
        self._met = step - 1

    def is_granted(self, step: int) -> bool:
        """Whether a step is sampled whatever that costs."""
        return step in self._first or step in self._dense

    def learn(self, step: int, every: int, *, alarm: bool) -> None:
        """What the exchange of a step said: the cadence that holds from LEAD steps later (0: as before), and an alarm."""
        self._met = max(self._met, step)
        self._open = [sampled for sampled in self._open if sampled > step]
        if every and every != (self._cadences[-1][1] if self._cadences else 0):
            self._cadences.append((step + LEAD, every))
        if alarm and self._alarms_left > 0 and step + LEAD >= self._dense.stop:
            self._alarms_left -= 1
            self._dense = range(step + LEAD, step + LEAD + self._dense_steps)

    def is_sampled(self, step: int) -> bool:
        """Asked once for each step that is not surely unsampled, in order, before it begins."""
        while (meeting := self._next_meeting()) <= step - LEAD:
            self._catch_up(meeting)
            if self._next_meeting() == meeting:  # nobody will say more of it: the ranks have parted
                self.learn(meeting, 0, alarm=False)
        sampled = self._is_on(step)
        if sampled and step not in self._open:
            self._open.append(step)
        return sampled

    def quiet(self, step: int, most: int) -> int:
        """How many steps from this one on are surely not sampled, of ``most``."""
        unsampled = next((ahead for ahead in range(most) if self._is_on(step + ahead)), most)
        return max(min(unsampled, self._next_meeting() + LEAD - step), 0)

    def _next_meeting(self) -> int:
        """The first step whose exchange was not brought in."""
        return min([*self._open, _meeting_from(self._met + 1)])

    def _is_on(self, step: int) -> bool:
        while len(self._cadences) > 1 and self._cadences[1][0] <= step - MOST_APART:
            self._cadences.pop(0)
        begun = [every for since, every in self._cadences if since <= step]
        return self.is_granted(step) or (bool(begun) and step % begun[-1] == 0)
