"""Gradients that are clipped when it is too early, too late, or on the wrong scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import Indices
from gradscope.evidence import overshot
from gradscope.evidence import unless_works
from gradscope.objective import adapts
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

EARLY, LATE, SCALED = 1, 2, 3  # step.clip_place
LONG_STEP = 0.1  # update ratio of the median matrix, from which a step is long even when it is cut
WHERE = {
    EARLY: "before backward(), when there is no gradient to clip",
    LATE: "after optimizer.step(), when the gradient has been used",
    SCALED: "while the GradScaler's factor is still on the gradients, so that the limit is that many times too small",
}


@final
@dataclass(frozen=True)
class ClippingMisplaced(Rule):
    """clip_grad_norm_ is called at the wrong moment: before backward(), after step(), or on gradients that are still scaled.

    ## What it does

    Sees when `clip_grad_norm_` is called on the model's parameters. It speaks where that is, in three sampled steps and nine
    of ten that called it at all: when there is no gradient yet, after the optimizer's step, or on gradients that are still
    multiplied by a GradScaler's factor.

    ## Why it is bad

    Before backward() and after step() nothing is clipped: the training has no protection that its author counts on. On scaled
    gradients (a factor of 65,536 at the start) a limit of 1 is one of 0.000015: with SGD next to nothing is left of the step.

    ## How it is told apart

    It is seen, not estimated. A call without a limit (`max_norm=inf`) only measures the norm, and may stand anywhere. A call
    after each of several backward() calls of a step is between backward and step, and right.

    A training that blows up while its clipping stands in the wrong place has this to thank for, where most gradients were
    above the limit, the optimizer does not divide by their size, and a step by a gradient of the limit's size is short: then
    the finding is critical. Squared errors of which 2 % are absurd, under SGD with momentum 0.9 at 0.03, came to NaN in 11
    of 13 runs with the limit after the step, and to 1.2 and 3.2 in the others, but to 0.16 to 0.32 with it before the step.

    An outlier in the data that throws such a training off is what the limit was there for, so this explains it: samples thirty
    times too large, with wrong labels, made gradients of more than 3, where a limit of 0.5 in its place lets no more through.

    ## What to do

    Keep to the order: backward(), with a GradScaler `unscale_`, clip, step, zero_grad.

    ## Known false alarms

    A call with a limit whose result alone is meant, to log the norm after the step: give it `max_norm=inf`, or
    `torch.nn.utils.get_total_norm`.

    ## References

    PyTorch, "Automatic Mixed Precision examples", section "Gradient clipping". The same mistake is in the issues of
    pytorch/examples (1196), PyTorch Lightning (9606) and milesial/Pytorch-UNet (468).
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("step.clip_place",)
    least_steps: ClassVar[int] = 3
    explains: ClassVar[tuple[str, ...]] = (
        "gradient-spikes", "exploding-gradients", "clipping-too-tight", "lr-too-low", "loss-plateau", "weights-not-moving",
        "outlier-batch",
    )  # fmt: skip

    least_samples: int = 3  # sampled steps
    least_share: float = 0.9  # of the sampled steps with a call

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not len(timeline.frames):
            return
        place, limit = (timeline.column(f"step.{name}")[:, 0] for name in ("clip_place", "clip_limit"))
        calls = np.isin(place, (0, EARLY, LATE, SCALED)) & ~np.isposinf(limit)
        for wrong in (SCALED, LATE, EARLY):
            rows = np.flatnonzero(calls & (place == wrong))
            if len(rows) >= self.least_samples and len(rows) >= self.least_share * calls.sum():
                yield self._hit(timeline, wrong, rows, int(calls.sum()))

    def _hit(self, timeline: Timeline, place: int, rows: Indices, calls: int) -> Hit:
        limit = median_of(timeline.column("step.clip_limit")[rows, 0])
        norm = median_of(timeline.column("step.clip_norm")[rows, 0])
        found = f" (it found a norm of {norm:.3g})" if norm > 0 else ""
        return Hit(
            modules=(),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={
                "place": {EARLY: "before backward", LATE: "after step", SCALED: "scaled gradients"}[place],
                "steps_misplaced": len(rows),
                "steps_judged": calls,
                "limit": plain(limit),
                "norm_found": plain(norm),
            },
            message=f"In {len(rows)} of {calls} sampled steps clip_grad_norm_ was called {WHERE[place]}{found}.",
            remedy=_remedy(place, limit),
            severity=_severity(timeline, place, limit),
            strength=10.0,
        )


def _severity(timeline: Timeline, place: int, limit: float) -> Severity:
    """Critical where scaled gradients stop training, and where it blew up by steps that a limit in its place had cut short."""
    if place == SCALED:
        return unless_works(timeline, Severity.WARNING)
    blew_up = timeline.onset is not None or overshot(timeline)
    return Severity.CRITICAL if blew_up and _had_cut(timeline, limit) else Severity.WARNING


def _had_cut(timeline: Timeline, limit: float) -> bool:
    """Whether most steps up to the onset were made by gradients above the limit, and would have been short below it.

    An optimizer that divides by the gradient's size makes steps as long with a limit as without.
    """
    if adapts(timeline):
        return False
    until = math.inf if timeline.onset is None else timeline.onset
    norms = timeline.pulse("gradient_norm")[np.searchsorted(timeline.pulse("step"), timeline.steps)]
    rows = np.isfinite(norms) & (norms > 0) & (timeline.steps <= until)
    cut = rows & (norms > limit)
    with np.errstate(invalid="ignore"):
        short = median_of(step_sizes(timeline)[cut] * limit / norms[cut]) < LONG_STEP
    return bool(2 * cut.sum() > rows.sum()) and short


def _remedy(place: int, limit: float) -> Remedy:
    clip = f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={limit if limit > 0 else 1.0:g})"
    if place == SCALED:
        return Remedy(
            "Unscale the gradients before clipping them.",
            f"scaler.scale(loss).backward()\nscaler.unscale_(optimizer)\n{clip}\nscaler.step(optimizer)\nscaler.update()\n"
            "optimizer.zero_grad()",
        )
    return Remedy(
        "Clip between backward() and step().",
        f"optimizer.zero_grad()\nloss.backward()\n{clip}\noptimizer.step()",
    )
