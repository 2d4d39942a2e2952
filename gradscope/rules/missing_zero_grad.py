"""Gradients of earlier steps that are never cleared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import ever
from gradscope.evidence import growth
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import unless_works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

REMEDY = Remedy(
    text="Clear the gradients once in every step, before backward().",
    code="optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
)
BY_HAND = Remedy(
    text="Clear the gradients once in every step, after the update and before the next backward().",
    code="for parameter in model.parameters():\n    parameter.grad = None",
)


@final
@dataclass(frozen=True)
class MissingZeroGrad(Rule):
    """The gradients of earlier steps are still there when backward() begins, so every step uses the sum of all so far.

    ## What it does

    Looks, at the first backward() after each sampled step, whether the gradients that the optimizer has just used are still
    in place. It speaks when that holds for half of the parameters that have a gradient, in two sampled steps. Of a loop
    without an optimizer, which says with `scope.step()` when a step has ended, the gradients of parameters that it moves count.

    ## Why it is bad

    backward() adds to the gradient that it finds. Without clearing, step t uses the sum of t + 1 gradients: most of it was
    measured at weights that are long gone. The sum grows with every step, which acts like momentum without friction and like
    a learning rate that rises all the time, and training oscillates with growing swings or blows up.

    ## How it is told apart

    A learning rate that is too high also makes the gradient norm grow, but its backward() begins with empty or zero
    gradients; here the old ones are seen in place, which is a fact about the loop and no estimate. Gradient accumulation
    clears after each optimizer step, however many backward() calls a step has. Similar gradients from step to step prove
    nothing: full-batch training and GAN discriminators show cosines of 0.96 to 1.0 while healthy. Parameters that no
    optimizer holds are not counted: `optimizer-misses-parameters` is about them.

    ## What to do

    Call `optimizer.zero_grad()` before `loss.backward()`, in each step. It has to be the optimizer that holds these
    parameters, or `model.zero_grad()`.

    ## Known false alarms

    A loop without an optimizer that keeps a momentum in `.grad` on purpose. Else none known: measured on 26 healthy small
    trainings no step began with an old gradient, and with the call left out 149 of 149 did. Where several
    optimizers share the loop and a step has more than one backward() (a GAN's generator loss leaves gradients in the
    discriminator, which are cleared later), the rule stays silent.

    ## References

    PyTorch tutorial "Zeroing out gradients in PyTorch"; documentation of `torch.optim.Optimizer.zero_grad`.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight_gradient.carried", "fact.steps")
    least_steps: ClassVar[int] = 3
    explains: ClassVar[tuple[str, ...]] = (
        "exploding-gradients", "gradient-spikes", "loss-divergence", "nonfinite-origin", "nonfinite-gradients",
        "nonfinite-loss", "lr-too-high", "dead-units", "saturated-units", "loss-plateau", "oscillating-loss",
        "activation-growth", "collapsed-output",
        "fp16-overflow", "attention-logit-growth", "output-logit-drift", "clipping-too-tight",
    )  # fmt: skip

    least_share: float = 0.5  # of the parameters that have a gradient
    least_samples: int = 2  # sampled steps; one could be a slip that happens once, two are the loop

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not len(timeline.frames) or self._shared_backward(timeline):
            return
        carried = timeline.column("weight_gradient.carried")
        judged = np.isfinite(carried) & timeline.trained & (timeline.column("weight_gradient.norm") > 0)
        kept = judged & (carried == 1)
        rows = np.flatnonzero(judged.any(axis=1) & (kept.sum(axis=1) >= self.least_share * judged.sum(axis=1)))
        if len(rows) >= self.least_samples:
            yield self._hit(timeline, kept[rows], rows, int(judged.any(axis=1).sum()))

    def _shared_backward(self, timeline: Timeline) -> bool:
        """Whether another player's backward() may have left the gradients that are found."""
        return timeline.several_objectives and bool((timeline.pulse("backwards") > 1).any())

    def _hit(self, timeline: Timeline, kept: Mask, rows: Indices, judged: int) -> Hit:
        names = parameter_names(timeline, ever(kept))
        before, after = growth(timeline.pulse("gradient_norm"))
        user = "step" if timeline.info.by_hand else "optimizer"
        grown = f", and the gradient norm went from {before:.3g} to {after:.3g}" if after > 2 * before else ""
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"steps_carried": len(rows), "steps_judged": judged, "parameters": names}
            | ({"gradient_norm_first": before, "gradient_norm_last": after} if grown else {}),
            message=(
                f"In {len(rows)} of {judged} sampled steps backward() began while the gradients of the step before were still "
                f"in place ({named(names)}), so the {user} used the sum of all gradients so far{grown}."
            ),
            remedy=BY_HAND if timeline.info.by_hand else REMEDY,
            severity=unless_works(timeline, Severity.WARNING),
            strength=10.0,
        )
