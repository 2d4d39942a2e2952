"""Losses that are given something else than they are made for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import run_length
from gradscope.objective import given
from gradscope.objective import given_to
from gradscope.objective import loss_weight
from gradscope.objective import output_module
from gradscope.objective import sole_loss
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of


@dataclass(frozen=True)
class _Mismatch:
    """What is wrong between the model and a loss."""

    loss: LossInfo
    clause: str  # what the loss is given, and what comes of it
    remedy: Remedy
    evidence: dict[str, object]
    severity: Severity = Severity.CRITICAL


@final
@dataclass(frozen=True)
class LossInputMismatch(Rule):
    """The loss function is given something it is not made for: raw outputs for log-probabilities, or masks of 0 and 255.

    ## What it does

    Looks in the autograd graph at loss functions and at what makes their input, and speaks in three cases:

    - `nll_loss`, `kl_div` or `ctc_loss` takes something other than log-probabilities: the output of a softmax, sigmoid, ReLU or
      tanh, or numbers whose mean is above half of -ln C at the start (the mean of log-probabilities over C classes cannot be
      above -ln C), with a loss that goes below zero;
    - the targets of `binary_cross_entropy`, with logits or without, leave the range from 0 to 1 in half of the batches seen;
    - `cross_entropy` or `nll_loss` has one class to choose from.

    ## Why it is bad

    The negative log-likelihood of raw outputs is minus the output of the true class: it falls for ever as that output grows,
    and no other output has to shrink. So it is with targets of 255 where 1 is meant: every logit grows without end, and the
    sharper the targets, the faster. A softmax over a single class is always 1: the loss and every gradient are zero.

    ## How it is told apart

    - Log-probabilities that were normalised by hand have no log_softmax in the graph; their mean tells them from raw outputs.
    - A second softmax before `cross_entropy` is `double-softmax`; outputs that cannot reach their targets, `output-range`.
    - Targets are judged where it is plain which loss they belong to. Rounding (1.001) is no fault, and a range that one batch
      in many leaves is a broken sample, not a broken contract.
    - Policy gradients multiply log-probabilities with rewards and may be negative: their loss is no mean of its own
      (`reduction="none"`) and is left alone.

    ## What to do

    `cross_entropy` on raw outputs; `nll_loss` and `kl_div` on the output of `log_softmax`; `binary_cross_entropy_with_logits`
    where there is one output, on targets between 0 and 1.

    ## Known false alarms

    None known.

    ## References

    Documentation of `torch.nn.NLLLoss`: "The input given through a forward call is expected to contain log-probabilities of
    each class", of `torch.nn.BCEWithLogitsLoss`: targets "have to be numbers between 0 and 1". Measured: a segmentation with
    masks of 0 and 255 fell from 9.6 to -281 in 80 steps, a CTC loss over a softmax from -3.7 to -4.3 in 120. N. Humbatova et
    al., "Taxonomy of Real Faults in Deep Learning Systems" (ICSE 2020), "loss function".
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss",)
    explains: ClassVar[tuple[str, ...]] = (
        "loss-unbounded-below", "loss-divergence", "loss-plateau", "collapsed-output", "lr-too-low", "initial-loss-off",
        "vanishing-gradients", "weights-not-moving", "labels-unrelated", "exploding-gradients", "gradient-spikes",
        "activation-growth", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "lr-too-high",
        "adam-epsilon-dominates", "output-range", "dead-units",
    )  # fmt: skip

    highest_mean: float = 0.5  # of -ln C, that the mean of log-probabilities has to be under
    first_frames: int = 3  # sampled steps, whose median is the input's mean
    negative_losses: int = 3  # losses below zero
    slack: float = 0.01  # by which rounding and smoothing may carry a target out of 0 to 1
    beyond_share: float = 0.5  # of the sampled steps, whose targets leave that range
    grave: float = 0.5  # how far outside they have to lie to waste a training at once

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = timeline.info.wiring.losses if timeline.info.wiring else ()
        found = {(loss.kind, loss.classes): loss for loss in reversed(losses)}
        for loss in found.values():
            mismatch = self._one_class(loss) or self._no_log_probabilities(timeline, loss) or self._no_shares(timeline, loss)
            if mismatch is not None:
                yield _hit(timeline, mismatch)

    def _one_class(self, loss: LossInfo) -> _Mismatch | None:
        batched = loss.input_shape is None or len(loss.input_shape) > 1
        if loss.kind not in ("cross_entropy", "nll") or loss.classes != 1 or not batched:
            return None
        remedy = Remedy(
            "Use binary_cross_entropy_with_logits for a model with one output, or give the model one output for each class.",
            "output = model(x).squeeze(1)\n"
            "loss = torch.nn.functional.binary_cross_entropy_with_logits(output, y.to(output.dtype).reshape(output.shape))",
        )
        clause = "is given one class: its softmax is always 1, so that loss and gradient are zero whatever the model does"
        return _Mismatch(loss, clause, remedy, {"classes": 1})

    def _no_log_probabilities(self, timeline: Timeline, loss: LossInfo) -> _Mismatch | None:
        if loss.kind not in ("nll", "kl_div", "ctc") or (loss.reduction == "none" and loss.kind != "ctc"):
            return None
        named = loss.producer in ("softmax", "sigmoid", "relu", "tanh")
        mean, highest = self._mean(timeline, loss)
        if not named and not (mean > highest and (loss.kind == "kl_div" or self._below_zero(timeline))):
            return None
        what = f"the output of a {loss.producer}" if named else f"numbers with a mean of {mean:.3g}"
        classes = f" over {loss.classes} classes" if loss.classes else ""
        bound = f", whose mean cannot be above {2 * highest:.3g}" if highest < 0 else ""
        return _Mismatch(
            loss,
            f"takes log-probabilities{bound}, and is given {what}{classes}: larger outputs lower it for ever",
            _log_probabilities(loss),
            {"producer": loss.producer, "mean": plain(mean), "last_loss": plain(timeline.last_loss)},
        )

    def _no_shares(self, timeline: Timeline, loss: LossInfo) -> _Mismatch | None:
        if loss.kind not in ("bce", "bce_with_logits"):
            return None
        low, high = (given_to(timeline, loss, name) for name in ("target_low", "target_high"))
        known = np.isfinite(low) & np.isfinite(high)
        beyond = known & ((low < -self.slack) | (high > 1 + self.slack))
        if not known.any() or np.count_nonzero(beyond) < self.beyond_share * np.count_nonzero(known):
            return None
        least, most = median_of(low[beyond]), median_of(high[beyond])
        outside = max(-least, most - 1)
        return _Mismatch(
            loss,
            f"takes targets between 0 and 1, and is given targets from {least:.4g} to {most:.4g}: no output "
            "is where it is least, and it falls for ever below zero",
            _shares(least, most),
            {"target_low": plain(least), "target_high": plain(most), "last_loss": plain(timeline.last_loss)},
            Severity.CRITICAL if outside > self.grave or self._below_zero(timeline) else Severity.WARNING,
        )

    def _mean(self, timeline: Timeline, loss: LossInfo) -> tuple[float, float]:
        """The mean of what the loss is given at the start, and above what it cannot be one of log-probabilities."""
        if sole_loss(timeline) is None:
            return math.nan, math.nan
        shape = loss.input_shape or ()
        classes = loss.classes or (shape[-1] if shape else 0)
        mean = median_of(given(timeline, "input_mean")[: self.first_frames])
        return mean, -self.highest_mean * math.log(classes) if classes > 1 else math.nan

    def _below_zero(self, timeline: Timeline) -> bool:
        """Whether the loss goes below zero, as the likelihood of probabilities cannot."""
        losses = timeline.loss / loss_weight(timeline)
        return bool(np.count_nonzero(losses < 0) >= self.negative_losses)


