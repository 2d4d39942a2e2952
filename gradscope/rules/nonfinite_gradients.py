"""Gradients with NaN or infinity in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import began
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class NonfiniteGradients(Rule):
    """The gradients that the optimizer used contain NaN or infinity.

    ## What it does

    Looks at the exact global gradient norm of every step, and at each parameter's gradient in the sampled steps.

    ## Why it is bad

    One such step makes the weights NaN, and every number after it.

    ## How it is told apart

    It is a symptom: `nonfinite-origin` names the place where the first such value stands, and what made the numbers grow
    (`lr-too-high`, `init-too-large`, `missing-zero-grad`, …) explains it. Overflows that a GradScaler notices lead to no
    step and are not counted: the first dozen, while it looks for its scale, are normal.

    ## What to do

    Treat the cause. Skip steps whose gradient norm is not finite; `clip_grad_norm_` tells with `error_if_nonfinite`.

    ## Known false alarms

    None known.

    ## References

    P. Micikevicius et al., "Mixed precision training" (ICLR 2018), section 3.2, on loss scaling and skipped steps.
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.gradient_norm",)

    def obstacle(self, timeline: Timeline) -> str | None:
        return None if np.isinf(timeline.pulse("gradient_norm")).any() else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        norms = timeline.pulse("gradient_norm")
        in_frames = (timeline.column("weight_gradient.nonfinite") > 0) & timeline.trained
        found = {*timeline.pulse("step")[np.isinf(norms)].tolist(), *timeline.steps[in_frames.any(axis=1)].tolist()}
        steps = np.array(sorted(found), dtype=np.int64)
        if len(steps):
            known = int((~np.isnan(norms)).sum())
            names = parameter_names(timeline, in_frames[in_frames.any(axis=1)][0]) if in_frames.any() else []
            yield self._hit(timeline, steps, max(known, len(steps)), names)

    def _hit(self, timeline: Timeline, steps: np.ndarray[tuple[int], np.dtype[np.int64]], known: int, names: list[str]) -> Hit:
        place = (f", first seen in {named(names)}" if names else "") + began(timeline)
        last = int(steps[-1])
        over = bool(np.isfinite(timeline.pulse("gradient_norm")[timeline.pulse("step") > last]).any())
        return Hit(
            modules=owners(timeline, names),
            first_step=int(steps[0]),
            last_step=last,
            evidence={"steps": len(steps), "steps_judged": known, "parameters": names},
            message=f"The gradient was not finite in {len(steps)} of {known} steps, from step {steps[0]} on{place}.",
            remedy=Remedy(
                text="Skip steps whose gradient is not finite, and treat what makes it so.",
                code=(
                    "# and in place of backward() and step():\n"
                    "optimizer.zero_grad()\nloss.backward()\n"
                    'norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=float("inf"))\n'
                    "if torch.isfinite(norm):\n"
                    "    optimizer.step()"
                ),
            ),
            severity=Severity.WARNING if over else Severity.CRITICAL,
            strength=3.0,
        )
