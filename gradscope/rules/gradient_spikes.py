"""Single steps whose gradient is far larger than those before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import calm_clipping
from gradscope.evidence import works
from gradscope.evidence import worse_since
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import largest_before
from gradscope.trends import lasting
from gradscope.trends import median_of
from gradscope.trends import spike_scores


@final
@dataclass(frozen=True)
class GradientSpikes(Rule):
    """In single steps the gradient norm jumps far above that of the steps before.

    ## What it does

    Compares the logarithm of each step's gradient norm with the median of the 30 steps before, in units of their spread (the
    median absolute deviation, 0.1 at least). It speaks above 8, or above 6 twice in five steps; and wherever a norm is ten
    times the largest of the 30 steps before. Spikes within 20 steps of one another count as one.

    ## Why it is bad

    One such step can undo hundreds: with plain SGD it is as much larger as the gradient is, and Adam's second moment makes the
    steps after it too small for 1 / (1 - beta2) steps.

    ## How it is told apart

    A norm that grows steadily is `exploding-gradients`. A spike that loss and weights take without harm is for information:
    the last, smaller batch of an epoch makes one each time. It is a warning where the loss is half as high again in the 20
    steps after it, by a tenth of its start or more, and has not come back since; where the training blows up within 50; or
    where spikes return in a training that does not learn. It is none where the training has converged all the same.

    ## What to do

    Clip the gradient at a norm that ordinary steps do not reach; the code below has the 90th percentile of the last 200. Look
    at the batch of that step.

    ## Known false alarms

    Measured on 26 healthy small trainings of 200 steps each the largest score was 4.6, and on 71 others, three runs each, 9.7
    in a GPT whose norms hardly vary; none was more than 2.9 times the largest of the 30 steps before. A batch with one
    corrupted sample had a score of 28; where norms varied by themselves it had 7.3 to 7.9, and 900 to 1,500 times the largest.
    A recurrent net that learns well leapt from 0.012 to 0.04, where it began at 0.69: by less than a tenth of the start.
    A plain net of 20 layers went from 0.2 to 4.6 at a leap, was back within 50 steps, and came to a tenth of a constant's loss.

    ## References

    R. Pascanu et al., "On the difficulty of training recurrent neural networks" (ICML 2013), section 3.2. The PaLM report
    (2022), section 5.1, on spikes that come from batch and state together.
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.gradient_norm",)
    least_steps: ClassVar[int] = 11

    score: float = 8.0  # one step above it is a spike
    repeated_score: float = 6.0  # two of five steps above it are
    leap: float = 10.0  # times the largest norm of the steps before: it is one, however much the norms vary
    same_event: int = 20  # steps within which spikes are one event
    harm_steps: int = 20  # before and after, whose losses are compared
    harm: float = 1.5  # times the median loss before
    least_harm: float = 0.1  # of the loss at the start, by which it is higher
    blow_up_steps: int = 50  # within which a blow-up is laid to the spike
    events: int = 3  # that make them a habit

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        norms = timeline.gradient_norms
        known = np.flatnonzero(np.isfinite(norms))
        scores = spike_scores(norms[known])
        leaps = norms[known] > self.leap * largest_before(norms[known])
        spikes = (scores > self.score) | _in_company(scores > self.repeated_score) | leaps
        if spikes.any():
            steps = timeline.pulse("step")[known].astype(np.int64)
            yield self._hit(timeline, steps, norms[known], scores, np.flatnonzero(spikes))

    def _hit(
        self,
        timeline: Timeline,
        steps: npt.NDArray[np.int64],
        norms: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        spikes: Indices,
    ) -> Hit:
        worst = int(spikes[np.argmax(scores[spikes])])
        starts = steps[spikes][np.diff(steps[spikes], prepend=-self.same_event - 1) > self.same_event]
        usual = median_of(norms[max(0, worst - 30) : worst])
        harmful = any(self._harmed(timeline, int(step)) for step in starts)
        return Hit(
            modules=(),
            first_step=int(steps[spikes[0]]),
            last_step=int(steps[spikes[-1]]),
            evidence={
                "score": float(scores[worst]),
                "step": int(steps[worst]),
                "gradient_norm": float(norms[worst]),
                "usual_gradient_norm": usual,
                "events": len(starts),
                "harm": harmful,
            },
            message=(
                f"At step {steps[worst]} the gradient norm jumped to {norms[worst]:.3g}, {norms[worst] / usual:.3g} times the "
                f"median of the 30 steps before ({len(starts)} such event{'s' * (len(starts) > 1)} in "
                f"{timeline.step_count} steps)."
            ),
            remedy=_remedy(timeline),
            severity=self._severity(timeline, harmful, len(starts)),
            strength=3.0,
        )

    def _harmed(self, timeline: Timeline, step: int) -> bool:
        """Whether the loss got worse with the spike and has not come back since, or the training blew up."""
        if timeline.onset is not None and step <= timeline.onset <= step + self.blow_up_steps:
            return True
        return worse_since(timeline, step - 1, step, steps=self.harm_steps, times=self.harm, least=self.least_harm)

    def _severity(self, timeline: Timeline, harmful: bool, events: int) -> Severity:
        if timeline.several_objectives or timeline.converged:
            return Severity.INFO
        habit = events >= self.events and not works(timeline)
        return Severity.WARNING if harmful or habit else Severity.INFO


def _in_company(high: Mask) -> Mask:
    """Where a step is high and another within five steps is, too: the first of a pair counts as well as the last."""
    behind = lasting(high, least=2, window=5)
    return behind | lasting(high[::-1], least=2, window=5)[::-1]


def _remedy(timeline: Timeline) -> Remedy:
    clip = calm_clipping(timeline)
    if clip is None:
        return Remedy("Look at the batch of that step; too few steps came before it to say at which norm to clip.")
    return Remedy(f"{clip.text} Look at the batch of that step.", clip.code)
