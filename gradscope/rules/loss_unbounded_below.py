"""Losses that can be lowered for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.objective import given
from gradscope.objective import sole_loss
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import smoothed

BOUNDED = ("cross_entropy", "nll", "mse", "l1", "smooth_l1", "bce", "bce_with_logits")  # that cannot be below zero


@dataclass(frozen=True)
class _Fall:
    first: int  # the step at which the loss went below zero
    start: float
    end: float
    norms: tuple[float, float]  # of the gradient, at the start and at the end


@final
@dataclass(frozen=True)
class LossUnboundedBelow(Rule):
    """The loss falls through zero and goes on falling, faster and faster: what is minimised has no minimum.

    ## What it does

    Looks for a loss that goes below zero and on to ten times its first magnitude and more, falls as far in the second half of
    its way as in the first at least, and whose gradient norm grows tenfold meanwhile. Where the graph shows a loss that is
    bounded, such as `cross_entropy`, entering with a minus sign, going below zero ten times is enough.

    ## Why it is bad

    Gradient descent on -f climbs f: the better the numbers look, the worse the model is. The weights grow with the loss until
    they overflow.

    ## How it is told apart

    - Losses that are negative by right settle: those of normalising flows and densities, of rewards, of similarities. They
      lose speed as they fall, and their gradients do not grow tenfold.
    - A learning rate that is too high throws the loss up, not down.
    - Raw outputs in `nll_loss` are `loss-input-mismatch`, which brings this about.
    - Players against one another (a generator, an adversary) have signs of their own and are not judged.

    Measured: minus the cross-entropy had gradients of 1e13 in the end, growing along the step by 2.6 times; a policy gradient
    with negative losses by 0.67 at most. Losses of single batches differ widely on the way down: those of an autoencoder
    whose divergence was subtracted lay between 0.9 and 3.9 million at the end, so the median of the last tenth is compared.

    ## What to do

    Turn the sign of the loss. For a reward or a likelihood, minimise its negative.

    ## Known false alarms

    Densities that are fitted to data on a line or plane: they really are unbounded, and need a floor on the variance.

    ## References

    R. J. Williams, "Simple statistical gradient-following algorithms", 1992, for losses whose value is not the goal.
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss", "pulse.gradient_norm")
    least_steps: ClassVar[int] = 10
    explains: ClassVar[tuple[str, ...]] = (
        "exploding-gradients", "gradient-spikes", "activation-growth", "residual-growth", "nonfinite-origin",
        "nonfinite-gradients", "nonfinite-loss", "lr-too-high", "output-logit-drift", "attention-logit-growth",
        "attention-entropy-collapse", "dead-units", "saturated-units", "loss-divergence", "collapsed-output", "fp16-overflow",
    )  # fmt: skip

    least_fall: float = 10.0  # times the first magnitude, below zero
    least_growth: float = 10.0  # of the gradient norm
    least_speed: float = 1.0  # fall of the second half of the way below zero over that of the first
    least_losses: int = 20  # finite ones in all
    least_negative: int = 10  # losses below zero, where a loss that is bounded has a minus sign

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if timeline.several_objectives or not len(timeline.loss):
            return
        negated = self._negated(timeline)
        fall = self._fall(timeline, negated=negated)
        if fall is not None:
            yield self._hit(timeline, fall, negated=negated)

    def _negated(self, timeline: Timeline) -> bool:
        """Whether the only loss is one that cannot be below zero, and counts with a minus sign."""
        loss = sole_loss(timeline)
        weight = given(timeline, "weight")
        weight = weight[np.isfinite(weight)]
        return loss is not None and loss.kind in BOUNDED and len(weight) > 0 and bool((weight < 0).all())

    def _fall(self, timeline: Timeline, *, negated: bool) -> _Fall | None:
        bad = ~np.isfinite(timeline.loss)
        losses = timeline.loss[: int(np.argmax(bad))] if bad.any() else timeline.loss
        below = np.flatnonzero(losses < 0)
        if not len(below):
            return None
        norms = timeline.gradient_norms[timeline.pulse("backwards") > 0][: len(losses)]
        norms = norms[np.isfinite(norms)]  # of steps with little to take it is not known
        found = _Fall(
            first=int(timeline.loss_steps[below[0]]),
            start=float(losses[0]),
            end=float(losses[-1]),
            norms=(median_of(norms[:3]), float(np.max(norms[-3:], initial=0.0))),
        )
        if negated:
            return found if len(below) >= self.least_negative and found.end < found.start else None
        return found if self._runs_away(losses, found) else None

    def _runs_away(self, losses: np.ndarray, found: _Fall) -> bool:
        if len(losses) < self.least_losses:
            return False
        path = smoothed(losses)
        scale = float(np.max(np.abs(losses[:10])))
        middle = float(path[len(path) // 2])
        level = smoothed(losses, width=max(len(losses) // 10, 5))  # of batches that come to very different losses
        deep = path[-1] < -self.least_fall * scale and level[-1] <= level.min() + 0.1 * abs(level.min())
        speeds = path[-1] - middle <= self.least_speed * (min(middle, 0.0) - 0.0)  # both are below zero
        return bool(deep and speeds and found.norms[1] > self.least_growth * found.norms[0] > 0)

    def _hit(self, timeline: Timeline, fall: _Fall, *, negated: bool) -> Hit:
        loss = sole_loss(timeline)
        sign = f"{loss.kind} counts with a minus sign: the" if negated and loss is not None else "The"
        certain = negated or timeline.onset is not None
        return Hit(
            modules=(),
            first_step=fall.first,
            last_step=int(timeline.loss_steps[-1]),
            evidence={
                "first_loss": plain(fall.start),
                "last_loss": plain(fall.end),
                "first_gradient_norm": plain(fall.norms[0]),
                "last_gradient_norm": plain(fall.norms[1]),
                "negated": negated,
            },
            message=(
                f"{sign} loss went from {fall.start:.4g} through zero at step {fall.first} to {fall.end:.4g}, and the gradient "
                f"norm from {fall.norms[0]:.3g} to {fall.norms[1]:.3g}."
            ),
            remedy=Remedy("Turn the sign of the loss: it is minimised, and has no minimum as it stands.", "loss = -loss"),
            severity=Severity.CRITICAL if certain else Severity.WARNING,
            strength=10.0 if negated else 4.0,
        )
