"""Validation of a model that was left in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import batch_norms
from gradscope.evidence import named
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class TrainModeEval(Rule):
    """Between training steps the model runs without gradients and still in training mode, as in a validation without eval().

    ## What it does

    Counts forward passes of the model without gradients between one step and the next, in which a dropout or batch norm was
    in training mode. It speaks where sampled steps show them twice or more, now and then: a validation that comes at the end
    of each epoch.

    ## Why it is bad

    Each such pass moves the running statistics of the batch norms towards the validation data, which the model must not see;
    and it normalises by the validation batch and drops units at random, so the numbers of the validation are wrong.

    ## How it is told apart

    - Passes before most steps belong to the step: a generator that makes samples for its discriminator, an agent that acts,
      pseudo-labels. Above half of the sampled steps nothing is said, nor where several models or optimizers play.
    - One pass before the first step is a test of shapes or a lazy initialisation, and does not count.
    - Dropout that stays on without gradients may be meant (Monte Carlo dropout) and spoils no statistics: in a model without
      batch norm the finding is for information.
    - A target network or a teacher is another module, and its passes are not the model's.

    Training itself takes no visible harm, so this is never more than a warning.

    ## What to do

    Call `model.eval()` before the validation and `model.train()` after it.

    ## Known false alarms

    Passes whose purpose is to estimate the running statistics again, where they come several times in a training
    (`torch.optim.swa_utils.update_bn` after each epoch).

    ## References

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, section 3.1. Y. Gal and Z. Ghahramani, "Dropout as a Bayesian
    Approximation", 2016.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("step.idle_training_forwards",)
    least_steps: ClassVar[int] = 3

    least_samples: int = 2  # sampled steps with such passes before them, the first step left out
    most_share: float = 0.5  # of the sampled steps, above which the passes belong to the step

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        idle = timeline.column("step.idle_training_forwards")[:, 0]
        judged = np.isfinite(idle) & (timeline.steps > 0)
        rows = np.flatnonzero(judged & (idle > 0))
        if len(rows) < self.least_samples or timeline.several_objectives:
            return
        if len(rows) <= self.most_share * judged.sum():
            yield self._hit(timeline, rows, median_of(idle[rows]), int(judged.sum()))

    def _hit(self, timeline: Timeline, rows: np.ndarray, passes: float, judged: int) -> Hit:
        norms = [norm.path for norm in batch_norms(timeline)]
        dropouts = [module.path for module in timeline.info.modules if module.role == "dropout"]
        effect = f"each of which moves the running statistics of {named(norms)}" if norms else "with its dropout on"
        return Hit(
            modules=tuple(norms or dropouts),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"sampled_steps": len(rows), "judged": judged, "passes": passes, "batch_norms": len(norms)},
            message=(
                f"Before {len(rows)} of {judged} sampled steps the model ran without gradients in training mode, "
                f"{passes:.0f} times in the median, {effect}."
            ),
            remedy=Remedy(
                "Call model.eval() before the validation and model.train() after it.",
                "model.eval()\nwith torch.no_grad():\n    output = model(x)  # the validation\nmodel.train()",
            ),
            severity=Severity.WARNING if norms else Severity.INFO,
            strength=4.0,
        )
