"""What came of steps that were long: accidents that training got over, and starts that were wiped out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gradscope.blowup import ordinary_gradient
from gradscope.blowup import worst_loss
from gradscope.evidence import peak_rate
from gradscope.objective import chance
from gradscope.objective import guess
from gradscope.objective import sole_loss
from gradscope.records import StepQuality
from gradscope.timeline import Timeline
from gradscope.trends import median_of

Floats = npt.NDArray[np.float64]

SOON = 10  # steps after a long one that show what came of it
GRACE = 3  # losses after a leap, before which it is not known whether they come back
MODERATE = 10.0  # times the first loss, up to which a leap may be an accident
MOVES = 1e-4  # update ratio, below which nothing moves any more
ORDINARY = 0.03  # median update ratio of steps that go on as usual
START = 30  # steps from the first that can wipe out what the initialisation has laid out
IN_A_ROW = 5  # of them, that say how long they are


def accident(timeline: Timeline, sizes: Floats, step: int) -> bool:
    """Whether the loss that leapt at ``step`` came back below its start, and steps since are as long as is usual.

    As long as that is not known yet, a moderate leap passes for one.
    """
    place = int(np.searchsorted(timeline.loss_steps, step))
    start, after = abs(float(timeline.loss[0])), timeline.loss[place + 1 :]
    if not np.isfinite(timeline.loss).all():
        return False
    since = sizes[timeline.steps > step][:SOON]
    if len(after) <= GRACE or len(since) <= GRACE:
        return worst_loss(timeline, 0) <= MODERATE * start
    return bool(np.median(after[:SOON]) <= start and MOVES <= median_of(since) <= ORDINARY)


def borne_out(timeline: Timeline, probe: StepQuality) -> bool:
    """Whether a loss soon after went up by half as much as the step's own batch did, or the losses did not come down."""
    soon = timeline.loss[(timeline.loss_steps > probe.step) & (timeline.loss_steps <= probe.step + SOON)]
    stayed = (soon <= (probe.loss_before + probe.loss_after) / 2).all()
    return not (stayed and len(soon) and np.median(soon) < probe.loss_before)


def wiping(timeline: Timeline, sizes: Floats, least: float) -> npt.NDArray[np.intp]:
    """The long steps among five in a row of the first thirty sampled ones whose median has ``least``; [] where there are none.

    They are the five that are longest. Where a gradient that leapt began them, they are that batch's, and do not count.
    """
    rows = np.flatnonzero(np.isfinite(sizes) & (timeline.steps < START))
    if len(rows) < IN_A_ROW:
        return rows[:0]
    windows = np.lib.stride_tricks.sliding_window_view(rows, IN_A_ROW)
    medians = np.median(sizes[windows], axis=1)
    five = windows[int(np.argmax(medians))]
    long = five[sizes[five] >= least]
    return long if medians.max() >= least and ordinary_gradient(timeline, int(timeline.steps[long[0]])) else rows[:0]


def constant_loss(timeline: Timeline) -> float:
    """The loss of the best constant prediction, by how often each class comes where that is known; 0 where it is not."""
    known, loss = timeline.known_baseline or 0.0, sole_loss(timeline)
    share = chance(timeline, loss) / guess(loss) if loss is not None else math.nan
    return known * share if share < 1 else known


def long_for_another_reason(timeline: Timeline, step: int, most: float) -> bool:
    """Whether gradients were not cleared or data was not finite up to ``step``, or weight decay alone makes steps as long."""
    seen = timeline.steps <= step + 1
    carried = (timeline.column("weight_gradient.carried")[seen] > 0).any()
    if carried or (timeline.column("input.nonfinite")[seen] > 0).any():
        return True
    decay = max((o.settings.get("weight_decay", 0.0) for o in timeline.info.optimizers), default=0.0)
    return peak_rate(timeline) * decay > most
