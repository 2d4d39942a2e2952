"""Outputs that cannot reach what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import run_length
from gradscope.evidence import works
from gradscope.objective import REGRESSIONS
from gradscope.objective import Targets
from gradscope.objective import breach
from gradscope.objective import given
from gradscope.objective import output_module
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.rule import Rule
from gradscope.timeline import Timeline

RANGES = {
    "relu": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0), "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf), "gelu": (-0.17, math.inf), "silu": (-0.2785, math.inf), "mish": (-0.3088, math.inf),
}  # fmt: skip
MODULES = {
    "relu": ("ReLU", "ReLU6"), "sigmoid": ("Sigmoid",), "tanh": ("Tanh",), "softmax": ("Softmax",), "softplus": ("Softplus",),
    "exp": (), "gelu": ("GELU",), "silu": ("SiLU",), "mish": ("Mish",),
}  # fmt: skip
ON_LOGITS = {"cross_entropy": ("relu", "sigmoid", "tanh"), "bce_with_logits": ("relu", "tanh")}
ON_SIGNS = ("hinge", "soft_margin")  # the sign of the output is compared with targets of -1 and 1


@final
@dataclass(frozen=True)
class OutputRange(Rule):
    """The model ends in an activation that cannot reach what the loss asks for, such as a ReLU before a cross-entropy.

    ## What it does

    Looks in the autograd graph at what makes the loss's input. It speaks where that is a ReLU, sigmoid or tanh before
    `cross_entropy`, or a ReLU or tanh before `binary_cross_entropy_with_logits`, which take logits of any size and sign; or
    where a squared, absolute or Huber loss has targets, or a hinge or logistic loss has signs, that go beyond the activation's
    range by more than half of their standard deviation. The range is also known of softplus, exp, SiLU, GELU and Mish.

    ## Why it is bad

    A ReLU has no logits below zero, and gives no gradient to those that would be. Logits between 0 and 1 keep the loss of ten
    classes above 1.46, those between -1 and 1 above 0.80, however good the model is. With a score that is never negative a
    hinge loss keeps a loss of 1 on each sample of the negative class. A tanh never reaches a target of 2.5, and saturates in
    trying.

    ## How it is told apart

    - By the operation that made the output, not by its values; the targets' range is the median over the sampled batches, so
      that one outlier does not count.
    - Logits that are capped on purpose, 30 · tanh(x / 30), have a range of their own: a factor above 1 behind the activation
      is left alone, and so is an input of the loss that goes beyond the range.
    - A softmax or sigmoid before a loss that applies its own is `double-softmax`.
    - Targets that are far from unit variance are `unscaled-target`; with one of these activations both hold.

    ## What to do

    Take the activation out of the model's end, or bring the targets into its range.

    ## Known false alarms

    None known. Such models learn what lies within the range: where training has converged all the same the finding is an aside.

    ## References

    N. Humbatova et al., "Taxonomy of Real Faults in Deep Learning Systems" (ICSE 2020), "activation function": a wrong one in
    the output layer. Measured: with a ReLU before cross_entropy a classifier of digits came to 0.27 of its first loss; a hinge
    loss behind a ReLU came from 0.99 to 0.50, and to 0.00 without it.
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss",)
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "collapsed-output", "lr-too-low", "initial-loss-off", "vanishing-gradients", "saturated-units",
        "dead-units", "labels-unrelated", "weights-not-moving", "saturating-activation", "adam-epsilon-dominates",
    )  # fmt: skip

    most_beyond: float = 0.5  # standard deviations of the targets, that they go beyond the range
    slack: float = 1e-3  # by which rounding may carry an output beyond it

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = timeline.info.wiring.losses if timeline.info.wiring else ()
        found = {(loss.kind, loss.producer): loss for loss in reversed(losses) if loss.producer in RANGES}
        for loss in found.values():
            if loss.producer in ON_LOGITS.get(loss.kind, ()):
                if not self._scaled(timeline, str(loss.producer)):
                    yield self._hit(timeline, loss, _on_logits(loss), {"classes": loss.classes, **_floor(loss)})
            elif loss.kind in (*REGRESSIONS, *ON_SIGNS) and sole_loss(timeline) is loss:
                known = targets(timeline)
                beyond = _beyond(loss, known) if known else 0.0
                if known and beyond > self.most_beyond * known.std and not self._scaled(timeline, str(loss.producer)):
                    evidence = {"target_low": plain(known.low), "target_high": plain(known.high), "beyond": plain(beyond)}
                    yield self._hit(timeline, loss, _on_targets(loss, known), evidence)

    def _scaled(self, timeline: Timeline, producer: str) -> bool:
        """Whether the loss's input goes beyond the activation's range, as it does where it is multiplied."""
        rms = given(timeline, "input_rms")
        return bool((rms[np.isfinite(rms)] > RANGES[producer][1] + self.slack).any())

    def _hit(self, timeline: Timeline, loss: LossInfo, clause: str, evidence: Mapping[str, object]) -> Hit:
        module = _module(timeline, str(loss.producer))
        source = f"{loss.producer} ({module})" if module else str(loss.producer)
        first, last = run_length(timeline)
        return Hit(
            modules=(module,) if module else output_module(timeline),
            first_step=first,
            last_step=last,
            evidence={"loss": loss.kind, "producer": loss.producer, "works": works(timeline), **evidence},
            message=f"The input of {loss.kind} comes out of a {source}, {clause}.",
            remedy=_remedy(loss, module, source),
            severity=breach(timeline),
            strength=10.0,
        )


