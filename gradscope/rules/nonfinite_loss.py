"""A loss that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import began
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class NonfiniteLoss(Rule):
    """The loss is NaN or infinite.

    ## What it does

    Looks at the loss of every step that had a backward().

    ## Why it is bad

    The gradient of such a loss is NaN, and after the next step so are the weights; training has ended there.

    ## How it is told apart

    It is a symptom: `nonfinite-origin` names the place where the first such value stands. A loss that had been growing
    before points to the step size or to scale; one that turns from one step to the next points to a batch, a logarithm of
    zero, or a batch without a target (the mean over no element is NaN).

    ## What to do

    Treat the cause, go back to a checkpoint from before, and do not go on from here: weights that are NaN stay NaN.

    ## Known false alarms

    None known. Where later losses are finite again (the loop skipped the step), the finding is a warning.

    ## References

    DeepLocalize (ICSE 2021) and AutoTrainer (ICSE 2021) both begin with this test.
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        bad = ~np.isfinite(timeline.loss)
        if not bad.any():
            return
        steps = timeline.loss_steps[bad]
        before = timeline.loss[: int(np.argmax(bad))]
        last = f"; the loss before it was {before[-1]:.4g}" if len(before) else ""
        last += began(timeline)
        yield Hit(
            modules=(),
            first_step=int(steps[0]),
            last_step=int(steps[-1]),
            evidence={"steps": len(steps), "steps_judged": len(bad), "loss_before": float(before[-1]) if len(before) else None},
            message=f"The loss was not finite in {len(steps)} of {len(bad)} steps, from step {steps[0]} on{last}.",
            remedy=Remedy(
                text="Treat the cause, and start again from a checkpoint that is older than this step.",
                code=f'assert torch.isfinite(loss), "loss is not finite"  # first at step {steps[0]}',
            ),
            severity=Severity.CRITICAL if bad[-1] else Severity.WARNING,
            strength=3.0,
        )
