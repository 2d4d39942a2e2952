"""Model inputs far from zero mean and unit variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import gravity
from gradscope.evidence import measured
from gradscope.evidence import suffices
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import row_medians


@final
@dataclass(frozen=True)
class UnnormalizedInput(Rule):
    """The model is fed numbers far from zero mean and unit variance, such as raw pixels.

    ## What it does

    Looks at the floating-point inputs of the model: their root mean square, and their mean against their standard
    deviation. It speaks where the root mean square is above 10 or below 0.01, or where the mean is more than five
    standard deviations from zero. Where training blew up or stands still, a root mean square above 5 is enough; where a step
    was measured to overshoot, and not to do so once the input is divided by its root mean square, one above 3.

    ## Why it is bad

    The gradient of the first layer's weights is proportional to its input, and the curvature of the loss along it to the
    input's square. An input with a root mean square of s lowers the largest stable learning rate by about s^2: with
    digits as raw values of 0 to 16 instead of standardised ones, a learning rate of 0.1 overshot the valley of the loss
    by a factor 9.9, and by 0.15 after standardising. Tanh and sigmoid layers saturate at once.

    ## How it is told apart

    - A learning rate that is too high diverges with inputs of ordinary scale; this rule reads the input itself.
    - A model whose first layer is a normalisation or an embedding takes any scale: it is left alone.
    - A constant input (a mask, a time step) has no scale to correct and is left alone, and so are masks filled with very
      large negative numbers.
    - One bad batch does not count: the numbers are medians over the sampled steps.

    ## What to do

    Subtract the mean and divide by the standard deviation, both measured on the training set, or start the model with a
    normalisation layer.

    ## Known false alarms

    Inputs with heavy tails (counts, prices) that the model takes the logarithm of in its first line. Adam often trains on
    raw pixels all the same: where training works the finding is no more than an aside.

    ## References

    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998, section 4.3.
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("input.mean", "input.rms")
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "loss-divergence", "gradient-spikes", "dead-units", "saturated-units",
        "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau", "initial-loss-off",
        "saturating-activation", "collapsed-output",
        "fp16-overflow", "attention-logit-growth", "output-logit-drift", "clipping-too-tight", "activation-growth",
    )  # fmt: skip

    highest_rms: float = 10.0  # standardised data has 1
    highest_rms_wasted: float = 5.0  # where training blew up or stands still: raw digits of 0 to 16 have 7.7
    highest_rms_measured: float = 3.0  # where a probe has shown that it is what makes steps overshoot
    lowest_rms: float = 0.01  # a hundredth of standardised data
    most_offset: float = 5.0  # mean over standard deviation
    least_spread: float = 1e-3  # standard deviation over rms; below it the input is constant, as far as float32 can tell
    mask_magnitude: float = 1e8  # what holds larger numbers is a mask

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        modules = timeline.schema.modules
        first = timeline.modules.get(modules[0].path) if modules else None
        if first is not None and first.role in ("norm", "embedding"):
            return
        known = np.isfinite(timeline.column("input.rms")).sum(axis=0)
        medians = {name: row_medians(timeline.column(f"input.{name}").T) for name in ("rms", "mean", "absmax", "signal")}
        for i in np.flatnonzero(known):
            rms, mean, largest, signal = (float(medians[name][i]) for name in ("rms", "mean", "absmax", "signal"))
            if largest >= self.mask_magnitude or not (math.isfinite(rms) and math.isfinite(mean)):
                continue
            spread = math.sqrt(max(rms**2 - mean**2, 0.0))
            if spread < self.least_spread * rms:  # too close for float32: the spread over the batch is known directly
                spread = signal
            what = self._off(timeline, rms, mean, spread)
            if what:
                yield self._hit(timeline, int(i), what, rms, mean, spread)

    def _off(self, timeline: Timeline, rms: float, mean: float, spread: float) -> str | None:
        if not spread > 0:
            return None
        highest = self.highest_rms_wasted if gravity(timeline) is Severity.CRITICAL else self.highest_rms
        highest = self.highest_rms_measured if suffices(timeline, self.name) else highest
        if rms > highest:
            return f"a root mean square of {rms:.3g}"
        if rms < self.lowest_rms:
            return f"a root mean square of only {rms:.3g}"
        if abs(mean) > self.most_offset * spread and len(timeline.schema.inputs) == 1:
            return f"a mean of {mean:.3g}, {abs(mean) / spread:.3g} times its standard deviation of {spread:.3g}"
        return None

    def _hit(self, timeline: Timeline, site: int, what: str, rms: float, mean: float, spread: float) -> Hit:
        seen = np.flatnonzero(np.isfinite(timeline.column("input.rms")[:, site]))
        name = timeline.schema.inputs[site].name
        return Hit(
            modules=(name,),
            first_step=int(timeline.steps[seen[0]]),
            last_step=int(timeline.steps[seen[-1]]),
            evidence={
                "input": name,
                "rms": plain(rms),
                "mean": plain(mean),
                "std": plain(spread),
                **measured(timeline, self.name),
            },
            message=f"The model's input {name!r} has {what}, where standardised data has mean 0 and standard deviation 1.",
            remedy=Remedy(
                f"Standardise the input, as its mean is {mean:.4g} and its standard deviation {spread:.4g}.",
                f"x = (x - {mean:.4g}) / {spread:.4g}  # over the sampled batches; better over the training set",
            ),
            severity=gravity(timeline),
            strength=5.0 if suffices(timeline, self.name) else 4.0,
        )
