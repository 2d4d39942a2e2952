"""A limit on the gradient's norm that no step gets by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import gravity
from gradscope.evidence import usual_rate
from gradscope.evidence import warming_up
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

LOOK = 200  # clipped steps that the remedy looks back on
SAME = 1e-6  # relative difference of two float32 numbers that are the same limit
SAME_NORM = 1e-3  # relative difference of norms that were brought to one limit, which often has a small constant beside it
LEAST_NOISE = 1e-5  # of a loss, relative, that is more than the rounding of float32
LEAST_PARAMETERS = 3  # with a gradient, that a common largest element is no coincidence


@final
@dataclass(frozen=True)
class ClippingTooTight(Rule):
    """Nearly every step clips the gradient to a fraction of its size, so that training is slower than its learning rate says.

    ## What it does

    Reads what `clip_grad_norm_` found and what it was given as a limit. A limit on single elements, as `clip_grad_value_` or
    `clamp_` sets it, is seen in the gradients themselves: the largest element of nearly every parameter's gradient has one and
    the same magnitude, step after step; a limit on the norm that a loop sets by hand, in a norm of all gradients that is the
    same step after step. It speaks, for plain SGD with or without momentum, where after 100 steps more than 95 %
    of ten sampled calls or more clipped, to less than a tenth of the norm in the median (or where half of the elements stand at
    the limit, so that the gradient is hardly more than its sign), and the median update ratio is below 0.001. Where training
    works all the same the finding is an aside.

    ## Why it is bad

    Clipping is meant for the rare step. Where it shortens each one to a tenth, the learning rate that acts is a tenth of what
    was set, and it is coupled to the gradient's norm: a limit of 0.001 with SGD left an update ratio of 0.000004. A limit of
    0.00001 on each element took a loss from 0.716 to 0.706 in 250 steps, which came to 0.096 with a limit of 1. Gradients
    that a loop brought to a norm of 0.001 by hand left digits at 2.31 after 300 steps of SGD at 0.1, where they had begun.

    ## How it is told apart

    - Adam and its kin divide by the gradient's size: the same factor in every step changes nothing there, and clipping every
      step is common. They are not judged.
    - Where steps are of an ordinary size in spite of it (0.001 and more), the limit holds back gradients that are too large;
      see exploding-gradients.
    - Gradients that are clipped at the wrong moment are clipping-misplaced, and are not counted.
    - Where weights hardly move and each batch is the whole data, gradients are the same in every step, and so are the losses.
      A norm that is set by hand stays the same while losses go up and down, by ten times as much at least.
    - A warm-up is left alone.

    ## What to do

    Set the limit where ordinary steps pass, at the 90th percentile of the norms before clipping; lower the learning rate
    instead where that is too fast.

    ## Known false alarms

    Differentially private training clips each gradient by design; there the learning rate is set for it.

    ## References

    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013, section 3.2: half to
    ten times the average norm.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.ratio", "fact.optimizer")
    least_steps: ClassVar[int] = 100
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "lr-too-low", "weights-not-moving", "labels-unrelated", "bf16-stalled-updates",
    )  # fmt: skip

    least_share: float = 0.95  # of the calls that clipped
    most_left: float = 0.1  # of the norm, in the median call
    most_ratio: float = 1e-3  # median update ratio
    least_calls: int = 10  # sampled
    least_alike: float = 0.8  # of the parameters, whose largest gradient element has the same magnitude
    least_norms: int = 20  # steps whose gradient norm is known
    least_full: float = 0.7  # of the norm that a gradient has with every element at the limit

    def obstacle(self, timeline: Timeline) -> str | None:
        found = Rule.obstacle(self, timeline)
        by_hand = self._limit(timeline) or self._norm(timeline)
        return found if found is not None or by_hand is not None else timeline.lack("step.clip_norm")

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not all(_keeps_size(o.type) for o in timeline.info.optimizers) or timeline.converged or warming_up(timeline):
            return
        size = median_of(step_sizes(timeline))
        if not 0 < size < self.most_ratio:
            return
        rows, left = _calls(timeline)
        limit = self._limit(timeline)
        if limit is not None:
            yield self._hit_of_elements(timeline, limit, size)
        elif len(rows) >= self.least_calls and np.mean(left < 1) > self.least_share and middles.median(left) < self.most_left:
            yield self._hit(timeline, rows, left, size)
        elif not len(rows) and (norm := self._norm(timeline)) is not None:
            yield self._hit_of_norm(timeline, norm, size)

    def _norm(self, timeline: Timeline) -> float | None:
        """The norm that the gradients have in every step, while losses differ from one to the next."""
        norms, losses = timeline.pulse("gradient_norm"), timeline.loss[np.isfinite(timeline.loss)]
        norms = norms[np.isfinite(norms) & (norms > 0)]
        if len(norms) < self.least_norms or len(losses) < self.least_norms:
            return None
        limit = middles.median(norms)
        noise = middles.median(np.abs(np.diff(losses))) / max(abs(middles.median(losses)), 1e-12)
        away = np.abs(norms - limit) / limit
        steady = np.mean(away <= SAME_NORM) > self.least_share
        return limit if steady and noise >= 10 * max(middles.median(away), LEAST_NOISE) else None

    def _hit_of_norm(self, timeline: Timeline, limit: float, size: float) -> Hit:
        rate = usual_rate(timeline)
        return Hit(
            modules=(),
            first_step=0,
            last_step=timeline.step_count - 1,
            evidence={"limit": plain(limit), "update_ratio": plain(size), "learning_rate": plain(rate), "of": "norm"},
            message=(
                f"The norm of all gradients was {limit:.3g} in every step, as something in the loop sets it, and a step "
                f"changes the median weight matrix by {size:.2g} of its norm."
            ),
            remedy=Remedy(
                f"Clip only what is longer than usual, at 1 and not at {limit:.3g}.",
                f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # in place of a norm of {limit:.3g}",
            ),
            severity=gravity(timeline),
            strength=4.0,
        )

    def _limit(self, timeline: Timeline) -> float | None:
        """The magnitude that elements of gradients are clipped at, where most of them are."""
        trained = timeline.trained
        largest = timeline.column("weight_gradient.absmax")[:, trained].astype(np.float64)
        norms = timeline.column("weight_gradient.norm")[:, trained].astype(np.float64)
        known = [timeline.parameters.get(s.path) for s, own in zip(timeline.schema.parameters, trained, strict=True) if own]
        sizes = np.array([parameter.size if parameter else np.nan for parameter in known])
        seen = np.isfinite(largest) & (largest > 0)
        rows = seen.sum(axis=1) >= LEAST_PARAMETERS
        if np.count_nonzero(rows) < self.least_calls:
            return None
        limit = middles.median(largest[rows][seen[rows]])
        same = seen & (np.abs(largest - limit) <= SAME * limit)
        alike = same[rows].sum(axis=1) >= self.least_alike * seen[rows].sum(axis=1)
        full = median_of((norms / (limit * np.sqrt(sizes)))[rows])
        return limit if np.mean(alike) > self.least_share and self.least_full < full <= 1 + SAME * 1e3 else None

    def _hit_of_elements(self, timeline: Timeline, limit: float, size: float) -> Hit:
        rate = usual_rate(timeline)
        return Hit(
            modules=(),
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1]),
            evidence={"limit": plain(limit), "update_ratio": plain(size), "learning_rate": plain(rate), "of": "elements"},
            message=(
                f"Most elements of the gradients were clipped at {limit:.3g}, so that little more than their sign is left, and "
                f"a step changes the median weight matrix by {size:.2g} of its norm."
            ),
            remedy=Remedy(
                f"Clip the norm instead of the elements, or raise the limit of {limit:.3g} a thousandfold.",
                f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # not {limit:.3g} on elements",
            ),
            severity=gravity(timeline),
            strength=4.0,
        )

    def _hit(self, timeline: Timeline, rows: npt.NDArray[np.intp], left: npt.NDArray[np.float64], size: float) -> Hit:
        norms = timeline.column("step.clip_norm")[rows, 0]
        limit = median_of(timeline.column("step.clip_limit")[rows, 0])
        rate, median = usual_rate(timeline), middles.median(left)
        better = float(f"{middles.percentile(norms[-LOOK:], 90):.2g}")
        acts = f" A learning rate of {rate:g} acts like {rate * median:.2g}." if math.isfinite(rate) else ""
        return Hit(
            modules=(),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={
                "limit": plain(limit),
                "gradient_norm": plain(median_of(norms)),
                "left": plain(median),
                "share_clipped": plain(float(np.mean(left < 1))),
                "update_ratio": plain(size),
                "learning_rate": plain(rate),
            },
            message=(
                f"{100 * np.mean(left < 1):.0f} % of {len(rows)} sampled steps were clipped at {limit:g}, where the gradient's "
                f"norm is {median_of(norms):.3g}, and a step changes the median weight matrix by {size:.2g} of its norm."
            ),
            remedy=Remedy(
                f"Raise the limit from {limit:g} to {better:g}, the 90th percentile of the norms.{acts}",
                f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={better:g})  # was {limit:g}",
            ),
            severity=gravity(timeline),
            strength=4.0,
        )


def _calls(timeline: Timeline) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Sampled steps that clipped where it counts, and what each left of the gradient; [calls]."""
    norm, limit, place = (timeline.column(f"step.{name}")[:, 0].astype(np.float64) for name in _COLUMNS)
    known = np.isfinite(norm) & (norm > 0) & np.isfinite(limit) & (limit > 0) & ~(place > 0)
    rows = np.flatnonzero(known)
    return rows, np.minimum(limit[rows] / norm[rows], 1.0)


_COLUMNS = ("clip_norm", "clip_limit", "clip_place")


def _keeps_size(optimizer: str) -> bool:
    """Whether an optimizer's step is in proportion to the gradient, by its name."""
    name = optimizer.lower()
    return "sgd" in name and "sign" not in name
