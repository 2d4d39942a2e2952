"""Weights that change between two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import clipping_norm
from gradscope.evidence import ever
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class WeightsChangedOutsideOptimizer(Rule):
    """Something else than the optimizer changes the weights between steps.

    ## What it does

    Compares each weight at the end of a step with the same weight at the beginning of the next. It speaks when a weight
    that the optimizer holds differs by more than one part in a million, three pairs of consecutive steps in a row, and
    tells whether one common factor explains the difference.

    ## Why it is bad

    `p.data *= 0.99` after each step is sometimes meant as gradient clipping. It does not touch a gradient: it is a weight
    decay that halves every weight in 69 steps, whatever the loss says, and with it the output of the network. The loss comes
    to rest where the decay and the gradient balance, and exploding gradients explode as before.

    ## How it is told apart

    Weight decay of the optimizer (`weight_decay=`) happens within its step and is not seen here; loading a checkpoint or
    re-initialising a layer happens once. Where no common factor fits, the change is a projection, a clamp as in WGAN, or an
    average over weights, which people mean to make: the finding is then for information.

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
    explains: ClassVar[tuple[str, ...]] = ("excessive-weight-decay", "loss-plateau", "collapsed-output", "vanishing-gradients")

    least_change: float = 1e-6  # of the weight's norm; rounding there and back (SAM) leaves less in float32
    pairs: int = 3  # consecutive pairs of sampled steps
    largest_residual: float = 0.05  # of the change, that a factor may leave unexplained
    factor_spread: float = 0.2  # of the shrinkage, by which factors of different weights may differ
    harmless_shrinkage: float = 1e-3  # per step

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
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"relative_change": size, "pairs": len(rows), "parameters": names},
            message=(
                f"Between optimizer steps {len(names)} weights ({named(names)}) change by {size:.2g} of their norm, and by no "
                "common factor: a projection, a clamp, or an average of weights."
            ),
            remedy=Remedy("Nothing, where the change is meant; else find what writes to the weights after optimizer.step()."),
            severity=Severity.INFO,
            strength=3.0,
        )


def _remedy(timeline: Timeline, factor: float) -> Remedy:
    rate = next((optimizer.learning_rate for optimizer in timeline.info.optimizers if optimizer.learning_rate > 0), None)
    decay = f" If decay is meant, use weight_decay={(1 - factor) / rate:.2g} instead." if rate and 0 < factor < 1 else ""
    return Remedy(
        text=f"Take out the line that scales the weights; to clip gradients, clip them between backward() and step().{decay}",
        code=(
            "loss.backward()\n"
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={clipping_norm(timeline):g})\n"
            "optimizer.step()"
        ),
    )
