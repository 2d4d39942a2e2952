"""The governor: which steps are sampled, so that watching costs no more than its budget."""

from __future__ import annotations

from collections import deque
from math import ceil
from statistics import median
from typing import final

DENSE_STEPS = 12  # sampled from the start: faults of initialisation, wiring and learning rate show here
# Sampled whatever they cost: a run that blows up within its first hundred steps is seen on its way there, in every run alike.
EARLY_STEPS = frozenset((14, 17, 20, 24, 29, 35, 42, 50, 60, 72, 86, 100))
DENSE_AGAIN = 6  # sampled in a row when something looks wrong
ALARMS = 8  # dense stretches of that sort that a run may have
SHARE_FOR_DEBT = 0.5  # of what the budget yields, until the dense stretches are paid for
SHARE_FOR_NORM = 0.3  # of the budget, for their gradient norm
LEAST_SHARE = 0.25  # of the budget, that goes to samples whatever the rest costs
WEIGHED_EVERY = 8  # sampled steps, of which one weighs the weights, beside those that are sampled whatever they cost
DENSE_NORMS = 100  # steps from the start whose gradient norms are all taken
MOST_QUIET = 16  # steps in a row after which it is asked again whether to sample
_REMEMBERED = 64
_FEWEST_TO_COMPARE = 8


@final
class Governor:
    """Chooses the next sampled step. Spends ``budget`` of the bare step time, or keeps to every ``every``-th step.

    Each step earns ``budget`` times its bare time; what watching takes is paid from it. The dense stretches run into debt,
    which half of what is earned pays back, while the other half goes on buying samples.
    """

    def __init__(self, budget: float, every: int | None) -> None:
        self._budget = budget
        self._every = every
        self._credit = 0.0  # seconds earned for samples and not spent
        self._debt = 0.0  # seconds that the dense stretches took beyond what was earned
        self._dense_left = DENSE_STEPS
        self._granted = True  # the step is sampled whatever it costs
        self._samples = 0
        self._alarms_left = ALARMS
        self._sampled: deque[float] = deque(maxlen=_REMEMBERED)
        self._bare: deque[float] = deque(maxlen=_REMEMBERED)
        self.sample_cost = 0.0  # seconds that a sampled step takes more than others
        self._norm_cost = 0.0
        self.norm_every = 1  # of the steps from DENSE_NORMS on, one in so many has its gradient norm taken

    def first(self) -> bool:
        """Whether step 0 is sampled: always."""
        return True

    def after(self, step: int, *, seconds: float, own: float, sampled: bool) -> bool:
        """Account for a finished step and say whether the next one is sampled.

        ``seconds`` is the whole step's, ``own`` what gradscope measured of it for itself.
        """
        (self._sampled if sampled else self._bare).append(seconds)
        cost = max(own, self._difference()) if sampled else own
        if sampled:
            self._samples += 1
            self.sample_cost = cost if not self.sample_cost else 0.8 * self.sample_cost + 0.2 * cost
        earned = self._budget * max(seconds - cost, 0.0)
        self._pay(cost if sampled else min(cost, (1 - LEAST_SHARE) * earned), earned)
        self._dense_left = max(self._dense_left - 1, 0)
        if self._granted and self._dense_left == 0:  # what was sampled regardless of its cost is paid for over time
            self._debt += max(-self._credit, 0.0)
            self._credit = max(self._credit, 0.0)
        self._granted = self._dense_left > 0 or step + 1 in EARLY_STEPS
        if self._every is not None:
            return (step + 1) % self._every == 0
        return self._granted or self._credit >= self.sample_cost

    def after_quiet(self, step: int, count: int, *, seconds: float, own: float) -> bool:
        """Account for the last ``count`` steps up to ``step``, none of them sampled, all at once; see ``after``."""
        self._bare.append(seconds / count)
        earned = self._budget * max(seconds - own, 0.0)
        self._pay(min(own, (1 - LEAST_SHARE) * earned), earned)
        if self._every is not None:
            return (step + 1) % self._every == 0
        return self._credit >= self.sample_cost

    @property
    def thorough(self) -> bool:
        """Whether a sampled step also takes what is dear and changes slowly: the exact norms of the weights."""
        return self._granted or self._samples % WEIGHED_EVERY == 0

    @property
    def light(self) -> bool:
        """Whether a sampled step leaves out all that is not sampled by hooks: most of those of a cadence that was asked for."""
        return self._every is not None and not self.thorough

    def wants_norm(self, step: int) -> bool:
        """Whether the global gradient norm is worked out at this step, should it not be sampled."""
        return step < DENSE_NORMS or step % self.norm_every == 0

    def quiet_steps(self, step: int) -> int:
        """How many steps from this one on are not sampled, come what may; those that the budget allows come a little later."""
        if step < DENSE_NORMS or self._dense_left > 0:
            return 0
        return MOST_QUIET if self._every is None else min(-step % self._every, MOST_QUIET)

    def norm_in(self, step: int) -> int:
        """Steps from this one on before the next whose gradient norm is taken."""
        return -step % self.norm_every

    def norm_took(self, seconds: float) -> None:
        """Learn what a gradient norm costs, and take it as often as its share of the budget allows."""
        self._norm_cost = seconds if not self._norm_cost else 0.8 * self._norm_cost + 0.2 * seconds
        if len(self._bare) >= _FEWEST_TO_COMPARE:
            affordable = SHARE_FOR_NORM * self._budget * median(self._bare)
            self.norm_every = max(1, ceil(self._norm_cost / affordable))

    def alarm(self) -> None:
        """Something cheap to see went wrong: sample the next few steps whatever they cost, a limited number of times."""
        if self._alarms_left > 0 and self._dense_left == 0:
            self._alarms_left -= 1
            self._dense_left = DENSE_AGAIN

    def owe(self, seconds: float) -> None:
        """Pay back over time what a probe took, as the dense stretches are."""
        self._debt += seconds

    def _pay(self, cost: float, earned: float) -> None:
        if self._dense_left == 0 and self._debt > 0:
            repaid = min(self._debt, SHARE_FOR_DEBT * earned)
            self._debt -= repaid
            earned -= repaid
        self._credit = min(self._credit + earned - cost, max(4 * self.sample_cost, 0.0))

    def _difference(self) -> float:
        """How much longer sampled steps take than others; 0 while there are too few of either to say."""
        if min(len(self._sampled), len(self._bare)) < _FEWEST_TO_COMPARE:
            return 0.0
        return max(median(self._sampled) - median(self._bare), 0.0)
