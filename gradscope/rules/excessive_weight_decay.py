"""Weight decay that shrinks weights faster than the loss can move them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import plain
from gradscope.evidence import gravity
from gradscope.evidence import matrices
from gradscope.evidence import owners
from gradscope.evidence import usual_rate
from gradscope.evidence import without_gradient
from gradscope.evidence import works
from gradscope.objective import chance
from gradscope.objective import given
from gradscope.objective import sole_loss
from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

# Optimizers whose weight_decay is added to the gradient before it is divided by its own size.
ADDED_TO_GRADIENT = ("Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Rprop")
FIRST_PAIRS = 20  # pairs of sampled steps in a row, of which the direction of steps is taken
LEAST_PAIRS = 4
MOST_PULL = 1.1  # shrinkage over length of a step, above which something else shrinks the weights as well
LAST_SPREADS = 5  # sampled steps, whose outputs say how much these vary
LEAST_LEFT = 0.5  # of the best constant prediction's loss: more than that is left for certain
MOST_GAIN = 6.0  # standard deviations of the logits by which a cross-entropy can be below the entropy of the labels
SPAN = 100  # steps over which weights are looked at for how much they have shrunk


@final
@dataclass(frozen=True)
class ExcessiveWeightDecay(Rule):
    """Weight decay shrinks the weights faster than the loss can move them, so that the model forgets what it learns.

    ## What it does

    Weight decay takes the share lr · weight_decay off each weight in every step (with SGD's momentum m, 1 / (1 - m) times as
    much in the long run). It speaks in three cases:

    - that share is above 1 %, and the weight matrices have shrunk by a tenth within 100 steps;
    - decay makes more than 70 % of the steps (lr · weight_decay over the update ratio; where an adaptive optimizer adds the
      decay to the gradient, weight_decay · |W| beside |g|), the matrices have shrunk by 30 % within 100 steps, and training
      neither works nor progresses;
    - no optimizer decays weights, and yet more than 70 % of the first steps' length leads straight to zero, as a penalty on
      weights in the loss makes them, the matrices have shrunk by 30 % within 100 steps, and training neither works nor
      progresses. A loss that holds the penalty falls with it: it counts as progress only where the outputs vary enough from
      sample to sample for the rest of the loss to have come to half of the best constant prediction's.

    ## Why it is bad

    A share of 1 % halves all weights in 69 steps. Signal and gradient shrink as the product over the layers, and the loss
    comes to rest where decay and gradient balance: with AdamW at a rate of 0.01 and a decay of 20 each step moved the weights
    by 22 % of their norm, and the loss stood at two thirds of its start. The sum of squares of all weights, added to a
    cross-entropy as it is, left digits at ln 10.

    ## How it is told apart

    - A learning rate that is too high makes long steps, too, but weights grow or swing; here they shrink, and the step is as
      long as the decay alone.
    - Where no step had a gradient other than zero, decay acts alone, however weak it is, and is not at fault.
    - Weights that something else than the optimizer shrinks between steps are weights-changed-outside-optimizer.
    - How far a loss can be below that of a constant is bounded by how much the outputs vary: a squared error is at least
      (1 - s)² of the targets' variance, s being the ratio of their standard deviations, and a cross-entropy lies at most six
      standard deviations of the logits below the labels' entropy. With a tenth of the sum of squares in the loss, a regression
      had s = 0.12 after 120 steps and 0.001 after 360, and 72 to 75 % of its first steps' length led to zero (three seeds);
      with a hundred-thousandth s grew to 0.8, and -4 % did.
    - Under a normalisation weights may shrink without harm: where training has converged, the first case is no more than an
      aside; where it works, the second says nothing.

    ## What to do

    Choose the decay by the size of step at which it and the gradient balance: an update ratio of sqrt(2 · lr · weight_decay).
    For a ratio of 0.005, weight_decay = 0.0000125 / lr.

    ## Known false alarms

    Optimizers of one's own that take weight_decay for something else. Where parameter groups differ, the first group's decay
    is judged.

    ## References

    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019. A. Kosson, B. Messmer, M. Jaggi, "Rotational
    Equilibrium", 2023, for the balance.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.optimizer", "weight.norm", "update.ratio", "pulse.learning_rate")
    least_steps: ClassVar[int] = 5
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "collapsed-output", "vanishing-gradients", "dead-units", "lr-too-high", "lr-too-low",
        "adam-epsilon-dominates", "oscillating-loss", "labels-unrelated", "bf16-stalled-updates",
    )  # fmt: skip

    most_share: float = 0.01  # of each weight that decay takes off in a step
    least_shrunk: float = 0.1  # of the matrices' norm within 100 steps, where it takes more
    most_of_step: float = 0.7  # share of the steps that decay makes
    shrunk: float = 0.3  # of the matrices' norm within 100 steps, where decay makes most of the step
    good_ratio: float = 5e-3  # update ratio at which decay and gradient balance

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        sites = self._decayed(timeline)
        rate = usual_rate(timeline)
        if len(timeline.frames) < 2 or not rate > 0 or without_gradient(timeline):
            return
        if not len(sites):
            yield from self._of_penalty(timeline)
            return
        optimizer = timeline.optimized[timeline.schema.parameters[sites[0]].path]
        before, after = _steepest(timeline, sites)
        if before < 0:
            return
        norms = _norms(timeline, sites)
        shrunk = 1 - float(norms[after] / norms[before])
        decay = _taken(optimizer, rate)
        of_step = _share_of_steps(timeline, sites, optimizer, rate)
        if decay > self.most_share and shrunk > self.least_shrunk:
            yield self._hit(timeline, sites, optimizer, (before, after), shrunk, of_step, strength=5.0)
        elif of_step > self.most_of_step and shrunk > self.shrunk and not works(timeline) and not timeline.progressing:
            yield self._hit(timeline, sites, optimizer, (before, after), shrunk, of_step, strength=3.0)

    def _of_penalty(self, timeline: Timeline) -> Iterator[Hit]:
        """What a penalty in the loss does to weights that no optimizer decays."""
        sites = np.flatnonzero(matrices(timeline))
        if not len(sites) or timeline.onset is not None:
            return
        if (works(timeline) or timeline.progressing) and not _says_little(timeline):
            return
        pull = _pull(timeline, sites)
        before, after = _steepest(timeline, sites)
        if before < 0 or not self.most_of_step < pull <= MOST_PULL:
            return
        norms = _norms(timeline, sites)
        shrunk = 1 - float(norms[after] / norms[before])
        if shrunk > self.shrunk:
            yield self._hit_of_penalty(timeline, sites, (int(timeline.steps[before]), int(timeline.steps[after])), shrunk, pull)

    def _hit_of_penalty(
        self, timeline: Timeline, sites: npt.NDArray[np.intp], steps: tuple[int, int], shrunk: float, pull: float
    ) -> Hit:
        return Hit(
            modules=owners(timeline, [timeline.schema.parameters[site].path for site in sites]),
            first_step=steps[0],
            last_step=steps[1],
            evidence={"weight_decay": 0.0, "share_of_step": plain(pull), "shrunk": plain(shrunk)},
            message=(
                f"{100 * pull:.0f} % of the first steps' length led straight to zero, though no optimizer decays weights, and "
                f"the weights shrank by {100 * shrunk:.0f} % from step {steps[0]} to {steps[1]}: a penalty on them in the loss "
                "outweighs the rest of it."
            ),
            remedy=Remedy("Multiply the penalty on the weights with a thousandth of its factor or less: 0.0001 is usual."),
            severity=max(gravity(timeline), Severity.WARNING),
            strength=3.0,
        )

    def _decayed(self, timeline: Timeline) -> npt.NDArray[np.intp]:
        """The matrices whose optimizer decays them."""
        names = [site.path for site in timeline.schema.parameters]
        held = [
            timeline.optimized[name].settings.get("weight_decay", 0) > 0 if name in timeline.optimized else False
            for name in names
        ]
        return np.flatnonzero(matrices(timeline) & np.array(held, dtype=bool))

    def _hit(
        self,
        timeline: Timeline,
        sites: npt.NDArray[np.intp],
        optimizer: OptimizerInfo,
        rows: tuple[int, int],
        shrunk: float,
        of_step: float,
        *,
        strength: float,
    ) -> Hit:
        rate, decay = usual_rate(timeline), optimizer.settings["weight_decay"]
        first, last = (int(timeline.steps[row]) for row in rows)
        taken = _taken(optimizer, rate)
        says = [f"takes {100 * taken:.3g} % off each weight in every step"] if taken > self.most_share else []
        says += [f"makes {100 * of_step:.0f} % of the step"] if of_step > self.most_of_step else []
        return Hit(
            modules=owners(timeline, [timeline.schema.parameters[site].path for site in sites]),
            first_step=first,
            last_step=last,
            evidence={
                "weight_decay": plain(decay),
                "learning_rate": plain(rate),
                "decay_per_step": plain(rate * decay),
                "share_of_step": plain(of_step),
                "shrunk": plain(shrunk),
            },
            message=(
                f"A weight decay of {decay:g} at a learning rate of {rate:g} {', '.join(says)} and shrank the weights by "
                f"{100 * shrunk:.0f} % from step {first} to {last}."
            ),
            remedy=self._remedy(rate, decay),
            severity=max(gravity(timeline), Severity.INFO if timeline.converged else Severity.WARNING),
            strength=strength,
        )

    def _remedy(self, rate: float, decay: float) -> Remedy:
        better = min(float(f"{self.good_ratio**2 / (2 * rate):.2g}"), float(f"{decay / 10:.2g}"))
        return Remedy(
            f"Lower the weight decay from {decay:g} to {better:g}, which balances at an update ratio of {self.good_ratio:g} or "
            "less.",
            f'for group in optimizer.param_groups:\n    group["weight_decay"] = {better:g}  # was {decay:g}',
        )


