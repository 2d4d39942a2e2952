"""An eps that is larger than the gradients beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import captured
from gradscope.evidence import ever
from gradscope.evidence import gravity
from gradscope.evidence import matrices
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import warming_up
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class AdamEpsilonDominates(Rule):
    """Adam's eps is larger than the gradients, so that its steps shrink with them instead of keeping the learning rate's size.

    ## What it does

    Looks at the root of Adam's second moment beside its eps, on the elements that have a gradient. A weight matrix drowns
    where that root is below ten times eps for half of the elements or more, in three of the last five sampled steps. It speaks
    where, after 100 steps, half of the matrices drown, the last one among them, and the loss stands still or the median update
    ratio is below 0.0001, or all matrices drown in nine of ten of their elements and the loss, after 200 steps, is still above
    0.9 of what the best constant prediction has. Where the loss falls further all the same the finding is an aside.

    ## Why it is bad

    Adam divides by sqrt(v) + eps so that each weight moves by about the learning rate, however small its gradient. Where eps
    is the larger of the two, the step is lr · m / eps instead: a gradient a hundred times below eps makes steps a hundred
    times below the learning rate.

    ## How it is told apart

    - A learning rate that is too low makes small steps of gradients far above eps; see lr-too-low, which this one explains.
    - Gradients that die on their way to the first layers drown in eps there, but not in the last layer: then eps is not to
      blame, and the finding is no more than an aside. Where the last layer drowns too, the gradient is small from the loss
      on: eps is too large, or the loss is scaled down.
    - Where the loss has halved, or is at half of what the best constant prediction has, nothing is said: gradients get small
      because training works. A warm-up is left alone, and so are several optimizers that play.
    - One matrix that drowns while the loss falls is no fault: most rows of a large vocabulary's output layer have gradients
      near zero.

    A classifier with an eps of 1 beside gradients of 0.01 moved by 0.014 % a step, came from 1.79, a constant's, to 1.73 in 300
    steps, and fell on; at 1e-8 its twin came to 0.2.

    In the median matrix of healthy small trainings with Adam under 0.1 % of the elements drowned; with an eps of 1, all.

    ## What to do

    Lower eps to a hundredth of the gradient's usual size (1e-8 is the default, and seldom too large), or multiply the loss
    by a constant where it is scaled down.

    ## Known false alarms

    An eps that is large on purpose, as some recipes have it (0.001 to 1): a warning only where steps are tiny.

    ## References

    D. P. Kingma and J. Ba, "Adam", 2015, section 2. M. Wortsman and others, "Small-scale proxies for large-scale Transformer
    training instabilities", 2023, on gradients that fall below eps.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.epsilon_share", "weight_gradient.norm", "pulse.loss")
    least_steps: ClassVar[int] = 100
    explains: ClassVar[tuple[str, ...]] = ("lr-too-low", "loss-plateau", "weights-not-moving", "labels-unrelated")

    least_share: float = 0.5  # of a matrix's elements that have a gradient
    least_matrices: float = 0.5  # of the trained ones, with the last one among them
    slow_ratio: float = 1e-4  # median update ratio of the matrices that drown
    nearly_all: float = 0.9  # of the elements of every matrix, so that no weight moves as Adam is to move it
    far_from_done: float = 0.9  # of the best constant prediction's loss
    by_now: int = 200  # steps, after which it should be lower
    held: int = 3  # of the last five samples
    window: int = 5  # sampled steps that are looked back on
    margin: float = 0.01  # of the gradient's usual size, that the remedy sets eps to
    usual_eps: float = 1e-8  # torch's default, above which the remedy never goes
    least_eps: float = 1e-20  # that the remedy sets

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if self._went_well(timeline) or timeline.several_objectives or timeline.onset is not None or warming_up(timeline):
            return
        trained = np.flatnonzero(matrices(timeline))
        shares = timeline.column("update.epsilon_share")[:, trained]
        rows = captured(shares)
        with np.errstate(invalid="ignore"):
            drowned = (shares[rows] >= self.least_share) & (shares[rows] <= 1)
            drowned &= timeline.column("weight_gradient.norm")[np.ix_(rows, trained)] > 0
        held = ever(lasting(drowned, least=self.held, window=self.window)[-1:])
        if not held.any():
            return
        throughout = bool(held[-1]) and bool(held.mean() >= self.least_matrices)
        stands = not timeline.learning and not timeline.progressing
        slow = median_of(timeline.column("update.ratio")[np.ix_(rows, trained[held])]) < self.slow_ratio
        if throughout or stands:
            crawls = bool(held.all()) and self._crawls(timeline, shares[rows[-self.window :]])
            yield self._hit(timeline, rows, trained, held, drowned, throughout and (stands or slow or crawls))

    def _crawls(self, timeline: Timeline, shares: np.ndarray) -> bool:
        """Whether every matrix drowns nearly whole, and the loss has hardly left that of the best constant prediction."""
        level = timeline.known_baseline
        late = timeline.step_count >= self.by_now and level is not None and timeline.last_loss > self.far_from_done * level
        return bool(late and min(median_of(share) for share in shares.T) >= self.nearly_all)

    def _went_well(self, timeline: Timeline) -> bool:
        """Whether the loss is at half of a constant prediction's, or has halved and is not at that: gradients get small."""
        baseline, last = timeline.baseline, timeline.last_loss
        return bool(last < 0.5 * baseline or (last < 0.5 * timeline.first_loss and last < 0.95 * baseline))

    def _hit(self, timeline: Timeline, rows: Indices, trained: Indices, held: Mask, drowned: Mask, serious: bool) -> Hit:
        shown = rows[drowned[:, held].any(axis=1)]
        names = [timeline.schema.parameters[site].path for site in trained[held]]
        eps = timeline.optimized[names[-1]].settings.get("eps", self.usual_eps)
        sizes = np.sqrt([timeline.parameters[name].size for name in names])
        gradient = median_of(timeline.column("weight_gradient.norm")[rows[-1], trained[held]] / sizes)
        share = median_of(timeline.column("update.epsilon_share")[rows[-1], trained[held]])
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[shown[0]]),
            last_step=int(timeline.steps[shown[-1]]),
            evidence={"share": plain(share), "eps": plain(eps), "gradient": plain(gradient), "matrices": len(names)},
            message=(
                f"At step {timeline.steps[rows[-1]]} the root of Adam's second moment is below 10 times its eps of {eps:g} for "
                f"{100 * share:.0f} % of the elements of {named(names)}, whose gradient is {gradient:.2g}, and the loss stands "
                f"at {timeline.last_loss:.4g}."
            ),
            remedy=self._remedy(eps, gradient),
            severity=max(gravity(timeline), Severity.WARNING) if serious else Severity.INFO,
            strength=3.0 if serious else 1.0,
        )

    def _remedy(self, eps: float, gradient: float) -> Remedy:
        better = min(self.usual_eps, eps / 10, one_digit(self.margin * gradient)) if gradient > 0 else 0.0
        if better < self.least_eps:  # v is the gradient squared, and would underflow
            scale = 10.0 ** min(round(math.log10(eps / (self.margin * gradient))), 12) if gradient > 0 else 1000.0
            return Remedy(
                f"Multiply the loss by {scale:g}: Adam divides it out again, and the gradient comes to lie above eps.",
                f"({scale:g} * loss).backward()",
            )
        return Remedy(
            f"Lower eps from {eps:g} to {better:g}, a hundredth of the gradient's usual size or less.",
            f'for group in optimizer.param_groups:\n    group["eps"] = {better:g}  # was {eps:g}',
        )
