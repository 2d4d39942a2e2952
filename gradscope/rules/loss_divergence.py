"""A loss that grows and does not come back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.evidence import calm_clipping
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import smoothed

BOUNDED = ("cross_entropy", "nll", "bce", "bce_with_logits")  # kinds whose loss of the best constant is of the order of one
STEADY_SIZE = 16  # elements that a loss is the mean over, from which on a single one tells where training is


@dataclass(frozen=True)
class _Rise:
    index: int  # of the loss from which on it had risen
    before: float
    after: float
    late: bool  # whether training had worked until then


@final
@dataclass(frozen=True)
class LossDivergence(Rule):
    """The loss has grown far above where it started, or lost most of what it had gained, and does not come back.

    ## What it does

    Compares the last losses, a third of all and fifty at most, with the first one and with the loss of the best constant
    prediction, whichever is higher. It speaks where every one of them lies above three times that (ten times, for losses
    without a natural scale), or where the loss was above it when it stopped being finite. It also speaks, after 150 steps,
    where the loss has gone back half of the way that it had come, at least by half of its best level, while the gradient
    norm has doubled.

    ## Why it is bad

    A model that is worse than a constant has not merely stopped learning: its weights have been thrown out of the region
    where its start made sense, and it will seldom find back.

    ## How it is told apart

    A single bad batch, or a swing that comes back, leaves some of the last losses low. A first loss of a
    few elements that is small by chance is not believed: the median of the first ten stands for it. Losses of GANs and of
    actors and critics move by design, and are not judged. A loss that turns NaN without growing is `nonfinite-loss`.

    ## What to do

    Treat the cause that is named with it, most often `lr-too-high`, `missing-zero-grad`, or a scale (`unnormalized-input`,
    `init-too-large`). Without one: lower the rate, and clip the gradient.

    ## Known false alarms

    Value learning whose targets grow by a hundredfold while it works (DQN), and weights that a schedule raises by as much.
    Where there is one loss function and the graph tells its weight, all losses and gradients are compared as if they had
    had the last one all along: a loss that counts a thousand times as much from a step on has not risen. A loss written by
    hand, and one of several that are added, cannot be told apart from a rise. Losses of policies lie about zero and say little:
    one that scattered by 0.03 about levels of -0.027 and -0.004 had learned, so a rise has to exceed three times the scatter.

    ## References

    AutoTrainer (ICSE 2021) and TheDeepChecker (TOSEM 2023) use fixed bounds and twice the minimum. Measured on 26 healthy
    small trainings, the loss rose by at most 1.6 times its first value, and came back; in diverging ones by 1.3 to 1e14.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)
    least_steps: ClassVar[int] = 3

    bounded_factor: float = 3.0  # times the start, for losses with a natural scale
    factor: float = 10.0  # times the start, for all others
    critical_factor: float = 100.0  # times the start, from which all others are critical
    least_losses: int = 15  # in all; two where the loss is no longer finite
    late_window: int = 50  # losses whose median is a level
    given_back: float = 0.5  # of what had been gained
    beyond: float = 3.0  # times the median distance of the best losses from their level, which a rise has to exceed
    gradient_rise: float = 2.0  # of the gradient norm since the best losses

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if timeline.several_objectives or not len(timeline.loss) or not np.isfinite(timeline.loss[0]):
            return
        rise = self._early(timeline) or self._late(timeline)
        if rise is not None:
            yield self._hit(timeline, rise)

    def _bounded(self, timeline: Timeline) -> bool:
        return bool(timeline.info.wiring and any(loss.kind in BOUNDED for loss in timeline.info.wiring.losses))

    def _early(self, timeline: Timeline) -> _Rise | None:
        """Whether the loss ends far above its start."""
        bad = ~np.isfinite(timeline.loss)
        finite = timeline.loss[: int(np.argmax(bad))] if bad.any() else timeline.loss
        broke = bool(bad[-1])
        if len(finite) < (2 if broke else self.least_losses):
            return None
        start = _start(timeline, finite)
        ceiling = start + ((self.bounded_factor if self._bounded(timeline) else self.factor) - 1) * abs(start)
        last = finite[-1:] if broke else finite[-max(5, min(self.late_window, len(finite) // 3)) :]
        if not (last > ceiling).all():
            return None
        below = np.flatnonzero(finite <= ceiling)
        return _Rise(int(below[-1]) + 1 if len(below) else 0, start, median_of(last), late=False)

    def _late(self, timeline: Timeline) -> _Rise | None:
        """Whether the loss has given back much of what it had gained, with gradients that have grown."""
        loss, width = timeline.loss, self.late_window
        if len(loss) < 3 * width or not np.isfinite(loss).all():
            return None
        count = len(loss) // width
        blocks = loss[-count * width :].reshape(count, width)
        levels = middles.medians(blocks)
        best = int(np.argmin(levels[:-1]))
        low, now, first = float(levels[best]), float(levels[-1]), timeline.first_loss
        if not (first > low and now > low + self.given_back * max(first - low, abs(low))):
            return None
        scatter = median_of(np.abs(blocks[best] - low))
        if now <= low + self.beyond * scatter:
            return None
        norms = self._norms(timeline)[-count * width :].reshape(count, width)
        if not median_of(norms[-1]) > self.gradient_rise * median_of(norms[best]):
            return None
        since = len(loss) - (count - best - 1) * width
        high = smoothed(loss)[since:] > low + self.given_back * (now - low)
        return _Rise(since + int(np.argmax(high)), low, now, late=True)

    def _norms(self, timeline: Timeline) -> npt.NDArray[np.float64]:
        return timeline.gradient_norms[timeline.pulse("backwards") > 0]

    def _hit(self, timeline: Timeline, rise: _Rise) -> Hit:
        worst = self._bounded(timeline) or not rise.after < self.critical_factor * abs(rise.before)
        since = "its best level" if rise.late else "where it started"
        first = int(timeline.loss_steps[rise.index])
        way = f"from {rise.before:.4g}, {since}, to {rise.after:.4g}"
        return Hit(
            modules=(),
            first_step=first,
            last_step=int(timeline.loss_steps[-1]),
            evidence={"loss_before": rise.before, "loss_after": rise.after, "late": rise.late},
            message=f"The loss rose {way}, and has not come back since step {first}.",
            remedy=_remedy(timeline),
            severity=Severity.CRITICAL if worst and not rise.late else Severity.WARNING,
            strength=3.0,
        )


def _start(timeline: Timeline, losses: npt.NDArray[np.float64]) -> float:
    """The loss at which training started, or that of the best constant prediction where it is higher.

    A loss over a few elements may be small by chance; then the first ten have to tell.
    """
    known = timeline.info.wiring.losses if timeline.info.wiring else ()
    sizes = [math.prod(loss.input_shape) for loss in known if loss.input_shape]
    first = float(losses[0]) if sizes and min(sizes) >= STEADY_SIZE else median_of(losses[:10])
    return max(first, timeline.known_baseline or -np.inf)


def _remedy(timeline: Timeline) -> Remedy:
    again = "Start again from before this step with a lower learning rate."
    clip = calm_clipping(timeline)
    return Remedy(again) if clip is None else Remedy(f"{again} {clip.text}", clip.code)