def _taken(optimizer: OptimizerInfo, rate: float) -> float:
    """The share that decay takes off a weight in a step; 0 where it is added to a gradient that is divided by its size."""
    if optimizer.type in ADDED_TO_GRADIENT:
        return 0.0
    kept = 1 - optimizer.settings.get("momentum", 0.0)
    return rate * optimizer.settings["weight_decay"] / (kept if 0 < kept <= 1 else 1.0)


def _share_of_steps(timeline: Timeline, sites: npt.NDArray[np.intp], optimizer: OptimizerInfo, rate: float) -> float:
    """How much of a step is decay: median over steps and matrices; NaN where it is not known."""
    decay = optimizer.settings["weight_decay"]
    if optimizer.type in ADDED_TO_GRADIENT:
        pull = decay * timeline.column("weight.norm")[:, sites].astype(np.float64)
        rest = timeline.column("weight_gradient.norm")[:, sites].astype(np.float64)
        known = np.isfinite(pull) & np.isfinite(rest) & (pull > 0)
        return median_of(pull[known] / (pull[known] + rest[known]))
    ratio = timeline.column("update.ratio")[:, sites].astype(np.float64)
    known = np.isfinite(ratio) & (ratio > 0)
    return min(median_of(_taken(optimizer, rate) / ratio[known]), 1.0) if known.any() else math.nan


