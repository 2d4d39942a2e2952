"""Losses that are a sum over the batch where the learning rate was chosen for a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import overshot
from gradscope.evidence import run_length
from gradscope.objective import adapts
from gradscope.objective import each
from gradscope.objective import loss_weight
from gradscope.objective import sole_loss
from gradscope.objective import terms
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

FUNCTIONS = {
    "cross_entropy": "cross_entropy", "nll": "nll_loss", "mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss",
    "bce": "binary_cross_entropy", "bce_with_logits": "binary_cross_entropy_with_logits", "kl_div": "kl_div",
}  # fmt: skip


@dataclass(frozen=True)
class _Sum:
    loss: LossInfo
    terms: float
    factor: float  # by which the gradient is longer than that of the mean
    size: float  # median update ratio of the first steps
    start: float  # that of the first step, before which nothing can have blown up
    overshoot: float | None  # the first above 1 that was measured
    without: float | None  # what it would be with the mean

    @property
    def over_calls(self) -> bool:
        """Whether it is added up from many calls of a function each of which is a mean."""
        return self.loss.reduction != "sum"


@final
@dataclass(frozen=True)
class LossReductionSum(Rule):
    """The loss is summed over the batch and not averaged, which multiplies every gradient and with it the learning rate.

    ## What it does

    Looks in the autograd graph for a loss with `reduction="sum"` that is not divided afterwards, or for one written by hand,
    such as a likelihood, that ends in a bare `sum()`, or is added up from eight calls of a loss function or more. It blames
    it where the optimizer takes steps in proportion to the gradient, and they are too long, and those of a mean would not be:
    the first five steps move the median weight matrix by a tenth of its norm or more, or the step goes beyond the far side of
    the valley when the batch is tried again (an overshoot above 1). Otherwise a sum is an aside.

    ## Why it is bad

    With a sum over N samples the gradient is N times as long, and so is each step of SGD; a learning rate that is right for
    one batch size is wrong for the next, and a smaller last batch makes a smaller step.

    ## How it is told apart

    - Steps that would be too long for the mean as well, N times shorter, are the learning rate's fault. The first step
      tells: those after it may have blown up.
    - A sum that is divided by the batch (as losses over pictures often are) counts for what it is multiplied with in all: less
      than half of N, or less than 8, is left alone.
    - A loss that is added up from a function's calls, sample by sample or step by step, is known by the first eight of them,
      if all have the same weight: there may be more, and a mean over eight is what its steps are compared with.
    - Of a loss written by hand it is not known what its sum is over: the first dimension is taken for the batch. Where no
      overshoot was measured and the loss has not jumped, it is an aside for twenty steps.
    - Adam, RMSprop and Adagrad divide by the gradient's size: there the sum changes next to nothing.

    Measured with 64 digits a batch and SGD at 0.1: the sum's first step had an overshoot of 9.87; divided by 64 that is 0.154,
    and so it was with the mean. The likelihood of a mixture of Gaussians, summed over 200 points, moved the median matrix by 68
    % in its first step and by 0.34 % as a mean.

    ## What to do

    Use `reduction="mean"`, or divide the loss by the number of calls that it is added up from; or divide the learning rate by
    the number of terms.

    ## Known false alarms

    None known. Where training works the sum is an aside.

    ## References

    P. Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 3, on loss scale and learning rate.
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.reduction", "update.ratio", "pulse.loss")
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "loss-divergence", "gradient-spikes", "dead-units", "saturated-units",
        "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau", "collapsed-output", "initial-loss-off",
        "oscillating-loss", "activation-growth", "weights-not-moving", "unnormalized-input", "vanishing-gradients",
        "clipping-too-tight", "fp16-overflow", "attention-logit-growth", "output-logit-drift",
    )  # fmt: skip

    least_terms: float = 8.0  # that the sum is over
    least_share: float = 0.5  # of the terms, that the sum has to be multiplied with in all
    large_step: float = 0.1  # median update ratio
    first_frames: int = 5  # sampled steps whose size counts
    patience: int = 20  # steps before which a sum that is not known is not blamed without a measure

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss = sole_loss(timeline) or _by_hand(timeline)
        each_alone = None if loss is not None else _one_by_one(timeline)
        if each_alone is not None:
            found = self._measured(timeline, *each_alone)
        elif loss is not None and loss.reduction == "sum" and len(timeline.loss) and _is_weighed(timeline, loss):
            count = terms(timeline, loss)
            found = self._measured(timeline, loss, count, count * abs(loss_weight(timeline)))
        else:
            return
        if found.factor >= max(self.least_terms, self.least_share * found.terms):
            yield self._hit(timeline, found)

    def _measured(self, timeline: Timeline, loss: LossInfo, count: float, factor: float) -> _Sum:
        sizes = step_sizes(timeline)[: self.first_frames]
        size, start = median_of(sizes), float(next(iter(sizes[np.isfinite(sizes)]), math.nan))
        probe = next((p for p in timeline.info.probes if p.overshoot > 1), None)
        if probe is None:
            return _Sum(loss, count, factor, size, start, None, None)
        without = probe.without.get("loss-reduction-sum", probe.overshoot / factor if factor > 0 else math.nan)
        return _Sum(loss, count, factor, size, start, probe.overshoot, without)

    def _to_blame(self, timeline: Timeline, found: _Sum) -> bool:
        """Whether steps are too long and would not be with the mean."""
        if adapts(timeline):
            return False
        if found.overshoot is not None and found.without is not None:
            return found.without < 1
        if found.loss.kind == "other" and timeline.step_count < self.patience and not overshot(timeline):
            return False
        refuted = bool(timeline.info.probes) and all(p.overshoot < 0.5 for p in timeline.info.probes)
        return not refuted and found.size > self.large_step > found.start / found.factor

    def _hit(self, timeline: Timeline, found: _Sum) -> Hit:
        first, last = run_length(timeline)
        blamed = self._to_blame(timeline, found)
        rate = median_of(timeline.pulse("learning_rate")[: self.first_frames])
        return Hit(
            modules=(),
            first_step=first,
            last_step=last,
            evidence={
                "loss": found.loss.kind,
                "terms": plain(found.terms),
                "factor": plain(found.factor),
                "update_ratio": plain(found.size),
                "overshoot": plain(found.overshoot) if found.overshoot is not None else None,
                "overshoot_of_the_mean": plain(found.without) if found.without is not None else None,
            },
            message=self._message(timeline, found, blamed=blamed),
            remedy=_remedy(found, rate),
            severity=self._severity(timeline, found) if blamed else Severity.INFO,
            strength=(5.0 if found.overshoot is not None else 4.0) if blamed else 1.0,
        )

    def _message(self, timeline: Timeline, found: _Sum, *, blamed: bool) -> str:
        name = "The loss" if found.loss.kind == "other" else found.loss.kind
        least = "at least " if found.over_calls else ""
        begins = f"{name} is a sum over {least}{found.terms:.0f} terms, so that gradients are {found.factor:.3g} times those"
        if not blamed:
            why = "the optimizer makes up for" if adapts(timeline) else "the learning rate seems to make up for"
            return f"{begins} of a mean, which {why}."
        if found.overshoot is not None:
            return (
                f"{begins} of a mean: steps overshoot {found.overshoot:.3g} times, and {found.without:.3g} times with a mean."
            )
        return f"{begins} of a mean, and the first steps moved the median weight matrix by {found.size:.3g} of its norm."

    def _severity(self, timeline: Timeline, found: _Sum) -> Severity:
        """By the loss as a mean, which the loss of a constant prediction is known as."""
        if timeline.onset is not None:
            return Severity.CRITICAL
        last = timeline.last_loss / found.factor if found.over_calls else each(timeline, found.loss, timeline.last_loss)
        classes = _classes(found.loss)
        guess = math.log(classes) if found.loss.kind == "cross_entropy" and classes > 1 else math.inf
        if timeline.learning and last < 0.95 * guess:
            return Severity.INFO if last < 0.5 * guess or math.isinf(guess) else Severity.WARNING
        return Severity.CRITICAL if np.isfinite(timeline.loss).all() and timeline.step_count >= 100 else Severity.WARNING


