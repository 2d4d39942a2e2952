"""A loss that swings to and fro instead of coming down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import plain
from gradscope.evidence import usual_rate
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True)
class OscillatingLoss(Rule):
    """The loss swings up and down in a regular way and does not come down.

    ## What it does

    Looks at the last 200 losses (100 at least), once they no longer progress, with their straight trend taken away. It
    speaks where they swing by 30 % of their level (between the 10th and the 90th percentile), and where the swing is regular:
    the autocorrelation is above 0.5 at some period of up to a third of the losses, and below -0.3 at a lag before it.

    ## Why it is bad

    A regular swing is no noise of batches: either steps jump from one wall of the loss's valley to the other (a period of
    two), or the data comes in an order that makes the model forget and learn the same things again and again.

    ## How it is told apart

    - Noise of batches is not correlated: over 200 losses its autocorrelation stays within 0.25 at every lag.
    - A loss that swings and falls, as full-batch training at the edge of stability does, progresses, and is left alone; so
      is one that has converged.
    - A learning rate that itself goes up and down (cyclic schedules, warm restarts) takes the loss with it: where the rate
      varies by half or more, nothing is said.
    - GANs and other players against one another swing by design.

    Of 29 healthy small trainings with one player none had such a period; in the losses of GANs the autocorrelation came to 0.27
    to 0.86.

    ## What to do

    Halve the learning rate, or let it decay. Where the period is that of an epoch, shuffle the data.

    ## Known false alarms

    The same few batches in the same order have a period of their number. Where training works, and even the highs of the swing
    lie below the start, the finding is an aside.

    ## References

    J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural Networks Typically Occurs at the Edge
    of Stability", 2021.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)
    least_steps: ClassVar[int] = 100

    window: int = 200  # losses
    least_swing: float = 0.3  # of their level
    least_peak: float = 0.5  # of the autocorrelation, at the period
    most_trough: float = -0.3  # of it, at a lag before
    most_rate_change: float = 1.5  # of the learning rate within the window
    far_below: float = 0.9  # of the start, under which even the swing's high is where training works

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = timeline.loss[-self.window :]
        if len(losses) < self.least_steps or not np.isfinite(losses).all() or timeline.onset is not None:
            return
        if timeline.several_objectives or timeline.converged or timeline.progressing or self._rate_varies(timeline):
            return
        low, level, high = (middles.percentile(losses, share) for share in (10, 50, 90))
        if not level > 0 or high - low < self.least_swing * level:
            return
        period = self._period(losses)
        if period is not None:
            yield self._hit(timeline, (low, level, high), period, len(losses))

    def _rate_varies(self, timeline: Timeline) -> bool:
        rates = timeline.pulse("learning_rate")[-self.window :]
        rates = rates[np.isfinite(rates) & (rates > 0)]
        return len(rates) > 0 and bool(rates.max() >= self.most_rate_change * rates.min())

    def _period(self, losses: Floats) -> int | None:
        """The lag at which the losses are like themselves again, after one at which they are opposite; None without one."""
        correlation = _autocorrelation(losses)[: len(losses) // 3 + 1]
        opposite = np.minimum.accumulate(correlation) <= self.most_trough
        again = np.where(opposite, correlation, -1.0)
        period = int(np.argmax(again))
        return period if again[period] >= self.least_peak else None

    def _hit(self, timeline: Timeline, levels: tuple[float, float, float], period: int, count: int) -> Hit:
        low, level, high = levels
        start = min(timeline.first_loss, timeline.baseline)
        return Hit(
            modules=(),
            first_step=int(timeline.loss_steps[-count]),
            last_step=int(timeline.loss_steps[-1]),
            evidence={"low": plain(low), "loss": plain(level), "high": plain(high), "period": period},
            message=(
                f"In the last {count} steps the loss swings between {low:.3g} and {high:.3g} with a period of {period} steps, "
                "and does not come down."
            ),
            remedy=_remedy(timeline),
            severity=Severity.INFO if works(timeline) and high < self.far_below * start else Severity.WARNING,
            strength=1.0,
        )


def _autocorrelation(losses: Floats) -> Floats:
    """Of the losses less their straight trend, at each lag from 0; zeros where they do not vary."""
    index = np.arange(len(losses)) - (len(losses) - 1) / 2
    rest = losses - losses.mean()
    rest = rest - index * (index @ rest) / (index @ index)
    spectrum = np.fft.rfft(rest, 2 * len(rest))
    products = np.fft.irfft(np.abs(spectrum) ** 2)[: len(rest)] / np.arange(len(rest), 0, -1)
    return products / products[0] if products[0] > 0 else np.zeros(len(rest))


def _remedy(timeline: Timeline) -> Remedy:
    """No code: that it is the rate and not the order of the data, which swings in the same way, no number here tells."""
    rate = usual_rate(timeline)
    by = f", from {rate:g} to {rate / 2:g}" if rate > 0 else ""
    return Remedy(f"Halve the learning rate{by}; where the period is that of an epoch, shuffle the data.")
