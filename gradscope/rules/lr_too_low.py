"""Steps so small that training stands still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope import middles
from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.evidence import matrices
from gradscope.evidence import peak_rate
from gradscope.evidence import rates_at
from gradscope.evidence import warming_up
from gradscope.objective import adapts
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import falls
from gradscope.trends import median_of
from gradscope.trends import row_medians


@final
@dataclass(frozen=True)
class LrTooLow(Rule):
    """The learning rate is so low that no weight matrix moves enough for the loss to change.

    ## What it does

    Looks at the update ratio, the norm of a step over the norm of the weight. It speaks where the median over the sampled
    steps is below 0.00001 for every trained matrix, over 100 steps or more, and the loss has moved by less than 1 % from
    the first half of them to the second, or by no more than chance (Mann-Kendall, p < 0.001: with steps this small a loss
    that falls is the exception). Below 0.0001 it speaks where the loss stands at that of the best constant prediction, and
    all steps together can have lowered it by 5 % at most, if each had led straight down: the sum over the steps of their
    length times the gradient's norm. Plain descent has a rate of 0.001 at most there: above, it is gradients that are small.
    Of steps by hand, which `scope.step()` tells of, the rate is not known, and the first of the two cases alone is looked at.

    ## Why it is bad

    At a ratio of 0.00001 it takes 100,000 steps in the same direction to change a weight by its own size. Trainings that
    work show median ratios of 0.0002 to 0.02; with Adam at a learning rate of 0.0000001 it was 0.0000005, and the loss
    moved by less than 1 % in 100 steps.

    ## How it is told apart

    - During a warm-up the learning rate still rises, and at the end of a decay it is below a twentieth of its peak: both
      are left alone, unless the rate was at half of its peak or more for a quarter of the steps, and too low there too: the
      median is then taken over those.
    - Weights that do not move at all are not held by an optimizer, or have no gradient; see optimizer-misses-parameters
      and weights-not-moving.
    - Where the gradient itself is tiny (vanishing, or clipped too tightly) the learning rate is not to blame: without an
      adaptive optimizer the norm of the weight matrices' gradient must be at least a thousandth of theirs; with one, it must
      be well above the optimizer's eps. Biases do not count: where gradients vanish, that of the output layer's bias does
      not. A convolutional net of seven layers with too small weights had 0.00014 of the matrices' norm.
    - A training that has converged, and one with several objectives, is left alone.

    A schedule that had the rate itself for its factor, 0.002 of 0.002, moved the median matrix by 0.000016 a step and could
    lower the loss by 1.8 % in 200 steps; plain descent at 0.00002 by 0.5 % in 400. Their twins moved it by 0.003, and could
    have lowered the loss by four times its height.

    ## What to do

    Raise the learning rate so that the median update ratio comes to 0.005, ten thousand times at most. While a training
    stands still gradients are larger than once it works, so that what begins at 0.005 comes down towards 0.001. With momentum
    and a rate of 0.0000001 a convolutional net stayed at 2.5; at 0.0002, which begins at 0.001, it came to 1.8 in 200 steps;
    at 0.001, which begins at 0.005, to 0.42 to 0.48 (three seeds).

    ## Known false alarms

    A fine-tuning that is meant to change next to nothing.

    ## References

    A. Karpathy, lecture notes of CS231n, "Ratio of weights:updates": it should be around 0.001 while a net trains.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.ratio", "pulse.loss", "pulse.gradient_norm")
    least_steps: ClassVar[int] = 100
    explains: ClassVar[tuple[str, ...]] = ("loss-plateau",)

    most_ratio: float = 1e-5  # of every matrix, median over the sampled steps
    creeping: float = 1e-4  # the same where steps are too short for the loss to fall, and it stands at a constant's
    most_fall: float = 0.05  # of the loss, that all steps together can bring about
    constant_loss: float = 0.95  # of the best constant prediction's, from which the loss stands at that
    least_frames: int = 5
    low_rate: float = 1e-3  # of plain descent: at a higher one it is gradients that are small, not steps
    peak_share: float = 0.25  # of the steps, in which the rate is at half its peak, that are judged by themselves
    most_change: float = 0.01  # of the loss, from the first half of the run to the second
    surely: float = 3.09  # normal score of a fall that is not chance
    least_of_peak: float = 0.05  # of the learning rate; below it a schedule has ended
    least_gradient: float = 1e-3  # norm of the gradient over that of the weights, without an adaptive optimizer
    eps_margin: float = 10.0  # gradient's rms over eps, with one
    good_ratio: float = 5e-3  # that the remedy aims at
    most_raise: float = 1e4  # of the rate, by the remedy

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if len(timeline.frames) < self.least_frames or timeline.converged or timeline.several_objectives:
            return
        scheduled = self._scheduled(timeline)
        ratios = row_medians(timeline.update_ratios[self._at_peak(timeline, scheduled=scheduled)].T)
        known = ratios[np.isfinite(ratios)]
        if not len(known) or not 0 < known.max() < self.creeping or not self._stands_still(timeline):
            return
        if (known.max() >= self.most_ratio or scheduled) and not self._cannot_fall(timeline):
            return
        if warming_up(timeline) or self._tiny_gradient(timeline):
            return
        yield self._hit(timeline, ratios, middles.median(known))

    def _at_peak(self, timeline: Timeline, *, scheduled: bool) -> np.ndarray:
        """The sampled steps that are judged: all, or those near the peak of a rate that has decayed and was long there."""
        if not scheduled:
            return np.ones(len(timeline.steps), dtype=bool)
        rates, least = timeline.pulse("learning_rate"), 0.5 * peak_rate(timeline)
        long = np.nansum(timeline.spans * (rates >= least)) >= self.peak_share * np.nansum(timeline.spans)
        return np.asarray(long & (rates_at(timeline, timeline.steps) >= least))

    def _cannot_fall(self, timeline: Timeline) -> bool:
        """Whether the loss stands at a constant prediction's, and steps this short can't have lowered it, wherever they led."""
        level = timeline.known_baseline
        if not level or timeline.last_loss < self.constant_loss * level or timeline.last_loss > level / self.constant_loss:
            return False
        if timeline.info.by_hand or (not adapts(timeline) and peak_rate(timeline) > self.low_rate):
            return False  # how a step by hand comes of its gradient is not known
        lengths = timeline.column("update.ratio") * timeline.held("weight.norm").astype(np.float64)
        falls_by = np.nansum(lengths * timeline.column("weight_gradient.norm"), axis=1)
        fall = timeline.step_count * median_of(falls_by[falls_by > 0])
        return bool(fall < self.most_fall * timeline.last_loss)

    def _stands_still(self, timeline: Timeline) -> bool:
        """Whether the loss changed by less than the threshold from the first half to the second, or no more than by chance."""
        if not np.isfinite(timeline.loss).all() or timeline.learning:
            return False
        parts = np.array([middles.median(part) for part in np.array_split(timeline.loss, min(40, len(timeline.loss)))])
        before, after = middles.median(parts[: len(parts) // 2]), middles.median(parts[len(parts) // 2 :])
        return bool(abs(after - before) < self.most_change * abs(before)) or not falls(parts, z=self.surely)

    def _scheduled(self, timeline: Timeline) -> bool:
        """Whether the rate has come down to the end of its decay."""
        rates = timeline.pulse("learning_rate")
        rates = rates[np.isfinite(rates)]
        return bool(len(rates) > 0 and rates[-1] < self.least_of_peak * rates.max())

    def _tiny_gradient(self, timeline: Timeline) -> bool:
        held = matrices(timeline)  # an output layer's bias has its gradient also where those of all weights vanish
        gradients = timeline.column("weight_gradient.norm")[:, held]
        gradient = middles.median(np.sqrt(np.nansum(np.square(gradients, dtype=np.float64), axis=1)))
        eps = [optimizer.settings["eps"] for optimizer in timeline.info.optimizers if "eps" in optimizer.settings]
        if eps:
            names = {site.path for site, holds in zip(timeline.schema.parameters, held, strict=True) if holds}
            size = sum(p.size for p in timeline.info.parameters if p.name in names)
            return not gradient / math.sqrt(max(size, 1)) >= self.eps_margin * max(eps)
        weights = timeline.held("weight.norm")[:, held]
        weight = middles.median(np.sqrt(np.nansum(np.square(weights, dtype=np.float64), axis=1)))
        return not gradient >= self.least_gradient * weight

    def _hit(self, timeline: Timeline, ratios: np.ndarray, ratio: float) -> Hit:
        rate = peak_rate(timeline)
        better = one_digit(rate * min(self.good_ratio / ratio, self.most_raise)) if ratio > 0 else 0.0
        places = np.flatnonzero(np.isfinite(ratios))
        names = [timeline.parameters[timeline.schema.parameters[i].path].module for i in places]
        code = f'for group in optimizer.param_groups:\n    group["lr"] = {better:g}  # was {rate:g}' if better else None
        return Hit(
            modules=tuple(dict.fromkeys(names)),
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1]),
            evidence={
                "update_ratio": plain(ratio),
                "healthy_update_ratio": self.good_ratio,
                "learning_rate": plain(rate),
                "first_loss": plain(timeline.first_loss),
                "last_loss": plain(timeline.last_loss),
            },
            message=(
                f"A step changes the median weight matrix by {ratio:.2g} of its norm, where {self.good_ratio:g} is a good "
                f"start, and the loss went from {timeline.first_loss:.4g} to {timeline.last_loss:.4g} in "
                f"{timeline.step_count} steps."
            ),
            remedy=Remedy(
                f"Raise the learning rate from {rate:g} to {better:g}." if better else "Raise the learning rate.", code
            ),
            severity=Severity.WARNING,
            strength=3.0,
        )
