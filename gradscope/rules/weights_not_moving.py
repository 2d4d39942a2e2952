"""Steps that leave every weight as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Indices
from gradscope.evidence import matrices
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import run_length
from gradscope.evidence import trains_others
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

NO_STEP = Remedy(
    text="Call optimizer.step() after backward(); in a loop that moves the weights without torch.optim, call scope.step().",
    code="optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
)
CLEARED = Remedy(
    text="Call zero_grad() before backward() or after step(), not between them.",
    code="optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
)


@final
@dataclass(frozen=True)
class WeightsNotMoving(Rule):
    """The optimizer steps, the gradients are there, and every weight stays the same to the last bit.

    ## What it does

    Compares weights before and after the step in the sampled steps. It speaks when all that the optimizer holds stayed
    bit-identical in three steps that had a gradient, and names the learning rate where it is zero. It also speaks where 100
    backward() calls went by and no optimizer stepped, and where gradients came back through the layers in three sampled steps
    and no parameter had one left at any step: zero_grad() stands between backward() and step().

    ## Why it is bad

    Nothing is learned, and the loop looks as if it worked: the loss even varies, from batch to batch.

    ## How it is told apart

    A learning rate that is merely too low (`lr-too-low`) still changes bits. Weights that no optimizer holds are
    `optimizer-misses-parameters`. A step without gradient (converged, or all units dead) does not count, nor does a warm-up
    that begins at a rate of zero for a step or two. Steps that a GradScaler skips are no steps.
    That gradients were cleared is said where a loss's graph leads to parameters that the optimizer holds, and a layer's
    output, not zero itself, had a gradient other than zero: the layer's weight or its bias got one, then, and it is none or
    exactly zero for all (layers in float16, where products of small numbers are zero, do not count). What zero_grad()
    leaves is none or zero; with zero, weight decay still moves the weights, and does nothing but shrink them. Without weight
    decay they have to stay as they are: where they move, somebody keeps the gradients in a place of their own.

    ## What to do

    Look at `optimizer.param_groups[0]["lr"]`; at a scheduler that has run out or is stepped with each batch instead of each
    epoch; at weights in bfloat16, which drop changes below 0.4 %; at a missing `optimizer.step()`; at a `zero_grad()` between
    backward() and step().

    ## Known false alarms

    Going on after a schedule has ended at zero is real, but harmless: where training has worked, the finding is for
    information. A loop that changes the weights by hand needs `scope.step()`.

    ## References

    DeepDiagnosis (ICSE 2022), symptom "unchanged weight". Measured on 26 healthy small trainings the share of weights left
    unchanged by a step was at most 0.3 % in float32.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("update.unchanged", "weight_gradient.norm", "fact.optimizer")

    least_samples: int = 3  # sampled steps with a gradient in which nothing moved
    backwards: int = 100  # backward calls without a step
    rounding: float = 1e-6  # of a norm, by which one that only shrinks may seem to have grown

    def obstacle(self, timeline: Timeline) -> str | None:
        known = self._never_stepped(timeline) or len(self._cleared(timeline)) >= self.least_samples
        return None if known else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if self._never_stepped(timeline):
            yield self._no_step(timeline)
            return
        if not len(timeline.frames):
            return
        if len(cleared := self._cleared(timeline)) >= self.least_samples:
            yield self._gone(timeline, cleared)
            return
        unchanged = timeline.column("update.unchanged")
        judged = np.isfinite(unchanged) & timeline.trained
        fed = (judged & (timeline.column("weight_gradient.norm") > 0)).any(axis=1)
        still = np.flatnonzero(fed & ((unchanged == 1) | ~judged).all(axis=1))
        if len(still) >= self.least_samples:
            yield self._standing(timeline, still, np.flatnonzero(fed))

    def _never_stepped(self, timeline: Timeline) -> bool:
        most = np.max(timeline.pulse("backwards"), initial=0, where=np.isfinite(timeline.pulse("backwards")))
        foreign = (timeline.pulse("foreign") == 1).any()
        moved = (timeline.column("update.unchanged") < 1).any() or (timeline.column("update.outside_change") > 0).any()
        return bool(most >= self.backwards and not timeline.info.optimizers and not foreign and not moved)

    def _cleared(self, timeline: Timeline) -> Indices:
        """The sampled steps whose gradients came back and were gone at the step; [] where any step had one, or moved more."""
        nothing = np.zeros(0, dtype=np.intp)
        if not len(timeline.frames) or trains_others(timeline) or (timeline.pulse("gradient_norm") > 0).any():
            return nothing
        trained, reached = timeline.trained, timeline.info.wiring.reached if timeline.info.wiring else ()
        left = (timeline.column("weight_gradient.norm")[:, trained] > 0).any()
        if left or set(parameter_names(timeline, trained)).isdisjoint(reached) or not self._only_decays(timeline):
            return nothing
        layers = [x.site for x in timeline.layers if trained[x.parameter] and "float16" not in (x.module.dtype, x.weight.dtype)]
        came = (timeline.column("activation_gradient.rms") > 0) & (timeline.column("activation.rms") > 0)
        return np.flatnonzero(came[:, layers].any(axis=1))

    def _only_decays(self, timeline: Timeline) -> bool:
        """Whether what the optimizer holds stays as it is or, with weight decay, no matrix is ever larger than it was."""
        trained, sites = timeline.trained, matrices(timeline)
        if not any(optimizer.settings.get("weight_decay", 0.0) for optimizer in timeline.info.optimizers):
            moves = timeline.column("update.ratio")[:, trained]
            return bool((moves == 0).any() and not (moves > 0).any())
        norms = timeline.held("weight.norm")[:, sites].astype(np.float64)
        return bool(sites.any()) and not (norms > norms[0] * (1 + self.rounding)).any()

    def _gone(self, timeline: Timeline, cleared: Indices) -> Hit:
        names = parameter_names(timeline, timeline.trained)
        zeros = (timeline.column("weight_gradient.norm")[:, timeline.trained] == 0).any()
        moved = bool((timeline.column("update.ratio")[:, timeline.trained] > 0).any())
        left = "zero" if zeros else "none"
        decay = ", so that weight decay alone moves the weights" if moved else ", so that nothing moves"
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[cleared[0]]),
            last_step=int(timeline.steps[cleared[-1]]),
            evidence={"steps": len(cleared), "parameters": len(names), "left": left, "moved_by_decay": moved},
            message=(
                f"In {len(cleared)} sampled steps gradients came back through the layers, and at the step all {len(names)} "
                f"parameters that the optimizer holds had {left}{decay}: zero_grad() is called between backward() and step()."
            ),
            remedy=CLEARED,
            severity=Severity.CRITICAL,
            strength=10.0,
        )

    def _no_step(self, timeline: Timeline) -> Hit:
        first, last = run_length(timeline)
        count = int(timeline.pulse("backwards").max())
        return Hit(
            modules=(),
            first_step=first,
            last_step=last,
            evidence={"backward_calls": count, "optimizer_steps": 0},
            message=f"There was no optimizer.step() in {count} backward() calls: the gradients were never used.",
            remedy=NO_STEP,
            severity=Severity.CRITICAL,
            strength=10.0,
        )

    def _standing(self, timeline: Timeline, still: Indices, fed: Indices) -> Hit:
        rates = timeline.pulse("learning_rate")[np.isin(timeline.pulse("step"), timeline.steps[still])]
        zero = bool(len(rates) and (rates == 0).all())
        names = parameter_names(timeline, timeline.trained)
        rate = f"{rates[-1]:g}" if len(rates) else "unknown"
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[still[0]]),
            last_step=int(timeline.steps[still[-1]]),
            evidence={"steps": len(still), "steps_judged": len(fed), "parameters": len(names), "learning_rate_zero": zero},
            message=(
                f"In {len(still)} of {len(fed)} sampled steps with a gradient all {len(names)} parameters that the optimizer "
                f"holds stayed the same to the last bit; the learning rate is {rate}."
            ),
            remedy=_remedy(zero),
            severity=self._severity(timeline, int(still[-1]) < int(fed[-1])),
            strength=10.0 if zero else 4.0,
        )

    def _severity(self, timeline: Timeline, over: bool) -> Severity:
        if works(timeline):
            return Severity.INFO
        return Severity.WARNING if over else Severity.CRITICAL


def _remedy(zero: bool) -> Remedy:
    if zero:
        return Remedy(
            text="Give the optimizer a learning rate, and see that no scheduler sets it to zero.",
            code='for group in optimizer.param_groups:\n    group["lr"] = 1e-3  # and look at what the scheduler makes of it',
        )
    return Remedy("Raise the learning rate, or keep the weights in float32, so that a step is larger than what rounding drops.")