def _beyond(loss: LossInfo, known: Targets) -> float:
    """How far the targets go beyond the range of the output."""
    low, high = RANGES[str(loss.producer)]
    return max(low - known.low, known.high - high, 0.0)


def _floor(loss: LossInfo) -> dict[str, float]:
    """The least cross-entropy that logits within the range allow."""
    low, high = RANGES[str(loss.producer)]
    if math.isinf(high) or (not loss.classes and loss.kind == "cross_entropy"):
        return {}
    if not loss.classes:
        return {"floor": math.log1p(math.exp(-high))}
    return {"floor": math.log1p((loss.classes - 1) * math.exp(low - high))}


def _on_logits(loss: LossInfo) -> str:
    floor = _floor(loss).get("floor")
    if floor is not None and not loss.classes:
        return f"so it cannot fall under {floor:.3g}, however good the model is"
    if floor is not None:
        return f"so with {loss.classes} classes it cannot fall under {floor:.3g}, however good the model is"
    return "so no logit can be below zero, and those at zero get no gradient"


def _on_targets(loss: LossInfo, known: Targets) -> str:
    low, high = RANGES[str(loss.producer)]
    shown = f"{low:g} and {high:g}" if math.isfinite(high) else f"{low:g} and infinity"
    return f"which lies between {shown}, while the targets go from {known.low:.4g} to {known.high:.4g}"


def _module(timeline: Timeline, producer: str) -> str | None:
    """The model's last module, where it is the one that applies ``producer``."""
    ran = [timeline.modules[site.path] for site in timeline.schema.modules if site.path in timeline.modules]
    last = next((module for module in reversed(ran) if module.role != "container"), None)
    return last.path if last and last.type in MODULES[producer] else None


def _remedy(loss: LossInfo, module: str | None, source: str) -> Remedy:
    where = f"the {source}" if module else f"the {source} at the end of the model"
    wants = (
        "which takes raw outputs"
        if loss.kind in ON_LOGITS or loss.kind in ON_SIGNS
        else "so that the output reaches all targets"
    )
    return Remedy(
        text=f"Take {where} out before {loss.kind}, {wants}.",
        code=f'model.set_submodule("{module}", torch.nn.Identity())' if module else None,
    )
