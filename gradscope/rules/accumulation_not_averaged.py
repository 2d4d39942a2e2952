"""Accumulated gradients that are summed where their mean was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import gravity
from gradscope.evidence import works
from gradscope.objective import adapts
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class AccumulationNotAveraged(Rule):
    """Gradients of several micro-batches are added up and not averaged, so each step is that many times too long.

    ## What it does

    Looks at steps that come after k > 1 backward calls, each on a forward pass of its own through the same loss, which is a
    mean. The autograd graph tells by what factor the loss was multiplied before `backward()`: 1/k averages, 1 adds up. It
    speaks where that factor was 1 in two sampled steps or more.

    ## Why it is bad

    The gradient is k times that of the large batch that accumulation stands in for, so the learning rate is in effect k
    times as high. What is tuned for one number of micro-batches breaks with another.

    ## How it is told apart

    - Several losses of different kinds, each with its own backward call, are different terms that are meant to be added, and
      so are several losses of one forward pass.
    - Optimizers that divide by the gradient's size (Adam and its kin, RMSprop, Adagrad) undo a constant factor: for
      information.
    - Sharpness-aware minimisation also has two forward and two backward passes a step, but moves the weights between steps
      and clears the gradient; weights that change outside the optimizer silence the rule.
    - GANs call backward twice for their discriminator, on true and on made samples; with several models or optimizers in
      the loop nothing is said.
    - A learning rate that was chosen with the factor in it does no harm. The finding is a warning only where the factor
      alone can be the reason of a failure: the training does not work, it blew up, stands still or took a first step of a
      tenth of the weights' norm or more (or ten, in the median), and the first step divided by k is shorter than a tenth.

    Momentum makes the first step the shortest: with 0.9 and twelve pieces the median matrix moved by 8 to 11 % in the first
    step and by 19 to 21 % in the median of the first ten (three seeds), then by 0.8 to 130 times its norm. The loss came back
    to that of a constant and stayed there, most units dead.

    ## What to do

    Divide the loss by the number of micro-batches before `backward()`; with plain SGD dividing the learning rate does the
    same.

    ## Known false alarms

    Two terms of the same kind (two squared errors), each with a forward and a backward pass of its own.

    ## References

    PyTorch documentation, "Automatic Mixed Precision examples", section "Gradient accumulation". Token-weighted losses are
    averaged by their number of tokens instead: huggingface/transformers#34191.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("loss.weight", "step.forwards", "pulse.backwards", "fact.loss", "fact.optimizer")
    least_steps: ClassVar[int] = 2
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "gradient-spikes", "loss-divergence", "oscillating-loss", "loss-plateau",
        "dead-units", "saturated-units", "activation-growth", "collapsed-output", "nonfinite-origin", "nonfinite-gradients",
        "nonfinite-loss",
    )  # fmt: skip

    least_samples: int = 2  # sampled steps
    slack: float = 0.01  # by which the loss's factor may differ from 1
    first_steps: int = 10  # sampled ones, whose length counts
    large_step: float = 0.1  # update ratio from which a step is too long

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not len(timeline.frames) or not self._is_one_mean(timeline) or timeline.several_objectives or _perturbed(timeline):
            return
        count = _backwards(timeline)
        weight = timeline.column("loss.weight")
        whole = (np.abs(weight - 1) <= self.slack) | np.isnan(weight)
        rows = np.flatnonzero(
            (count > 1)
            & (timeline.column("step.forwards")[:, 0] == count)
            & whole.all(axis=1)
            & np.isfinite(weight).any(axis=1)
        )
        if len(rows) >= self.least_samples:
            yield self._hit(timeline, rows, round(median_of(count[rows])))

    def _is_one_mean(self, timeline: Timeline) -> bool:
        """Whether all backward calls start from the same loss, and it is a mean."""
        losses = timeline.info.wiring.losses if timeline.info.wiring else ()
        return len({(loss.kind, loss.classes) for loss in losses}) == 1 and all(loss.reduction == "mean" for loss in losses)

    def _hit(self, timeline: Timeline, rows: np.ndarray, count: int) -> Hit:
        sizes = step_sizes(timeline)
        size = float(next(iter(sizes[np.isfinite(sizes)]), np.nan))
        return Hit(
            modules=(),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"backwards": count, "factor": 1.0, "expected_factor": plain(1 / count), "update_ratio": plain(size)},
            message=(
                f"Each step adds up the gradients of {count} backward() calls, each on the whole mean loss (factor 1, not "
                f"1/{count}): the steps are {count} times as long as those of one large batch."
            ),
            remedy=Remedy(
                f"Divide the loss by {count} before backward().",
                f"loss = loss / {count}  # the number of backward() calls for each optimizer.step()\nloss.backward()",
            ),
            severity=self._severity(timeline, size, count),
            strength=4.0,
        )

    def _severity(self, timeline: Timeline, size: float, count: int) -> Severity:
        sufficient = not adapts(timeline) and size / count < self.large_step
        early = median_of(step_sizes(timeline)[: self.first_steps])  # momentum makes the first one the shortest
        long = max(size, early) >= self.large_step
        failing = gravity(timeline) is Severity.CRITICAL or (long and not works(timeline))
        return Severity.WARNING if sufficient and failing else Severity.INFO


def _backwards(timeline: Timeline) -> np.ndarray:
    """Backward calls of each sampled step; NaN where its pulse is missing."""
    known = {int(step): count for step, count in zip(timeline.pulse("step"), timeline.pulse("backwards"), strict=True)}
    return np.array([known.get(int(step), np.nan) for step in timeline.steps], dtype=np.float64)


def _perturbed(timeline: Timeline) -> bool:
    """Whether weights change between one step's end and the next step, as where they are moved for a trial and back."""
    changes = timeline.column("update.outside_change")
    return bool((changes[np.isfinite(changes)] > 0).any())
