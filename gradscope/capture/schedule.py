"""The governor: which steps are sampled, so that watching costs no more than its budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil
from statistics import median
from typing import final

from gradscope.capture.ledger import HORIZON
from gradscope.capture.ledger import Ledger
from gradscope.capture.ledger import Unseen
from gradscope.capture.ranks.timetable import Timetable
from gradscope.capture.ranks.timetable import affordable
from gradscope.records import CLOSE_STEPS

# Of a model that is not large these steps are sampled whatever that costs: faults of initialisation, wiring and step size show
# in the first of them, others need ten samples to be told from chance; see docs/decisions/0011-an-account-from-the-start.md.
FIRST_STEPS = (0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 70)
LARGE = 1024  # rows, see ``rows_of``, from which a sampled step costs as much as many others
# Sampled as well where nobody would notice, or where a run of a hundred steps can carry it: most such have long steps.
DENSE_STEPS = 12
EARLY_STEPS = frozenset((14, 17, 20, 24, 29, 35, 42, 50, 60, 72, 86, 100))
UNNOTICED = 0.5  # seconds that the watching may take up to then, samples of these steps included, whatever share that is
COMPARED_EVERY = 12  # steps, of which one is left out where all could be sampled, for the others' times to be compared with
DENSE_AGAIN = 6  # sampled in a row when something looks wrong
ALARMS = 8  # dense stretches of that sort that a run may have
SHARE_FOR_NORM = 0.3  # of the budget, for gradient norms
SHARE_IN_DEBT = 0.1  # the same until what was lent for the first samples is paid back
WEIGHED_EVERY = 16  # sampled steps, of which one weighs the weights, beside those that are sampled whatever they cost
FIRST_NORMS = 100  # steps from the start whose gradient norms are all taken, if that can be carried; of a large model
FIRST_NORMS_OF_LARGE = 12
SELDOM = 64  # steps, of which one has its norm taken however dear that is
ATTENTIVE_STEPS = CLOSE_STEPS  # steps from the start at each of which the watch itself listens
MOST_QUIET = 16  # steps in a row after which it is asked again whether to sample
_FIRST_OF_LATER = 0.4  # what a sample costs, of what the first did, for which everything is made
_LAST_SAMPLES = 8
_LAST_NORMS = 64
_MOST_APART = 8.0  # times the mean, which a single norm that another process came amid counts for at most
_SETTLED = 20  # steps after which a training's steps are like one another
_LAID_BY = 4  # samples that credit is kept for
_FIRST_OF_LARGE = (0, 1, 4, 16)  # as FIRST_STEPS, where several ranks train a large model together
_LEARNED = 6  # samples after which it is known what one costs
_SETTLED_IN = 256  # steps in which what was spent too much is paid back, or what was saved is spent


@final
class Governor:
    """Chooses the next sampled step. Spends ``budget`` of the bare step time, or keeps to every ``every``-th step.

    ``rows`` says how large the model is, see ``rows_of``.
    """

    def __init__(self, budget: float, every: int | None, *, rows: int = 0) -> None:
        self._budget = budget
        self._every = every
        self._is_large = rows >= LARGE
        self._ledger = Ledger(budget)
        self._unseen = Unseen()
        self._dense_left = 0
        self._granted = True  # the step is sampled whatever it costs
        self._samples = 0
        self._alarms_left = ALARMS
        self._costs: deque[float] = deque(maxlen=_LAST_SAMPLES)  # seconds that sampled steps took more than others
        self._norms = 0
        self._norm_cost = 0.0  # seconds
        self._start = 0  # the step with which the watching begins
        self._agreed = False  # whether other ranks sample the same steps,
        self._timetable: Timetable | None = None  # and what all know of them, where it is not a cadence that was asked for
        self.norm_every = 1  # from FIRST_NORMS on, one step in so many has its gradient norm taken

    def first(self) -> bool:
        """Whether the step with which the watching begins is sampled: always."""
        return True

    def begin_at(self, step: int) -> None:
        """The first step has this number: so many were made before, by the training that this one goes on with."""
        self._start = step
        if self._timetable is not None:
            self._timetable.begin_at(step)

    def agree(self, catch_up: Callable[[int], None]) -> Timetable | None:
        """From now on go by what all ranks that train the model know; see ``Timetable``, which a cadence needs none of."""
        self._agreed = True
        if self._every is None:
            first = frozenset(_FIRST_OF_LARGE if self._is_large else FIRST_STEPS)
            self._timetable = Timetable(first, dense=DENSE_AGAIN, alarms=ALARMS, catch_up=catch_up)
        return self._timetable

    def disagree(self) -> None:
        """From now on decide alone."""
        self._agreed, self._timetable = False, None

    def cadence(self) -> int:
        """Every how many steps one could be sampled; 0 where that is not known, or not ours to say."""
        if self._every is not None or self._samples < _LEARNED:
            return 0
        bare = self._ledger.bare_step
        saved = self._ledger.credit / _SETTLED_IN / bare if bare > 0 else 0.0
        return affordable(self.sample_cost, min(max(self._budget + saved, self._budget / 8), 4 * self._budget), bare)

    @property
    def unseen(self) -> float:
        """Seconds that a sampled step takes more than others, of which gradscope's own clock sees nothing."""
        return self._unseen.seconds

    @property
    def sample_cost(self) -> float:
        """Seconds that a sampled step takes more than others."""
        return median(self._costs) if self._costs else 0.0

    def after(self, step: int, *, seconds: float, own: float, sampled: bool) -> bool:
        """Account for a finished step and say whether the next one is sampled.

        ``seconds`` is the whole step's, ``own`` what gradscope takes of it for itself.
        """
        step -= self._start
        if sampled:
            self._samples += 1
            self._learn_cost(own)
        if step >= _SETTLED:
            self._unseen.enter(seconds=seconds, own=own - (self._unseen.seconds if sampled else 0.0), sampled=sampled)
        self._ledger.enter(1, seconds=seconds, own=own, sampled=sampled, most=_LAID_BY * self.sample_cost)
        self._dense_left = max(self._dense_left - 1, 0)
        self._granted = self._is_granted(step + 1)
        return self._is_next(step)

    def after_quiet(self, step: int, count: int, *, seconds: float, own: float, sampled: bool) -> bool:
        """Account for the last ``count`` steps up to ``step``, all of them ``sampled`` or none, all at once; see ``after``."""
        step -= self._start
        self._samples += count if sampled else 0
        self._unseen.enter(seconds=seconds / count, own=own / count, sampled=sampled)
        self._ledger.enter(count, seconds=seconds, own=own, sampled=sampled, most=_LAID_BY * self.sample_cost)
        self._granted = False
        return self._is_next(step)

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
        step -= self._start
        first = step < (FIRST_NORMS_OF_LARGE if self._is_large else FIRST_NORMS)
        due = step < FIRST_NORMS_OF_LARGE or step % self.norm_every == 0
        return due or (first and self._can_carry(step, self._norm_cost))

    def quiet_steps(self, step: int) -> int:
        """How many steps from this one on are not sampled, come what may; those that the budget allows come a little later."""
        step -= self._start
        if step < ATTENTIVE_STEPS or self._dense_left > 0:
            return 0
        if self._timetable is not None:
            return self._timetable.quiet(step + self._start, MOST_QUIET)
        return MOST_QUIET if self._every is None else min(-step % self._every, MOST_QUIET)

    def light_steps(self, step: int) -> int:
        """How many steps from this one on are sampled lightly, come what may."""
        if self._every != 1 or step - self._start < ATTENTIVE_STEPS or self._dense_left > 0 or self._granted:
            return 0
        return -self._samples % WEIGHED_EVERY

    def norm_in(self, step: int) -> int:
        """Steps from this one on before the next whose gradient norm is taken."""
        return (self._start - step) % self.norm_every

    def norm_took(self, seconds: float) -> None:
        """Learn what a gradient norm costs, and take it as often as its share of the budget allows."""
        # A mean, as that of the steps is: where other processes take the core now and then, medians of what is short and of
        # what is long cannot be compared. Without the first, for which everything is made.
        counted = min(seconds, _MOST_APART * self._norm_cost) if self._norms > 1 else seconds
        self._norm_cost += (counted - self._norm_cost) / max(1, min(self._norms, _LAST_NORMS))
        self._norms += 1
        share = SHARE_IN_DEBT if self._ledger.lent > 0 else SHARE_FOR_NORM
        affordable = share * self._budget * self._ledger.bare_step
        if affordable > 0:
            self.norm_every = min(max(1, ceil(self._norm_cost / affordable)), SELDOM)

    def alarm(self) -> None:
        """Something cheap to see went wrong: sample the next few steps whatever they cost, a limited number of times."""
        if self._timetable is not None:
            self._timetable.alarmed = True
        elif self._alarms_left > 0 and self._dense_left == 0 and not self._agreed:
            self._alarms_left -= 1
            self._dense_left = DENSE_AGAIN

    def owe(self, seconds: float) -> None:
        """Pay back over time what a probe took, as the first samples are."""
        self._ledger.lend(seconds)

    def _learn_cost(self, own: float) -> None:
        if self._samples == 2:
            self._costs.clear()
        self._costs.append(own if self._samples > 1 else _FIRST_OF_LATER * own)

    def _is_granted(self, step: int) -> bool:
        if self._timetable is not None:
            return self._timetable.is_granted(step + self._start)
        wanted = step < DENSE_STEPS or step in EARLY_STEPS
        if self._every is not None:
            return wanted or self._dense_left > 0
        if self._dense_left > 0 or step in FIRST_STEPS:
            return not self._is_large or self._ledger.can_carry(self.sample_cost)
        if not wanted or step > HORIZON:
            return False
        return self._can_carry(step, self.sample_cost)

    def _can_carry(self, step: int, seconds: float) -> bool:
        """Whether the run's start has room for so much more at this step, with the samples that are still to be taken whatever
        they cost.
        """
        if not self._is_large and self._ledger.spent + seconds <= UNNOTICED:
            return True
        reserved = sum(later > step for later in FIRST_STEPS)
        return self._ledger.can_carry(seconds + reserved * self.sample_cost)

    def _is_next(self, step: int) -> bool:
        if self._every is not None:
            return (step + 1) % self._every == 0
        if self._timetable is not None:
            return self._timetable.is_sampled(step + 1 + self._start)
        compared = step + 1 >= _SETTLED and (step + 1) % COMPARED_EVERY == 0
        return self._granted or (self._ledger.credit >= self.sample_cost and not compared)
