"""A loss that stays at the level of a constant prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.evidence import warming_up
from gradscope.objective import batch_variances
from gradscope.objective import each
from gradscope.objective import one_batch
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import NORMAL_SPREAD
from gradscope.trends import falls
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class LossPlateau(Rule):
    """The loss does not go down: it stays where a constant prediction would be.

    ## What it does

    Waits for 100 losses at the full learning rate. It speaks where there is no falling trend in the last 200 (Mann-Kendall)
    and no new minimum, and the loss is still at 80 % or more of what the best constant prediction gives (ln C for C classes,
    the variance of the targets). A loss that has come down from far above to that level counts from 95 %; where it stays there,
    not below it and at most a quarter above, the way there is no progress, and the trend is that of the last 100. Where the
    level is not known, the loss has to be within 2 % of where it started, after 200 steps.

    ## Why it is bad

    At that level the model takes nothing from its input: it has learned the mean of the targets at best.

    ## How it is told apart

    A loss that has reached its end lies far below a constant prediction. Slow progress is a trend, and counts as progress. In
    a warm-up the rate is not there yet. Losses of GANs and of actors and critics, and losses that go below zero, measure no
    distance to a goal, and are not judged. Of several cross-entropies that are added the level is the sum; of several squared
    errors it is not known, but where they are the parts of one mean: an autoencoder with a codebook stood at 1.21 in all while
    its reconstruction, whose constant prediction has 1.0, came down. Of a squared error that a step computes several times, as
    parts of one mean (tasks of a meta-learner, pieces of a batch), the level is the mean over all of them: the first of four
    tasks had a variance of 0.23 to 2.0 by its draw, the four together 0.9 to 1.3, and a meta-learner with a loss of 0.93 was
    taken for one that stands still, above 0.52 (six seeds).

    A squared error scatters with the targets of its batch, and is compared with their variance where that is known of ten
    batches: below four fifths of it the model has learned, and so it has where the ratio falls and is below 95 %. A regression
    on counts was at 0.95 of its batches' variance, then 0.88 and 0.81, while its loss showed no trend within 130 steps. Where
    the tails of the targets are heavy there is no level: the variances of 90 % and 10 % of the batches lay 11 to 76 times
    apart with Student's t of 1.5 degrees of freedom, and 240 to 430 times where 2 % of the targets were absurd (eight seeds
    each), but 1.0 to 2.2 times in ordinary regressions on batches of 32 or more. Batches of eight normal targets have 4.2. Few
    batches' may be alike by chance; so do the losses of the last 200 steps lie apart then, 10 to 53 times, else by 1.8.

    No trend says little where losses scatter: it speaks once three standard errors of the difference between the halves of
    the losses are less than a fifth of their level, which takes 130 losses where their spread is 38 % of it, and 200 at 47 %.
    Over tasks of ten samples each it was 42 to 50 %: such a meta-learner came from 1.24 to 0.92 in 120 steps without a trend by
    Mann-Kendall, and to 0.7 in 200.

    ## What to do

    Look at the cause that is named with it. Without one: take one batch and train on it alone for 200 steps. If the loss
    does not fall, model and loss are not joined as they should be; if it does, look at labels, data order and rate.

    ## Known false alarms

    Tasks with little to learn (markets, noise labels), and nets that need longer than 100 steps to leave the plateau at which
    they start. By its loss alone such a training cannot be told from one that fails: a regression whose targets were nine
    tenths noise stood at 0.88, above its first batch's variance of 0.80, and had learned most of what there was to learn. So
    the finding is a warning, however long it lasts; a cause that explains it may be critical.

    ## References

    Measured: a contrastive loss over pairs that do not belong together came down from 5.7 to 4.16, ln 64, in some 20 steps, and
    stayed there for 180. H. B. Mann, "Nonparametric tests against trend" (1945). SageMaker Debugger's rules, thresholds as
    documented, alarm on 24 of 26 healthy small trainings; without its LossNotDecreasing (0.1 % in 10 steps, with none of these
    gates) on 7.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)
    least_steps: ClassVar[int] = 100

    level: float = 0.8  # of the loss of the best constant prediction
    level_from_above: float = 0.95  # the same, where the loss came down to it
    guessed: float = 0.99  # of the same, above which the way down to it is not counted as a trend
    alike: float = 3.0  # times which the variance of most batches and of the first may differ, for it to be a level
    drift: float = 0.02  # from where it started, where the level is not known
    scattered: float = 6.0  # times which batches' variances lie apart (tenth to ninetieth percentile), for none to be a level
    least_batches: int = 10  # whose variance is known, for losses to be compared with it
    fall: float = 0.2  # of the loss, between the halves of those looked at, that chance must not hide
    deviations: float = 3.0  # standard errors of the difference between the halves, that chance may come to
    window: int = 100  # losses without progress
    blind_window: int = 200  # the same, where the level is not known

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if timeline.several_objectives or timeline.converged or warming_up(timeline) or self._tells_nothing(timeline):
            return
        full = timeline.loss_steps >= _full_rate_from(timeline)
        flat = timeline.loss[full]
        if len(flat) < self.window or not np.isfinite(flat).all() or timeline.progressing:
            return
        recent = flat[-self._looked_back(timeline) :]
        if falls(recent) or self._hides_falls(recent):
            return
        reference = self._reference(timeline, flat)
        if reference is not None:
            since = int(timeline.loss_steps[full][-self.window if timeline.learning else 0])
            yield self._hit(timeline, flat, reference, since)

    def _hides_falls(self, losses: npt.NDArray[np.float64]) -> bool:
        """Whether losses scatter so that between their halves a fall worth the name would not show beside chance."""
        level = median_of(losses)
        spread = NORMAL_SPREAD * median_of(np.abs(losses - level))
        return bool(self.deviations * spread * math.sqrt(4 / len(losses)) > self.fall * abs(level))

    def _looked_back(self, timeline: Timeline) -> int:
        """Losses that must show no trend; fewer where it has come down to a constant prediction's, which is no progress."""
        baseline = timeline.known_baseline
        if baseline is None or not timeline.learning:
            return self.blind_window
        there = self.guessed * baseline <= timeline.last_loss <= baseline / self.level
        return self.window if there else self.blind_window

    def _tells_nothing(self, timeline: Timeline) -> bool:
        """Whether squared errors are below a constant's on their own batches, or scatter with these so that none is a level."""
        loss, variances, steps = sole_loss(timeline), batch_variances(timeline), timeline.steps
        known = np.isfinite(variances) & (variances > 0) & np.isin(steps, timeline.loss_steps)
        if known.sum() < self.least_batches:
            return False
        if self._scatters(variances[known]) or self._scatters(timeline.loss[-self.blind_window :]):
            return True
        left = timeline.loss[np.isin(timeline.loss_steps, steps[known])] / variances[known]
        left *= each(timeline, loss, 1.0) if loss is not None else 1.0
        recent = left[steps[known] >= timeline.loss_steps[-self.blind_window :][0]]
        now = median_of(recent[-self.least_batches :]) if len(recent) >= self.least_batches else np.inf
        return bool(now < self.level or (now < self.level_from_above and falls(recent)))

    def _scatters(self, values: npt.NDArray[np.float64]) -> bool:
        known = values[np.isfinite(values)]
        low, high = np.quantile(known, (0.1, 0.9)) if len(known) else (np.nan, np.nan)
        return bool(high > self.scattered * low)

    def _reference(self, timeline: Timeline, flat: npt.NDArray[np.float64]) -> tuple[str, float] | None:
        """The level that the loss has not left, and what it is; None where it has."""
        baseline = None if self._varies(timeline) else timeline.known_baseline
        if baseline is not None:
            least = self.level_from_above if timeline.learning else self.level
            return ("the best constant prediction", baseline) if timeline.last_loss >= least * baseline else None
        start = median_of(flat[:20])
        near = abs(timeline.last_loss - start) <= self.drift * abs(start)
        return ("its start", start) if near and len(flat) >= self.blind_window and flat.min() >= 0 else None

    def _varies(self, timeline: Timeline) -> bool:
        """Whether the targets' variance in the first batch is not that of most batches."""
        loss = sole_loss(timeline)
        known = targets(timeline) if loss is not None and loss.kind == "mse" else None
        if loss is None or known is None or not loss.baseline:
            return False
        return not 1 / self.alike <= known.std**2 / loss.baseline <= self.alike

    def _hit(self, timeline: Timeline, flat: npt.NDArray[np.float64], reference: tuple[str, float], since: int) -> Hit:
        name, value = reference
        return Hit(
            modules=(),
            first_step=since,
            last_step=int(timeline.loss_steps[-1]),
            evidence={"loss": timeline.last_loss, "reference": name, "reference_loss": value, "steps": len(flat)},
            message=(
                f"The loss stays at {timeline.last_loss:.4g}, while {name} has {value:.4g}, and shows no trend in the last "
                f"{min(len(flat), self._looked_back(timeline))} steps."
            ),
            remedy=Remedy(
                text="Train on one batch alone for 200 steps: if its loss does not fall, model and loss are not joined.",
                code=one_batch(sole_loss(timeline)),
            ),
            severity=Severity.WARNING,
            strength=1.0,
        )


def _full_rate_from(timeline: Timeline) -> int:
    """The first step whose learning rate is the highest of the run, but for a hundredth: where a warm-up ends."""
    rates = timeline.pulse("learning_rate")
    known = np.isfinite(rates)
    return int(timeline.pulse("step")[np.argmax(known & (rates >= 0.99 * rates[known].max()))]) if known.any() else 0
