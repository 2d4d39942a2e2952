"""A softmax or sigmoid in front of a loss that applies its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.evidence import run_length
from gradscope.evidence import unless_works
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

OWN = {"cross_entropy": ("softmax", "log_softmax"), "bce_with_logits": ("sigmoid",)}  # what stands in the loss already


@final
@dataclass(frozen=True)
class DoubleSoftmax(Rule):
    """The model ends in a softmax or sigmoid, and the loss applies its own on top, so no prediction can be confident.

    ## What it does

    Looks in the autograd graph at what made the loss's input: a softmax before `cross_entropy`, a sigmoid before
    `binary_cross_entropy_with_logits`. A log_softmax before `cross_entropy` changes nothing and is for information. A
    cross-entropy written by hand counts as one: log_softmax at each sample's class, or logsumexp less the logit there.

    ## Why it is bad

    Probabilities lie between 0 and 1; taken as logits they allow odds of at most e to 1. With C classes the loss cannot fall
    under ln(e + C - 1) - 1, which is 1.46 for ten classes and 5.91 for a thousand, however good the model is, and the
    gradient vanishes where the first softmax is sure. For the sigmoid the floor is 0.31 for positives and 0.69 for negatives.
    Measured with losses written by hand: digits came to 1.56 in 200 steps of Adam, and to 0.12 without the softmax.

    ## How it is told apart

    By the operation that made the input, not by its values: the young logits of a discriminator lie between 0 and 1 by
    chance, and a test of values called five of five healthy ones a fault. A softmax in attention, or one on the target (as
    in distillation), does not make the loss's input.

    ## What to do

    Hand the loss the logits, and apply the softmax only where probabilities are needed.

    ## Known false alarms

    None known in 193 healthy small trainings. Some such models learn all the same, more slowly: where training works the
    finding is a warning.

    ## References

    Documentation of `torch.nn.CrossEntropyLoss`: "The input is expected to contain the unnormalized logits for each class".
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss",)
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "collapsed-output", "lr-too-low", "initial-loss-off", "vanishing-gradients", "saturated-units",
        "labels-unrelated",
    )  # fmt: skip

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = timeline.info.wiring.losses if timeline.info.wiring else ()
        doubled = {(loss.kind, loss.producer): loss for loss in reversed(losses) if loss.producer in OWN.get(loss.kind, ())}
        for loss in doubled.values():
            yield self._hit(timeline, loss)

    def _hit(self, timeline: Timeline, loss: LossInfo) -> Hit:
        first, last = run_length(timeline)
        module = _module(timeline, str(loss.producer))
        source = f"{loss.producer} ({module})" if module else loss.producer
        harmless = loss.producer == "log_softmax"
        return Hit(
            modules=(module,) if module else (),
            first_step=first,
            last_step=last,
            evidence={"loss": loss.kind, "producer": loss.producer, "classes": loss.classes} | _floor(loss),
            message=f"The input of {loss.kind} comes out of a {source}, {_effect(loss)}.",
            remedy=_remedy(loss, module),
            severity=Severity.INFO if harmless else unless_works(timeline, Severity.WARNING),
            strength=10.0,
        )


def _module(timeline: Timeline, producer: str) -> str | None:
    """The model's last module, where it is the one that applies ``producer``."""
    ran = [timeline.modules[site.path] for site in timeline.schema.modules if site.path in timeline.modules]
    last = next((module for module in reversed(ran) if module.role != "container"), None)
    return last.path if last and last.type.lower() == producer.replace("_", "") else None


def _floor(loss: LossInfo) -> dict[str, float]:
    """The least loss that is left to a perfect model."""
    if loss.producer == "softmax" and loss.classes and loss.classes > 1:
        return {"floor": math.log(math.e + loss.classes - 1) - 1}
    return {"floor_positive": math.log1p(math.exp(-1)), "floor_negative": math.log(2)} if loss.producer == "sigmoid" else {}


def _effect(loss: LossInfo) -> str:
    if loss.producer == "log_softmax":
        return "which the loss applies once more, without effect"
    floor = _floor(loss)
    if loss.producer == "sigmoid":
        positive, negative = floor["floor_positive"], floor["floor_negative"]
        return f"so it cannot fall under {positive:.2f} for positives and {negative:.2f} for negatives"
    if floor:
        return f"so with {loss.classes} classes it cannot fall under {floor['floor']:.3g}, however good the model is"
    return "so the odds that it sees are at most e to 1, however good the model is"


def _remedy(loss: LossInfo, module: str | None) -> Remedy:
    where = f"the {loss.producer} ({module})" if module else f"the {loss.producer} at the end of the model"
    return Remedy(
        text=f"Take out {where}: {loss.kind} applies it itself and expects logits.",
        code=f'model.set_submodule("{module}", torch.nn.Identity())' if module else None,
    )
