"""The ledger: what a training's steps have earned for being watched, and what was bought with it."""

from __future__ import annotations

from math import sqrt
from typing import final

HORIZON = 100  # steps: so much of what is to come may be spent beforehand
SHARE_FOR_DEBT = 0.75  # of what is earned after those, until what was lent is paid back
LEAST_SHARE = 0.25  # of the budget, for samples, as long as that with all the rest stays within a quarter over it
BARE_SHARE = 0.05  # of the budget, for samples, whatever the rest costs: a run that is never sampled is not watched
_REMEMBERED = 64
_FEWEST = 8


@final
class Ledger:
    """Each step earns ``budget`` times its bare time, from which all that watching takes is paid, samples last.

    What is bought on credit is paid back over time, most of what is earned going there first.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._steps = 0
        self._bare = 0.0  # seconds that the steps took without what watching took of them
        self._rest = 0.0  # seconds that watching took beside the samples
        self.sampling = 0.0  # seconds that samples took
        self.lent = 0.0  # seconds of them that are still to be earned
        self.credit = 0.0  # seconds earned for samples and not spent

    @property
    def spent(self) -> float:
        """Seconds that watching has taken in all."""
        return self.sampling + self._rest

    @property
    def bare_step(self) -> float:
        """Seconds that a step takes that nobody watches; 0 before the first."""
        return self._bare / self._steps if self._steps else 0.0

    def enter(self, count: int, *, seconds: float, own: float, sampled: bool, most: float) -> None:
        """Book ``count`` steps, of whose ``seconds`` watching took ``own``; no more than ``most`` seconds are laid by."""
        before = self._for_samples()
        self._steps += count
        self._bare += max(seconds - own, 0.0)
        self._rest += 0.0 if sampled else own
        self.sampling += own if sampled else 0.0
        gained = self._for_samples() - before
        repaid = min(self.lent, (SHARE_FOR_DEBT if self._steps > HORIZON else 1.0) * max(gained, 0.0))
        self.lent -= repaid
        self.credit = min(self.credit + gained - repaid, most) - (own if sampled else 0.0)
        if self.credit < 0:
            self.lent -= self.credit
            self.credit = 0.0

    def lend(self, seconds: float) -> None:
        """Something was bought beside the steps."""
        self.sampling += seconds
        self.lent += seconds

    def can_carry(self, seconds: float) -> bool:
        """Whether so much can be spent and be earned again: in a run's first steps, before these are over."""
        if self._steps >= HORIZON:
            return self.lent + seconds <= HORIZON * self._budget * self.bare_step
        rest = self._rest / max(self._steps, 1) * HORIZON
        return self.sampling + seconds + rest <= HORIZON * self._budget * self.bare_step

    def _for_samples(self) -> float:
        """What of all that was earned has been there for samples, with all else that was paid from it."""
        earned = self._budget * self._bare
        within = min(LEAST_SHARE * earned, (1 + LEAST_SHARE) * earned - self._rest)
        return max(earned - self._rest, within, BARE_SHARE * earned)


@final
class Unseen:
    """How much longer sampled steps take than others, beyond what gradscope's own clock saw: on an accelerator, say.

    Steps differ for many reasons, so only what these cannot explain is taken for watching's doing.
    """

    def __init__(self) -> None:
        self._bare = _Spread()
        self._sampled = _Spread()  # without what the clock saw

    def enter(self, *, seconds: float, own: float, sampled: bool) -> None:
        (self._sampled if sampled else self._bare).enter(seconds - own)

    @property
    def seconds(self) -> float:
        """Of a sampled step; 0 while there are too few of either sort to say."""
        if min(self._bare.count, self._sampled.count) < _FEWEST:
            return 0.0
        doubt = 2 * sqrt(self._bare.uncertainty + self._sampled.uncertainty)
        return max(self._sampled.mean - self._bare.mean - doubt, 0.0)


@final
class _Spread:
    """Mean and variance, the last few dozen values weighing most."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._variance = 0.0

    def enter(self, value: float) -> None:
        self.count = min(self.count + 1, _REMEMBERED)
        apart = value - self.mean
        self.mean += apart / self.count
        self._variance += (apart * (value - self.mean) - self._variance) / self.count

    @property
    def uncertainty(self) -> float:
        """The variance of the mean."""
        return self._variance / max(self.count - 1, 1)