def _is_weighed(timeline: Timeline, loss: LossInfo) -> bool:
    """Whether it is known what a sum was multiplied with, as it may be divided by its terms; of one's own none ever is."""
    return loss.kind == "other" or math.isfinite(timeline.loss_weight)


def _by_hand(timeline: Timeline) -> LossInfo | None:
    """The loss where it is the only one, is not recognised, and is a bare sum."""
    losses = timeline.info.wiring.losses if timeline.info.wiring else ()
    bare = len(losses) == 1 and losses[0].kind == "other" and losses[0].reduction == "sum"
    return losses[0] if bare and not timeline.several_objectives else None


def _one_by_one(timeline: Timeline) -> tuple[LossInfo, float, float] | None:
    """A loss that is added up from many calls of one function, of a sample each, say; how many are known, and their weight."""
    losses = timeline.info.wiring.losses if timeline.info.wiring else ()
    alike = {(loss.kind, loss.classes) for loss in losses}
    if len(alike) != 1 or losses[0].kind == "other" or timeline.several_objectives or not len(timeline.loss):
        return None
    weights = [median_of(column) for column in timeline.column("loss.weight").T]
    same = len(weights) > 1 and all(weight == weights[0] for weight in weights)
    return (losses[0], float(len(weights)), abs(sum(weights))) if same and losses[0].reduction != "sum" else None


def _classes(loss: LossInfo) -> int:
    """Classes of a cross-entropy, also of one that is written out, by the shape of its logits."""
    shape = loss.input_shape or ()
    return loss.classes or (shape[1] if loss.kind == "cross_entropy" and len(shape) > 1 else 0)


def _remedy(found: _Sum, rate: float) -> Remedy:
    if found.over_calls:
        return _over_calls(found.loss)
    mean = _mean(found)
    if not rate > 0 or not found.factor > 0:
        return Remedy("Average the loss over the batch.", mean)
    lower = one_digit(rate / found.factor)
    return Remedy(
        f"Average the loss over the batch; or keep the sum and lower the learning rate from {rate:g} to {lower:g}.",
        f"{mean}; or keep the sum, with a learning rate of {lower:g}",
    )


def _over_calls(loss: LossInfo) -> Remedy:
    """How many calls there are is not known beyond the first; where each is of one sample, it is the batch that tells."""
    function = FUNCTIONS.get(loss.kind, loss.kind)
    alone = loss.target_shape is not None and math.prod(loss.target_shape) == 1
    return Remedy(
        f"Divide the loss by the number of calls of {function} that it is added up from.",
        "loss = loss / len(y)  # before loss.backward(): a mean over the batch" if alone else None,
    )


def _mean(found: _Sum) -> str:
    """Code for the loss as a mean."""
    if found.loss.kind == "other":
        return f"loss = loss / {found.terms:.0f}  # before loss.backward(): a mean"
    function = FUNCTIONS.get(found.loss.kind, found.loss.kind)
    output = "output.log_softmax(dim=-1)" if found.loss.kind in ("nll", "kl_div") else "output"
    return f"output = model(x)\nloss = torch.nn.functional.{function}({output}, y)  # a mean, as it is by default"
