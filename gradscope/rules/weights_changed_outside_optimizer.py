"""Weights that change between two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import clipping_norm
from gradscope.evidence import ever
from gradscope.evidence import matrices
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import rates_at
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting
from gradscope.trends import median_of
from gradscope.trends import row_medians

_IF_MEANT = Remedy("Nothing, where the change is meant; else find what writes to the weights after optimizer.step().")
_KEEP_A_COPY = Remedy(
    "Take out what writes to the weights after optimizer.step(): keep averages in a copy of the model, and project or round "
    "such a copy, or in the forward pass."
)
_ONCE = Remedy(
    "Take what makes the weights anew, model.apply(…), an initialisation or load_state_dict(), out of the loop over epochs; "
    "where the training is to begin anew, make the optimizer anew as well."
)


@final
@dataclass(frozen=True)
class WeightsChangedOutsideOptimizer(Rule):
    """Something else than the optimizer changes the weights between steps.

    ## What it does

    Compares each weight at the end of a step with the same weight at the beginning of the next. It speaks when a weight
    that the optimizer holds differs by more than one part in a million, three pairs of consecutive steps in a row, and
    tells whether one common factor explains the difference. It also speaks where three times or more, each time for one step
    alone, most weight matrices change by nine tenths of their norm or more: the weights were made anew.

    ## Why it is bad

    `p.data *= 0.99` after each step is sometimes meant as gradient clipping. It does not touch a gradient: it is a weight
    decay that halves every weight in 69 steps, whatever the loss says, and with it the output of the network. The loss comes
    to rest where the decay and the gradient balance, and exploding gradients explode as before.

    ## How it is told apart

    Weight decay of the optimizer (`weight_decay=`) happens within its step and is not seen here; loading a checkpoint or
    re-initialising a layer happens once. Where no common factor fits, the change is a projection, a clamp as in WGAN, or an
    average over weights, which people mean to make: the finding is then for information. It is a warning, after 100 steps,
    where the change is as long as the step before it, so that it takes the step back, and the loss is still above half of the
    best constant prediction's; and where it is a third of the step or more and training neither works nor progresses.

    A moving average of the weights that was loaded back after each step, and weights that were rounded to sixteenths after
    it, changed by 99 to 100 % of what the step had (losses of 1.24 and 0.66, where both come to 0.06 and less without).

    Weights that are made anew again and again are a warning where Adam's step after the change is shorter than its very first,
    which has the length of the rate in each element: it remembers other gradients (0.5 times as long; 1.0 with a new
    optimizer). With a new optimizer each time, as in a cross-validation, and where that is not known, the finding is for
    information. An initialisation that stood in the loop over epochs changed all matrices by 1.2 to 1.5 of their norm each
    time, in trainings with a new optimizer by 1.1 to 1.4; checkpoints that are loaded back lie closer.

    ## What to do

    To clip gradients, call `torch.nn.utils.clip_grad_norm_` between backward() and step(). To decay weights, tell the
    optimizer so with `weight_decay`.

    ## Known false alarms

    A decoupled decay by hand below one part in a thousand a step is for information while training works.

    ## References

    R. Pascanu et al., "On the difficulty of training recurrent neural networks" (ICML 2013), section 3.2, for what clipping
    is. I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (ICLR 2019), for what multiplying weights is.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.outside_change", "fact.optimizer")
    explains: ClassVar[tuple[str, ...]] = (
        "excessive-weight-decay", "loss-plateau", "collapsed-output", "vanishing-gradients", "oscillating-loss",
        "gradient-spikes",
    )  # fmt: skip

    least_change: float = 1e-6  # of the weight's norm; rounding there and back (SAM) leaves less in float32
    pairs: int = 3  # consecutive pairs of sampled steps
    largest_residual: float = 0.05  # of the change, that a factor may leave unexplained
    factor_spread: float = 0.2  # of the shrinkage, by which factors of different weights may differ
    harmless_shrinkage: float = 1e-3  # per step
    taken_back: float = 0.9  # change outside over the step's own, from which the step is undone
    hindering: float = 0.3  # the same, from which it may be what keeps a training that stands still where it is
    anew: float = 0.9  # of the norm of most matrices; a new draw owes nothing to the old one, and differs by its norm or more
    times: int = 3  # that this happens
    remembers: float = 0.8  # of the length of Adam's first step, under which a step is none
    well: float = 0.5  # of the best constant prediction's loss, below which training gets on

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not len(timeline.frames):
            return
        change = timeline.column("update.outside_change")
        rows = np.flatnonzero((np.isfinite(change) & timeline.trained).any(axis=1))
        held = (change[rows] > self.least_change) & timeline.trained
        lasted = lasting(held, least=self.pairs, window=self.pairs)
        if lasted.any():
            changed = ever(lasted)
            shown = rows[(held & changed).any(axis=1)]
            factor = self._factor(timeline, changed, shown)
            yield self._other(timeline, changed, shown) if factor is None else self._scaled(timeline, changed, shown, factor)
        elif len(anew := self._made_anew(timeline)) >= self.times and not timeline.several_objectives:
            yield self._again(timeline, anew)

    def _made_anew(self, timeline: Timeline) -> Indices:
        """The sampled steps before which most matrices were replaced by others."""
        change = timeline.column("update.outside_change")[:, matrices(timeline)]
        known = np.isfinite(change).sum(axis=1)
        return np.flatnonzero((known > 0) & ((change >= self.anew).sum(axis=1) > known / 2))

    def _again(self, timeline: Timeline, rows: Indices) -> Hit:
        sites = matrices(timeline)
        size = median_of(timeline.column("update.outside_change")[np.ix_(rows, np.flatnonzero(sites))])
        stays = self._optimizer_stays(timeline, rows)
        names = parameter_names(timeline, sites)
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"relative_change": size, "times": len(rows), "optimizer_stays": stays, "parameters": names},
            message=(
                f"{len(rows)} times, at step {timeline.steps[rows[0]]} first and at step {timeline.steps[rows[-1]]} last, the "
                f"weights changed between two optimizer steps by {size:.2g} of their norm: they were made anew."
            ),
            remedy=_ONCE,
            severity=Severity.WARNING if stays and not timeline.converged else Severity.INFO,
            strength=5.0 if stays else 2.0,
        )

    def _optimizer_stays(self, timeline: Timeline, rows: Indices) -> bool:
        """Whether Adam remembers what came before these steps: a new one's first step has the length of the run's first."""
        if any(optimizer.type not in ("Adam", "AdamW") for optimizer in timeline.info.optimizers) or timeline.steps[0] != 0:
            return False
        sites = matrices(timeline)
        lengths = (timeline.column("update.ratio") * timeline.column("weight.norm"))[:, sites].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            lengths = lengths / rates_at(timeline, timeline.steps)[:, None]
            return median_of(lengths[rows] / lengths[0]) < self.remembers

    def _factor(self, timeline: Timeline, changed: Mask, rows: Indices) -> float | None:
        """The factor that all these weights were multiplied by, or None where they were not."""
        factors = timeline.column("update.outside_factor")[np.ix_(rows, np.flatnonzero(changed))].astype(np.float64)
        residuals = timeline.column("update.outside_residual")[np.ix_(rows, np.flatnonzero(changed))]
        known = np.isfinite(factors) & np.isfinite(residuals)
        if not known.any() or (residuals[known] >= self.largest_residual).mean() > 0.1:
            return None
        factor = median_of(factors[known])
        spread = np.quantile(np.abs(factors[known] - factor), 0.9)
        return factor if factor != 1 and spread <= self.factor_spread * abs(1 - factor) else None

    def _scaled(self, timeline: Timeline, changed: Mask, rows: Indices, factor: float) -> Hit:
        names = parameter_names(timeline, changed)
        halving = math.log(2) / -math.log(factor) if 0 < factor < 1 else math.nan
        pace = f", a weight decay that halves them every {halving:.0f} steps" if factor < 1 and halving >= 1 else ""
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"factor": round(factor, 6), "pairs": len(rows), "parameters": names},
            message=(
                f"Between optimizer steps {len(names)} weights ({named(names)}) are multiplied by {factor:.6g}{pace}; "
                "this does not touch a gradient."
            ),
            remedy=_remedy(timeline, factor),
            severity=self._severity(timeline, factor),
            strength=10.0,
        )

    def _severity(self, timeline: Timeline, factor: float) -> Severity:
        strong = abs(1 - factor) >= self.harmless_shrinkage
        if works(timeline):
            return Severity.WARNING if strong else Severity.INFO
        return Severity.CRITICAL if strong else Severity.WARNING

    def _other(self, timeline: Timeline, changed: Mask, rows: Indices) -> Hit:
        names = parameter_names(timeline, changed)
        size = median_of(timeline.column("update.outside_change")[np.ix_(rows, np.flatnonzero(changed))])
        share = self._share(timeline, changed)
        undone = self._undone(share)
        hinders = self._hinders(timeline, share)
        what = (
            f", about as far as the steps themselves had moved them ({100 * share:.0f} %): the optimizer's work is taken back"
            if undone
            else ", and by no common factor: a projection, a clamp, or an average of weights"
        )
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"relative_change": size, "of_update": plain(share), "pairs": len(rows), "parameters": names},
            message=f"Between optimizer steps {len(names)} weights ({named(names)}) change by {size:.2g} of their norm{what}.",
            remedy=_KEEP_A_COPY if hinders else _IF_MEANT,
            severity=Severity.WARNING if hinders else Severity.INFO,
            strength=3.0 if undone or not hinders else 2.5,
        )

    def _share(self, timeline: Timeline, changed: Mask) -> float:
        """How far these matrices change outside the steps, over how far steps move them, in the median one; NaN if unknown."""
        places = np.flatnonzero(changed & np.isfinite(timeline.update_ratios).any(axis=0))
        outside, inside = (row_medians(timeline.column(f"update.{name}")[:, places].T) for name in ("outside_change", "ratio"))
        return median_of(np.divide(outside, inside, out=np.full(len(places), np.nan), where=inside > 0))

    def _undone(self, share: float) -> bool:
        return self.taken_back <= share <= 1 / self.taken_back

    def _hinders(self, timeline: Timeline, share: float) -> bool:
        if timeline.step_count < PATIENCE or timeline.several_objectives:
            return False
        if self._undone(share) and not timeline.last_loss < self.well * timeline.baseline:
            return True
        return share >= self.hindering and not works(timeline) and not timeline.progressing


def _remedy(timeline: Timeline, factor: float) -> Remedy:
    rate = next((optimizer.learning_rate for optimizer in timeline.info.optimizers if optimizer.learning_rate > 0), None)
    decay = f" If decay is meant, use weight_decay={(1 - factor) / rate:.2g} instead." if rate and 0 < factor < 1 else ""
    return Remedy(
        text=f"Take out the line that scales the weights; to clip gradients, clip them between backward() and step().{decay}",
        code=(
            "# and in place of backward() and step():\noptimizer.zero_grad()\nloss.backward()\n"
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={clipping_norm(timeline):g})\n"
            "optimizer.step()"
        ),
    )
