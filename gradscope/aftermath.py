"""What came of steps that were long: accidents that training got over, and starts that were wiped out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.blowup import MEMORY
from gradscope.blowup import ordinary_gradient
from gradscope.blowup import worst_loss
from gradscope.depth import step_sizes
from gradscope.evidence import broken_gradients
from gradscope.evidence import gravity
from gradscope.evidence import peak_rate
from gradscope.evidence import stalled
from gradscope.evidence import without_gradient
from gradscope.evidence import works
from gradscope.objective import chance
from gradscope.objective import guess
from gradscope.objective import sole_loss
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.timeline import Timeline
from gradscope.trends import median_of

Floats = npt.NDArray[np.float64]

SOON = 10  # steps after a long one that show what came of it
HALVED = 0.5  # of the loss before a slight overshoot, that the losses after the leap have: it did no harm
FAR = 4.0  # overshoot of a late step that no training in order shows; of a short early one that need not be waited for
UNLEARNED = 0.8  # of the best constant prediction's loss, above which such steps lead nowhere
LONG = 0.01  # update ratio of such a step, at least
GRACE = 3  # losses after a leap, before which it is not known whether they come back
SLIGHT = 2.0  # overshoot, below which it takes as many losses to tell what came of a step
BACK = 1.1  # times its start, up to which a loss that leapt is back
MODERATE = 10.0  # times the first loss, up to which a leap may be an accident
MOVES = 1e-4  # update ratio, below which nothing moves any more
ORDINARY = 0.03  # median update ratio of steps that go on as usual
START = 30  # steps from the first that can wipe out what the initialisation has laid out
IN_A_ROW = 5  # of them, that say how long they are
MEAN_OF_RMSPROP = 0.99  # torch's alpha: the mean of squares begins at zero, with no correction
BY_HAND = 0.3  # of a step's length, which a change outside the optimizer has


def finite_steps(timeline: Timeline) -> Floats:
    """Median update ratio of each sampled step; NaN where its gradient was not finite: its length says nothing."""
    return np.where(np.isin(timeline.steps, broken_gradients(timeline)), np.nan, step_sizes(timeline))


def begins_amid(timeline: Timeline, sizes: Floats) -> bool:
    """Whether the record begins after the start, where steps are already as long as the weights: what came before led there."""
    return bool(len(timeline.loss_steps) and timeline.loss_steps[0] > 0 and len(sizes) and sizes[0] >= 1)


def accident(timeline: Timeline, sizes: Floats, step: int) -> bool:
    """Whether the loss that leapt at ``step`` came back to its start, or below, and steps since are as long as is usual.

    As long as that is not known yet, a moderate leap passes for one.
    """
    start, after = abs(float(timeline.loss[0])), _after(timeline, step)
    if not np.isfinite(timeline.loss).all():
        return False
    if len(after) <= GRACE or np.count_nonzero(timeline.steps > step) <= GRACE:
        return worst_loss(timeline, 0) <= MODERATE * start
    return bool(middles.median(after[:SOON]) <= BACK * start and _settled(timeline, sizes, step))


def _after(timeline: Timeline, step: int) -> Floats:
    """The losses after the one at ``step``."""
    return timeline.loss[int(np.searchsorted(timeline.loss_steps, step)) + 1 :]


def _settled(timeline: Timeline, sizes: Floats, step: int) -> bool:
    """Whether the steps since are ordinary; with momentum, those after its own, which coast down as fast as it forgets."""
    momentum = max((o.settings.get("momentum", 0.0) for o in timeline.info.optimizers), default=0.0)
    momentum = momentum if 0 < momentum < 1 else 0.0
    coasting = math.ceil(MEMORY / (1 - momentum)) if momentum else 0
    late = sizes[timeline.steps > step + coasting][:SOON]
    if len(late) > GRACE or not momentum:
        return MOVES <= median_of(late) <= ORDINARY
    since, steps = sizes[timeline.steps > step], timeline.steps[timeline.steps > step]
    return bool(since[-1] <= since[0] * momentum ** ((steps[-1] - steps[0]) / 2))


def passing(timeline: Timeline, sizes: Floats, probe: StepQuality) -> bool:
    """Whether only a first step of an optimizer whose others are that much shorter is known to have been too long."""
    if not probe.overshoot < first_steps_excess(timeline, np.array([probe.step]))[0] or stalled(timeline):
        return False
    after = _after(timeline, probe.step + 1)
    unknown = len(after) <= GRACE and bool(np.isfinite(timeline.loss).all())  # what came of it, however high it leapt
    return unknown or accident(timeline, sizes, probe.step + 1)


def gravity_of(timeline: Timeline, sizes: Floats, probe: StepQuality, *, far: bool) -> Severity:
    """How grave a step is that overshot by nothing but its length: an aside where it was short and nothing came of it."""
    if passing(timeline, sizes, probe) or not (far or borne_out(timeline, probe)):
        return Severity.INFO
    if probe.overshoot < (SLIGHT if far else FAR) and (timeline.loss_steps > probe.step).sum() < GRACE:
        return Severity.INFO  # whether the losses come back is not known yet
    if probe.overshoot < SLIGHT and _halved(timeline, probe) and not stalled(timeline):
        return Severity.INFO
    severity = max(gravity(timeline), Severity.WARNING if far else Severity.INFO)
    lone = accident(timeline, sizes, probe.step + 1) and not stalled(timeline)
    return min(severity, Severity.WARNING) if lone else severity


def _halved(timeline: Timeline, probe: StepQuality) -> bool:
    """Whether the losses from the second after the step on, two at least, are half of what it was before: it did no harm."""
    since = timeline.loss[timeline.loss_steps > probe.step + 1][:SOON]
    return len(since) >= GRACE - 1 and bool(middles.median(since) <= HALVED * probe.loss_before)


def leads_nowhere(timeline: Timeline, size: float, probe: StepQuality) -> bool:
    """Whether a late step overshot far, and training stands still near a constant prediction's loss: its steps are too long."""
    far = probe.overshoot >= FAR and size >= LONG and stalled(timeline) and not works(timeline)
    return far and timeline.last_loss > UNLEARNED * (timeline.known_baseline or math.inf)


