"""Labels that nothing in the inputs seems to tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import warming_up
from gradscope.objective import chance
from gradscope.objective import each
from gradscope.objective import given
from gradscope.objective import label_mixing
from gradscope.objective import loss_weight
from gradscope.objective import one_batch
from gradscope.objective import sole_loss
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class LabelsUnrelated(Rule):
    """All parts of the training seem to work and the model learns nothing, as if labels did not belong to inputs.

    ## What it does

    Waits for 200 steps. It asks the question where the loss has stood within 3 % of the entropy of the labels (the variance
    of the targets, within what the batches' own scatter explains, 10 % at most) for 100 losses, while everything else is as
    it should be: the inputs differ and are of ordinary scale, the signal reaches the output, the gradient reaches every
    parameter, the optimizer holds them all, and steps are of ordinary size. A loss that still comes down towards a constant
    prediction's, and is not below it, counts as one that stands, and after 300 steps so does one that creeps: what is learned
    by heart of labels at random comes off slowly.

    ## Why it is bad

    Labels that were shuffled apart from their inputs, a target column that is the wrong one, or an index that is off by one
    leave nothing to learn but how often each class occurs.

    ## How it is told apart

    It cannot be told from a task that is too hard, or that has no answer in its inputs: this is a question, and no more than
    an aside. Whatever else could hold the loss where it is has to be in order first.

    ## What to do

    Train a copy on one batch alone for 200 steps. If its loss falls, the model can learn and the labels are to be doubted:
    look at ten inputs beside their labels. If it does not, model and loss are to be doubted.

    ## Known false alarms

    Markets, noise, and tasks that take thousands of steps before anything shows (parities, long memories).

    ## References

    A. Karpathy, "A Recipe for Training Neural Networks", 2019: "become one with the data", "overfit one batch".
    """

    family: ClassVar[str] = "data"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss", "loss.input_signal", "update.ratio", "pulse.loss")
    least_steps: ClassVar[int] = 200
    explains: ClassVar[tuple[str, ...]] = ("loss-plateau",)

    slow: int = 300  # steps after which one that has not left a constant prediction's has not learned, though it creeps
    near: float = 0.03  # of the loss of a constant prediction
    most_near: float = 0.1  # the same, where losses scatter
    deviations: float = 2.5  # of the medians compared (of 1.25 standard errors each), that chance explains
    window: int = 100  # losses
    least_step: float = 1e-4  # median update ratio
    most_step: float = 0.05  # median update ratio
    least_signal: float = 0.1  # of the output's rms, over the batch
    least_input: float = 0.01  # rms
    most_input: float = 10.0  # rms
    least_mixing: float = 0.5  # of the entropy that shuffled batches have

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss = sole_loss(timeline)
        if loss is None or loss.kind not in ("cross_entropy", "mse") or loss.producer is not None or warming_up(timeline):
            return
        level = chance(timeline, loss)
        recent = timeline.loss[-self.window :]
        if not level > 0 or len(recent) < self.window or not np.isfinite(timeline.loss).all():
            return
        over = [each(timeline, loss, median_of(part)) / level - 1 for part in np.array_split(recent, 2)]
        above = over[-1] > 0  # down to a constant prediction's loss there is nothing to learn
        learns = timeline.progressing and not above and timeline.step_count < self.slow
        near = self._near(timeline, recent / level)
        stands = all(abs(share) < near for share in over) and not learns
        if stands and timeline.onset is None and self._in_order(timeline, loss):
            yield self._hit(timeline, loss, level)

    def _near(self, timeline: Timeline, recent: npt.NDArray[np.float64]) -> float:
        """How far from a constant prediction's counts as there: batches of a regression scatter, and so do their variances."""
        halves = np.std(recent) / (len(recent) // 2) ** 0.5
        variances = given(timeline, "target_rms") ** 2 - given(timeline, "target_mean") ** 2
        known = variances[np.isfinite(variances)]
        level = np.std(known) / middles.median(known) / len(known) ** 0.5 if len(known) and middles.median(known) > 0 else 0.0
        return float(np.clip(self.deviations * np.hypot(halves, level), self.near, self.most_near))

    def _in_order(self, timeline: Timeline, loss: LossInfo) -> bool:
        return (
            self._least_step_size(timeline)
            and self._inputs_fine(timeline)
            and self._output_varies(timeline)
            and _wired(timeline)
            and abs(loss_weight(timeline) - 1) < 0.01
            and not label_mixing(timeline, loss) < self.least_mixing
        )

    def _least_step_size(self, timeline: Timeline) -> bool:
        sizes = step_sizes(timeline)
        size = median_of(sizes[len(sizes) // 2 :])
        return self.least_step <= size <= self.most_step

    def _inputs_fine(self, timeline: Timeline) -> bool:
        rms, signal = timeline.column("input.rms"), timeline.column("input.signal")
        known = np.isfinite(rms)
        scaled = (rms[known] > self.least_input) & (rms[known] < self.most_input)
        varies = not np.isfinite(signal).any() or bool((signal > 0).any())
        return bool(scaled.all()) and varies and not (timeline.column("input.repeated") > 0).any()

    def _output_varies(self, timeline: Timeline) -> bool:
        rms, signal = given(timeline, "input_rms"), given(timeline, "input_signal")
        half = len(rms) // 2
        return median_of(signal[half:]) > self.least_signal * median_of(rms[half:])

    def _hit(self, timeline: Timeline, loss: LossInfo, level: float) -> Hit:
        last = each(timeline, loss, timeline.last_loss)
        name = "the entropy of the labels" if loss.kind == "cross_entropy" else "the variance of the targets"
        return Hit(
            modules=(),
            first_step=int(timeline.loss_steps[-self.window]),
            last_step=int(timeline.loss_steps[-1]),
            evidence={"loss": plain(last), "chance": plain(level), "steps": timeline.step_count},
            message=(
                f"Do the labels belong to the inputs? After {timeline.step_count} steps the loss is {last:.4g}, {name} is "
                f"{level:.4g}, and signal, gradients and steps are in order; a task that is too hard would look the same."
            ),
            remedy=_remedy(loss),
            severity=Severity.INFO,
            strength=1.0,
        )


def _wired(timeline: Timeline) -> bool:
    """Whether the gradient reaches every parameter, the optimizer holds it, and nothing else writes to it."""
    wiring = timeline.info.wiring
    if wiring is None or wiring.cuts or wiring.broadcasts or not all(timeline.trained[_trainable(timeline)]):
        return False
    norms = timeline.column("weight_gradient.norm")[:, timeline.trained]
    moved = (norms > 0).any(axis=0).all()
    carried = (timeline.column("weight_gradient.carried") > 0).any()
    written = (timeline.column("update.outside_change") > 1e-6).any()
    evaluating = (timeline.column("step.evaluating") >= 0.95).any()
    clipped = timeline.column("step.clip_norm") > 10 * timeline.column("step.clip_limit")
    return bool(moved and not carried and not written and not evaluating and not np.mean(clipped) > 0.5)


def _trainable(timeline: Timeline) -> np.ndarray:
    known = (timeline.parameters.get(site.path) for site in timeline.schema.parameters)
    return np.array([bool(p and p.trainable) for p in known], dtype=bool)


def _remedy(loss: LossInfo) -> Remedy:
    return Remedy(
        "Train a copy on one batch alone. If its loss falls, look at inputs beside their labels; if not, at model and loss.",
        one_batch(loss),
    )
