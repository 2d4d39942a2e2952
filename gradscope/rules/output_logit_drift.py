"""Output logits that drift away together, which the loss does not see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import plain
from gradscope.evidence import before_onset
from gradscope.evidence import works
from gradscope.objective import given
from gradscope.objective import output_module
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # how far apart the numbers above 1 are
REMEDY = Remedy(
    "Add a z-loss, 0.0001 times the mean of log² Z, which pulls the logits back to where log Z is zero.",
    "loss = loss + 1e-4 * torch.logsumexp(output, dim=1).square().mean()  # output: the logits",
)


@final
@dataclass(frozen=True)
class OutputLogitDrift(Rule):
    """The logits of the output drift away from zero, by a constant that the cross-entropy does not notice.

    ## What it does

    Looks at the mean magnitude of log Z, the logsumexp of the logits. It speaks where that is above ten times ln C for C
    classes in the last five readings or more, over 50 steps or more, or in the last three, each higher than the one before,
    over 100 steps or more, and at least twice what it was at the start.

    ## Why it is bad

    Cross-entropy depends on differences of logits alone; their common part wanders freely. Far from zero, float16 and
    bfloat16 round the differences away, and the softmax becomes unstable: large language models diverge after it.

    ## How it is told apart

    - Logits that are large from the start come from initial weights or inputs that are too large, and are not a drift.
    - Where a learning rate is too high, logits grow within a few steps, and that rule explains this finding.
    - A loss below zero holds more than a cross-entropy, an energy that is pushed down, say, and its fall says nothing of
      what is learned. There the finding is a warning where the numbers are too coarse for the logits: log Z times the
      distance of two numbers above 1 (0.0078 in bfloat16) comes to 2 or more, in the median of the last five readings, those
      of the first half of the run left out: on a budget they are few and far between.
    - A classifier that is sure of its answers has large logits as well: where training has converged nothing is said, and
      where it works the finding is for information. Nor is anything said where a training that had converged blows up later:
      an MLP whose rate a schedule raised fifty times at step 100 had been above ten times ln C from step 36 or 44 on (two
      of three seeds), at under a thousandth of a constant prediction's loss, and it was the rate that blew it up.

    Measured: a classifier of digits in bfloat16 that was to lower the free energy -log Z of its samples without a margin had
    a log Z of 2000 after 300 steps and a cross-entropy of 3.1, which had been at 0.1; with a z-loss 24 and 0.00.

    ## What to do

    Add a z-loss, 0.0001 times the mean of log² Z, to the cross-entropy; or weight decay on the last layer.

    ## Known false alarms

    None known at warning; models with few classes reach large logits when they overfit.

    ## References

    A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5. M. Wortsman et al., "Small-scale
    proxies for large-scale Transformer training instabilities", 2023, section 3.1.2.
    """

    family: ClassVar[str] = "transformer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("loss.log_partition", "fact.loss")
    least_steps: ClassVar[int] = 50
    explains: ClassVar[tuple[str, ...]] = (
        "loss-divergence", "gradient-spikes", "fp16-overflow", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss",
        "loss-plateau",
    )  # fmt: skip

    high: float = 10.0  # times ln C
    growth: float = 2.0  # times the start
    least_samples: int = 5  # the last ones
    lasting_steps: int = 50  # that they span
    few_samples: int = 3  # the last ones, where each is higher than the one before
    few_steps: int = 100  # that these span
    converged: float = 0.05  # of the best constant prediction's loss, before a blow-up
    coarse: float = 2.0  # distance of two numbers of log Z's size

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = [loss for loss in timeline.info.wiring.losses if loss.classes] if timeline.info.wiring else []
        classes = max((loss.classes or 0 for loss in losses), default=0)
        if classes < 2 or timeline.several_objectives or (self._sure_of_its_answers(timeline) and not self._rounded(timeline)):
            return
        drift = timeline.column("loss.log_partition")[before_onset(timeline)].astype(np.float64)
        steps = timeline.steps[before_onset(timeline)]
        for site in range(drift.shape[1]):
            rows = np.flatnonzero(np.isfinite(drift[:, site]))
            below = np.flatnonzero(drift[rows, site] <= self.high * math.log(classes))
            above = rows[below[-1] + 1 :] if len(below) else rows
            if not self._lasts(steps[above], drift[above, site]):
                continue
            first, last = float(drift[rows[0], site]), float(drift[rows[-1], site])
            if last >= self.growth * first:
                yield self._hit(timeline, classes, (first, last), (int(steps[above[0]]), int(steps[above[-1]])))
                return

    def _lasts(self, steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> bool:
        """Whether enough readings, over enough steps, are high; on a budget of time there may be few, but they are rising."""
        span = int(steps[-1] - steps[0]) if len(steps) else 0
        rising = bool((np.diff(values) > 0).all())
        few = rising and len(steps) >= self.few_samples and span >= self.few_steps
        return few or (len(steps) >= self.least_samples and span >= self.lasting_steps)

    def _sure_of_its_answers(self, timeline: Timeline) -> bool:
        """Whether training had converged, before it blew up where it did."""
        if timeline.onset is None:
            return timeline.converged
        losses = timeline.loss[timeline.loss_steps < timeline.onset]
        return timeline.baseline > 0 and median_of(losses[-max(len(losses) // 10, 3) :]) < self.converged * timeline.baseline

    def _rounded(self, timeline: Timeline) -> bool:
        """Whether numbers of the logits' size lie too far apart, in a loss that holds more than their cross-entropy."""
        module = timeline.modules.get(next(iter(output_module(timeline)), ""))
        epsilon = EPSILON.get(str(module.dtype), 0.0) if module is not None else 0.0
        late = before_onset(timeline) & (timeline.steps >= timeline.step_count // 2)
        drift = given(timeline, "log_partition")[late]
        return timeline.last_loss < 0 and median_of(drift[np.isfinite(drift)][-self.least_samples :]) * epsilon >= self.coarse

    def _hit(self, timeline: Timeline, classes: int, values: tuple[float, float], steps: tuple[int, int]) -> Hit:
        first, last = values
        return Hit(
            modules=(),
            first_step=steps[0],
            last_step=steps[1],
            evidence={"log_partition": plain(last), "first_log_partition": plain(first), "uniform": plain(math.log(classes))},
            message=(
                f"log Z, the logsumexp of the {classes} logits, drifted from {first:.3g} to {last:.3g} by step {steps[1]}, "
                f"{last / math.log(classes):.3g} times the ln {classes} = {math.log(classes):.3g} of logits that are all zero."
            ),
            remedy=REMEDY,
            severity=self._severity(timeline),
            strength=3.0,
        )

    def _severity(self, timeline: Timeline) -> Severity:
        fine = (works(timeline) or timeline.progressing) and not self._rounded(timeline)
        return Severity.INFO if fine else Severity.WARNING