def refuted(timeline: Timeline, step: int, most: float) -> bool:
    """Whether the step before the jump at ``step`` was measured to be right: an overshoot below ``most``."""
    return any(probe.step == step - 1 and probe.overshoot < most for probe in timeline.info.probes)


def borne_out(timeline: Timeline, probe: StepQuality) -> bool:
    """Whether a loss soon after went up by half as much as the step's own batch did, or the losses did not come down."""
    soon = timeline.loss[(timeline.loss_steps > probe.step) & (timeline.loss_steps <= probe.step + SOON)]
    stayed = (soon <= (probe.loss_before + probe.loss_after) / 2).all()
    return not (stayed and len(soon) and middles.median(soon) < probe.loss_before)


def wiping(timeline: Timeline, sizes: Floats, least: float) -> npt.NDArray[np.intp]:
    """The long steps among five in a row of the first thirty sampled ones whose median has ``least``; [] where there are none.

    They are the five that are longest, RMSprop's first ones reckoned at the length of those to come. Where a gradient that
    leapt began them, they are that batch's, and do not count.
    """
    sizes = sizes / first_steps_excess(timeline, timeline.steps)
    rows = np.flatnonzero(np.isfinite(sizes) & (timeline.steps < START))
    if len(rows) < IN_A_ROW:
        return rows[:0]
    windows = np.lib.stride_tricks.sliding_window_view(rows, IN_A_ROW)
    medians = middles.medians(sizes[windows])
    five = windows[int(np.argmax(medians))]
    long = five[sizes[five] >= least]
    return long if medians.max() >= least and ordinary_gradient(timeline, int(timeline.steps[long[0]])) else rows[:0]


def constant_loss(timeline: Timeline) -> float:
    """The loss of the best constant prediction, by how often each class comes where that is known; 0 where it is not."""
    known, loss = timeline.known_baseline or 0.0, sole_loss(timeline)
    share = chance(timeline, loss) / guess(loss) if loss is not None else math.nan
    return known * share if share < 1 else known


def first_steps_excess(timeline: Timeline, steps: npt.NDArray[np.int64]) -> Floats:
    """How many times as long as those to come these steps are, whatever the rate: 1, but 1 / sqrt(1 - alpha^k) of RMSprop."""
    if not any(optimizer.type == "RMSprop" for optimizer in timeline.info.optimizers):
        return np.ones(len(steps))
    return np.asarray(1 / np.sqrt(1 - MEAN_OF_RMSPROP ** (steps + 1.0)), dtype=np.float64)


def changed_by_hand(timeline: Timeline) -> bool:
    """Whether most steps are followed by a change outside the optimizer that is a third as long, and sets their size."""
    outside, inside = timeline.column("update.outside_change"), timeline.update_ratios
    known = np.isfinite(outside) & (inside > 0)
    return bool(known.any()) and median_of(outside[known] / inside[known]) >= BY_HAND


def knows_of_clearing(timeline: Timeline) -> bool:
    """Whether it is known if gradients are cleared; in a loop of steps by hand whose parameters hold none there are none."""
    known = bool(np.isfinite(timeline.column("weight_gradient.carried")).any())
    return known or (timeline.info.by_hand and bool(np.isnan(timeline.column("weight_gradient.norm")).all()))


def long_for_another_reason(timeline: Timeline, step: int, most: float) -> bool:
    """Whether gradients were not cleared or data was not finite up to ``step``, or weight decay alone makes steps as long.

    Decay is all that does where no step had a gradient: Adam's are as long as the rate by it, however weak it is. Where it is
    not known up to there whether gradients were cleared, the first sampled step that knows it counts.
    """
    seen = timeline.steps <= step + 1
    carried = timeline.column("weight_gradient.carried")
    known = np.isfinite(carried).any(axis=1)
    told = seen if (known & seen).any() else known & (np.cumsum(known) == 1)
    if (carried[told] > 0).any() or without_gradient(timeline) or (timeline.column("input.nonfinite")[seen] > 0).any():
        return True
    decay = max((o.settings.get("weight_decay", 0.0) for o in timeline.info.optimizers), default=0.0)
    return peak_rate(timeline) * decay > most
