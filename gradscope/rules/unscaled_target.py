"""Regression targets far from zero mean and unit variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import PATIENCE
from gradscope.evidence import gravity
from gradscope.evidence import run_length
from gradscope.evidence import works
from gradscope.objective import REGRESSIONS
from gradscope.objective import Targets
from gradscope.objective import adapts
from gradscope.objective import each
from gradscope.objective import given
from gradscope.objective import of_the_mean
from gradscope.objective import output_module
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import smoothed

LIKELIHOODS = ("gaussian_nll", "laplace_nll")  # of a prediction and its width


@final
@dataclass(frozen=True)
class UnscaledTarget(Rule):
    """The model is to predict numbers far from zero mean and unit variance, such as prices in dollars.

    ## What it does

    Looks at the targets of a squared, absolute or Huber loss, or of a Gaussian or Laplacian likelihood: their standard
    deviation is above 10, or their mean more than ten standard deviations from zero. It speaks where that can be seen in the
    training: one of the first five steps moved the median weight matrix by a tenth of its norm or more, or the first loss is
    ten times the variance of the targets, or after 100 steps the loss is still where the best constant prediction has it.

    ## Why it is bad

    The gradient of the squared error is proportional to the error. A model starts with outputs of about one; with targets of
    5000 the first step of plain SGD is thousands of times too long, kills the units, and all that is left is the last bias.
    Adam bounds the step, and then needs mean / learning rate steps to carry the last bias to the mean.

    ## How it is told apart

    - The scale of targets leaves the curvature of the squared error as it is: a learning rate that is too high overshoots
      the batch it was made from. With targets a hundred times too large the step was 110 % of the weights' norm and the
      overshoot 0.79; with targets of 5000 ± 1000 it was 150 times the norm.
    - Inputs that are not normalised are seen at the inputs.
    - A likelihood falls at once where its width grows, though the predictions have gone nowhere: with prices of 2000 ± 500 and
      Adam it fell from 3.1e6 to 1.4e5 in 300 steps, with outputs that were still more than two deviations off. There training
      counts as working once the outputs' mean is within two deviations of the targets'. So does that of an error which is
      above a constant prediction's: with targets of 5000 ± 900 and a Huber loss it fell from 5200 to 4290 in 300 steps of
      Adam, where a constant has 700.
    - Where the loss has come below a constant prediction's, it counts how long that took: a third of the steps so far, and 50
      at least, are no aside. With ages of 42 ± 14 years, a mean absolute error and Adam at 0.001 it took 70 of 126 steps, and
      the error was 3.7 times that of a training on standardised ages.
    - Class labels, and targets between 0 and 1, have no scale to correct. Where the loss has come down all the same, the
      finding is an aside.

    ## What to do

    Subtract the targets' mean and divide by their standard deviation, both measured on the training set, and undo it where
    predictions are used. Or put the mean into the last layer's bias, and lower the learning rate.

    ## Known false alarms

    Value functions whose returns are in the hundreds are trained like that by habit, with Adam: where they learn, the finding
    is an aside.

    ## References

    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998, sections 4.3 and 4.5. H. van Hasselt et al.,
    "Learning values across many orders of magnitude" (NIPS 2016).
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("loss.target_rms", "pulse.loss")
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "lr-too-low", "exploding-gradients", "loss-divergence", "gradient-spikes", "dead-units",
        "saturated-units", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau", "initial-loss-off",
        "collapsed-output", "activation-growth", "oscillating-loss", "adam-second-moment-lag",
        "clipping-too-tight", "fp16-overflow",
    )  # fmt: skip

    most_spread: float = 10.0  # standard deviation
    most_offset: float = 10.0  # mean over standard deviation
    large_step: float = 0.1  # update ratio of the median matrix in one of the first steps
    first_frames: int = 5  # sampled steps whose size counts
    most_off: float = 2.0  # standard deviations, that the mean output of a training that works may be off
    late_share: float = 1 / 3  # of the steps so far, spent above a constant prediction's loss, that are no aside
    late_steps: int = 50  # the least number of them
    most_start: float = 10.0  # times the targets' variance, that a squared error may begin with

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss, known = sole_loss(timeline), targets(timeline)
        if (
            loss is None
            or known is None
            or loss.kind not in (*REGRESSIONS, *LIKELIHOODS)
            or not known.std > 0
            or not len(timeline.loss)
        ):
            return
        if not (known.std > self.most_spread or abs(known.mean) > self.most_offset * known.std):
            return
        sizes = step_sizes(timeline)[: self.first_frames]
        size = float(np.max(sizes[np.isfinite(sizes)], initial=0.0))
        start = self._start(timeline, loss, known)
        far, late = self._far(timeline, known), self._late(timeline, known)
        stands = timeline.step_count >= PATIENCE and (far or late > 0 or not works(timeline))
        if size > self.large_step or start > self.most_start or stands:
            severity = self._severity(timeline, size, far=far or late > 0)
            yield self._hit(timeline, known, size, start, late, severity)

    def _start(self, timeline: Timeline, loss: LossInfo, known: Targets) -> float:
        """The first loss over that of a constant prediction; squared where the loss grows with the error and not its square."""
        if loss.kind in LIKELIHOODS:
            off = median_of(given(timeline, "input_mean")[: self.first_frames]) - known.mean
            return 1 + (off / known.std) ** 2
        first = each(timeline, loss, timeline.first_loss)
        return first / known.std**2 if loss.kind == "mse" else (first / known.std) ** 2

    def _far(self, timeline: Timeline, known: Targets) -> bool:
        """Whether the outputs are far from the targets still, whatever the loss has come down to."""
        loss, outputs = sole_loss(timeline), given(timeline, "input_mean")
        off = median_of(outputs[np.isfinite(outputs)][-self.first_frames :]) - known.mean
        if loss is None or not abs(off) > self.most_off * known.std:
            return False
        constant = known.std**2 if loss.kind == "mse" else known.std
        return loss.kind in LIKELIHOODS or each(timeline, loss, timeline.last_loss) > constant

    def _late(self, timeline: Timeline, known: Targets) -> int:
        """Steps before the loss was what predicting the mean costs; 0 where these were few, or not too many of all."""
        loss = sole_loss(timeline)
        if loss is None or loss.kind not in REGRESSIONS or timeline.step_count < PATIENCE:
            return 0
        unit = each(timeline, loss, 1.0)
        below = smoothed(timeline.loss) * unit <= of_the_mean(loss, known)
        above = int(timeline.loss_steps[np.argmax(below)]) if below.any() else timeline.step_count * (unit > 0)
        return above if above >= max(self.late_steps, self.late_share * timeline.step_count) else 0

    def _hit(self, timeline: Timeline, known: Targets, size: float, start: float, late: int, severity: Severity) -> Hit:
        mean, std = f"{known.mean:.4g}", f"{known.std:.4g}"
        first, last = run_length(timeline)
        return Hit(
            modules=output_module(timeline),
            first_step=first,
            last_step=last,
            evidence={
                "target_mean": plain(known.mean),
                "target_std": plain(known.std),
                "update_ratio": plain(size),
                "first_loss_over_variance": plain(start),
                "steps_above_constant": late,
            },
            message=(
                f"The targets have a mean of {mean} and a standard deviation of {std}, where a model starts with outputs of "
                f"about 1, {self._effect(timeline, known, size, start, late)}."
            ),
            remedy=Remedy(
                f"Train on targets with mean 0 and deviation 1; a prediction is then the output times {std} plus {mean}.",
                f"y = (y - {mean}) / {std}  # over the sampled batches; better over the training set",
            ),
            severity=severity,
            strength=4.0,
        )

    def _effect(self, timeline: Timeline, known: Targets, size: float, start: float, late: int) -> str:
        if size > self.large_step:
            return f"and one of the first steps moved the median weight matrix by {size:.3g} of its norm"
        if late:
            return f"and of {timeline.step_count} steps {late} went by before the loss was what predicting the mean costs"
        rate = median_of(timeline.pulse("learning_rate"))
        if adapts(timeline) and rate > 0:
            return (
                f"and at a learning rate of {rate:g} the last bias is {max(abs(known.mean), known.std) / rate:.2g} steps away"
            )
        return f"and the first loss was {start:.3g} times that of a constant prediction"

    def _severity(self, timeline: Timeline, size: float, *, far: bool) -> Severity:
        """An aside until it has done harm, where the steps are no longer than they should be."""
        found = max(gravity(timeline), Severity.WARNING if far else Severity.INFO)
        waiting = found is Severity.WARNING and timeline.step_count < PATIENCE and not size > self.large_step
        return Severity.INFO if waiting or math.isnan(timeline.first_loss) else found