def _hit(timeline: Timeline, found: _Mismatch) -> Hit:
    first, last = run_length(timeline)
    return Hit(
        modules=output_module(timeline),
        first_step=first,
        last_step=last,
        evidence={"loss": found.loss.kind, **found.evidence},
        message=f"{found.loss.kind} {found.clause}.",
        remedy=found.remedy,
        severity=found.severity,
        strength=10.0,
    )


def _shares(low: float, high: float) -> Remedy:
    """Targets brought to 0 and 1."""
    low, high = min(low, 0.0), max(high, 1.0)
    shown = f"(y - {low:g}) / {high - low:g}" if low else f"y / {high:g}"
    return Remedy(
        "Bring the targets to 0 and 1; for numbers that are no shares take another loss, such as mse_loss.",
        f"y = {shown}  # between 0 and 1",
    )


def _log_probabilities(loss: LossInfo) -> Remedy:
    if loss.kind in ("ctc", "kl_div"):
        squashed = loss.producer == "softmax"  # the model ends in one: a log_softmax of that would squash it twice
        logarithm = "model(x).clamp_min(1e-30).log()" if squashed else "model(x).log_softmax(dim=-1)"
        where = f"in place of the softmax that stands before {loss.kind}" if squashed else f"before {loss.kind}"
        whole = f'loss = torch.nn.functional.kl_div({logarithm}, y, reduction="batchmean")'
        return Remedy(f"Put log_softmax {where}.", f"output = {logarithm}" if loss.kind == "ctc" else whole)
    instead = (
        f"and take out the {loss.producer} at the end of the model" if loss.producer else "or put log_softmax before nll_loss"
    )
    return Remedy(
        f"Use cross_entropy, which applies log_softmax itself, {instead}.",
        "loss = torch.nn.functional.cross_entropy(model(x), y)  # on raw outputs",
    )
