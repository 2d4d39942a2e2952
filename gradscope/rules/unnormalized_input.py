"""Model inputs far from zero mean and unit variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import Floats
from gradscope.depth import begins_at_zero
from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import gravity
from gradscope.evidence import measured
from gradscope.evidence import suffices
from gradscope.objective import REGRESSIONS
from gradscope.objective import chance
from gradscope.objective import each
from gradscope.objective import of_the_mean
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import row_medians

_KNOWN = ("linear", "conv", "recurrent", "attention", "embedding", "norm")  # roles whose matrices it is known how they are used


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
    - A model that takes the logarithm of its input, or divides it by 255, in its first line, is given any scale: where it is
      known how every matrix is used, what linear and convolutional layers put out at the first step over the norm of their
      rows tells the scale of what they took, and of recurrent ones the gradient of their weights over that of their biases.
      Where that is under a quarter of the input's, or above four times of it, in each of the layers (a tenth of it in
      recurrent ones), the input is left alone. Of amounts with a root mean square of 17 to 22 whose logarithm was taken the
      first layer took 0.05 to 0.06 times as much; of raw pixels and columns of a table 0.8 to 1.2 times.
    - The only input is no mask; times in seconds are 1.7e9.

    ## What to do

    Subtract the mean and divide by the standard deviation, both measured on the training set, or start the model with a
    normalisation layer.

    ## Known false alarms

    Inputs with heavy tails (counts, prices) that the model takes the logarithm of in its first line, where matrices stand
    outside of layers. Adam often trains on raw pixels all the same: where training works the finding is no more than an
    aside. It stays a warning where after 100 steps the loss is above a constant prediction's for all that it fell, and where
    it is above half of it and half of the first units that can saturate do: with years and square metres in front of a tanh
    all were saturated for good, and the loss came from 1.3 to 0.76, where standardised columns had 0.05. With degrees beside
    days since 1970 a mean absolute error came from 790 to 8.3 in 400 steps of Adam, where predicting the mean costs 1 at most.

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
    mask_magnitude: float = 1e8  # what holds larger numbers is a mask, beside another input
    sole_mask_magnitude: float = 1e30  # the same of the only input: times in nanoseconds are 1.7e18
    constant: float = 1e-6  # spread over rms that float32 cannot tell from none
    same_columns: float = 0.5  # of the spread, that the spread within a column is where columns are alike
    other_scale_back: float = 10.0  # the same by gradients, of recurrent modules
    other_scale: float = 4.0  # times that what layers take is smaller or larger than the input where the model scales it
    least_offset: float = 0.5  # mean over rms, without which such gradients cancel out where those of biases do not
    least_units: int = 8  # of a layer whose outputs tell what it took
    most_saturated: float = 0.5  # of the first units that can saturate
    most_loss: float = 0.5  # of a constant prediction's, down to which a training with such units does not work
    late_frames: int = 5  # sampled steps that say how units fare

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        modules = timeline.schema.modules
        first = timeline.modules.get(modules[0].path) if modules else None
        if first is not None and first.role in ("norm", "embedding"):
            return
        known = np.isfinite(timeline.column("input.rms")).sum(axis=0)
        medians = {name: row_medians(timeline.column(f"input.{name}").T) for name in ("rms", "mean", "absmax", "signal")}
        for i in np.flatnonzero(known):
            rms, mean, largest, signal = (float(medians[name][i]) for name in ("rms", "mean", "absmax", "signal"))
            masked = largest >= (self.mask_magnitude if len(timeline.schema.inputs) > 1 else self.sole_mask_magnitude)
            if masked or not (math.isfinite(rms) and math.isfinite(mean)):
                continue
            spread = math.sqrt(max(rms**2 - mean**2, 0.0))
            if spread < self.least_spread * rms:  # too close for float32: the spread over the batch is known directly
                spread = signal
            what = self._off(timeline, rms, mean, spread)
            if what and not self._rescaled(timeline):
                yield self._hit(timeline, int(i), what, rms, mean, spread, apart=signal < self.same_columns * spread)

    def _off(self, timeline: Timeline, rms: float, mean: float, spread: float) -> str | None:
        if not spread > self.constant * rms:
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

    def _rescaled(self, timeline: Timeline) -> bool:
        """Whether the model brings its input to another scale before any layer takes it, as far as the layers show."""
        if len(timeline.schema.inputs) != 1 or not begins_at_zero(timeline) or not self._all_seen(timeline):
            return False
        rms, signal = (float(timeline.column(f"input.{name}")[0, 0]) for name in ("rms", "signal"))
        taken, varied = self._taken(timeline, "rms") / rms, self._taken(timeline, "signal") / signal  # no bias varies
        outside = (taken < 1 / self.other_scale) | (varied > self.other_scale)
        back = self._taken_by_recurrent(timeline) / rms
        offset = abs(float(timeline.column("input.mean")[0, 0])) > self.least_offset * rms
        seen = (len(taken) > 0 or len(back) > 0) and bool(np.isfinite(taken).all()) and (offset or not len(back))
        return seen and bool(outside.all()) and bool((back < 1 / self.other_scale_back).all())

    def _taken(self, timeline: Timeline, statistic: str) -> Floats:
        """The scale of what linear and convolutional layers take at the first step, by what they put out."""
        norms, outputs = timeline.column("weight.norm")[0], timeline.column(f"activation.{statistic}")[0]
        layers = [layer for layer in timeline.layers if layer.weight.shape[0] >= self.least_units]
        found = [outputs[layer.site] * layer.weight.shape[0] ** 0.5 / norms[layer.parameter] for layer in layers]
        return np.array(found, dtype=np.float64)

    def _taken_by_recurrent(self, timeline: Timeline) -> Floats:
        """The scale of what recurrent modules take, by the gradient of their weights for it over that of their biases."""
        norms = timeline.column("weight_gradient.norm")[0]
        places = {site.path: i for i, site in enumerate(timeline.schema.parameters)}
        found = []
        for name, weight in timeline.parameters.items():
            bias = name.replace("weight_ih", "bias_ih")
            if bias != name and name.removesuffix("_l0").endswith("weight_ih"):
                pair = [norms[places[part]] if part in places else np.nan for part in (name, bias)]
                found.append(pair[0] / pair[1] / weight.fan_in**0.5 if pair[1] > 0 else np.nan)
        return np.array(found, dtype=np.float64)

    def _all_seen(self, timeline: Timeline) -> bool:
        """Whether what takes the input can be told: no matrix stands by itself, and no attention comes first."""
        roles = {path: module.role for path, module in timeline.modules.items()}
        alone = [
            p for p in timeline.info.parameters if len(p.shape) >= 2 and p.shape[0] > 1 and roles.get(p.module) not in _KNOWN
        ]
        first = next((role for site in timeline.schema.modules if (role := roles.get(site.path)) in _KNOWN), None)
        turned = any(layer.module.type.startswith("ConvTranspose") for layer in timeline.layers)
        return not alone and not turned and first in ("linear", "conv", "recurrent")

    def _severity(self, timeline: Timeline) -> Severity:
        """As training fares; a loss that fell, but tells of nothing learned, does not make it work."""
        found, loss = gravity(timeline), sole_loss(timeline)
        if found is not Severity.INFO or loss is None or not len(timeline.loss):
            return found
        share = each(timeline, loss, timeline.last_loss) / (_level(timeline, loss) or math.nan)
        useless = share > 1 and timeline.step_count >= PATIENCE
        return Severity.WARNING if useless or (share > self.most_loss and self._numb(timeline)) else found

    def _numb(self, timeline: Timeline) -> bool:
        """Whether most of the first units that can saturate have been so of late."""
        saturated = timeline.column("activation.saturated")
        places = np.flatnonzero(np.isfinite(saturated).any(axis=0))
        if not len(places):
            return False
        first = saturated[:, places[0]]
        return bool(median_of(first[np.isfinite(first)][-self.late_frames :]) > self.most_saturated)

    def _hit(self, timeline: Timeline, site: int, what: str, rms: float, mean: float, spread: float, *, apart: bool) -> Hit:
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
            remedy=_by_column() if apart else _remedy(mean, spread),
            severity=self._severity(timeline),
            strength=5.0 if suffices(timeline, self.name) else 4.0,
        )


def _level(timeline: Timeline, loss: LossInfo) -> float:
    """The loss of a constant prediction, of an absolute error what it is at most; NaN where it is not known."""
    known = targets(timeline) if loss.kind in REGRESSIONS else None
    return of_the_mean(loss, known) if known is not None else chance(timeline, loss)


def _remedy(mean: float, spread: float) -> Remedy:
    return Remedy(
        f"Standardise the input, as its mean is {mean:.4g} and its standard deviation {spread:.4g}.",
        f"x = (x - {mean:.4g}) / {spread:.4g}  # over the sampled batches; better over the training set",
    )


def _by_column() -> Remedy:
    """Of columns that lie apart: one mean and one deviation for all would leave most of them as good as constant."""
    return Remedy(
        "Standardise each column by itself: they have different means.",
        "x = (x - x.mean(0)) / (x.std(0) + 1e-6)  # better with the means and deviations of the whole training set",
    )