def _pull(timeline: Timeline, sites: npt.NDArray[np.intp]) -> float:
    """How much of the first steps' length leads straight to zero: median of shrinkage over length; NaN where not known."""
    norms = timeline.column("weight.norm")[:, sites].astype(np.float64)
    lengths = timeline.column("update.ratio")[:, sites].astype(np.float64) * norms
    rows = np.flatnonzero(np.diff(timeline.steps) == 1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        whole, length = np.sqrt(np.sum(norms**2, axis=1)), np.sqrt(np.sum(lengths**2, axis=1))
        pulls = (whole[rows] - whole[rows + 1]) / length[rows]
    pulls = pulls[np.isfinite(pulls)][:FIRST_PAIRS]
    return median_of(pulls) if len(pulls) >= LEAST_PAIRS else math.nan


def _says_little(timeline: Timeline) -> bool:
    """Whether the outputs vary too little, from sample to sample, for the loss to be half of the best constant prediction's."""
    loss = sole_loss(timeline)
    spread = given(timeline, "input_signal")
    if loss is None or not np.isfinite(spread).any():
        return False
    late = median_of(spread[np.isfinite(spread)][-LAST_SPREADS:])
    if loss.kind == "mse":
        wanted = median_of(given(timeline, "target_signal"))
        return wanted > 0 and (1 - min(late / wanted, 1.0)) ** 2 > LEAST_LEFT
    if loss.kind == "cross_entropy":
        return MOST_GAIN * late < (1 - LEAST_LEFT) * chance(timeline, loss)
    return False


def _norms(timeline: Timeline, sites: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Norm of the matrices together, at each sampled step; NaN where one is not known."""
    with np.errstate(over="ignore"):
        norms = np.sqrt(np.sum(np.square(timeline.column("weight.norm")[:, sites].astype(np.float64)), axis=1))
    return np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)


def _steepest(timeline: Timeline, sites: npt.NDArray[np.intp]) -> tuple[int, int]:
    """The two sampled steps, 100 steps apart at most, between which the weights shrank most; -1 where none is known."""
    norms, steps = _norms(timeline, sites), timeline.steps
    back = np.searchsorted(steps, steps - SPAN)
    left = norms / norms[back]
    if not np.isfinite(left).any():
        return -1, -1
    after = int(np.nanargmin(left))
    return int(back[after]), after
