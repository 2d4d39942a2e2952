"""First losses that are far from those of a model that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.depth import begins_at_zero
from gradscope.depth import plain
from gradscope.depth import updates_within
from gradscope.evidence import PATIENCE
from gradscope.evidence import overshot
from gradscope.evidence import works
from gradscope.objective import each
from gradscope.objective import given
from gradscope.objective import guess
from gradscope.objective import output_module
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

SURE_OF_ITSELF = 1.0  # rms of logits that a fresh model's should not exceed by much


@final
@dataclass(frozen=True)
class InitialLossOff(Rule):
    """Before the first step the loss is far from that of a guess, which is ln C for C classes.

    ## What it does

    Compares the first loss with that of a guess: ln C for C classes, the variance of the targets for the squared error. It
    speaks where a classifier starts above three times ln C or above ln C + 5, or under a tenth of ln C, or where a
    regression starts above ten times the variance.

    ## Why it is bad

    A start above a guess means outputs that are sure of themselves, and wrong: the first hundreds of steps go into taking
    them back, with large gradients. A start below it means that the model has seen the answers, or that one class has nearly
    all samples.

    ## How it is told apart

    It is a symptom of inputs or targets out of scale and of initial weights that are too large, which stand above it where
    they are seen. The loss of a sum is divided by the number of its terms first. A model that comes trained starts low; a
    head that shares its weights with an embedding of unit variance starts high, and learns all the same: where training
    works, and before 100 steps have passed without harm, the finding is an aside.

    ## What to do

    Scale the last layer's initial weights down, so that its outputs start at about one; put the logarithm of the classes'
    shares, or the mean of the targets, into its bias.

    ## Known false alarms

    Losses of weighted classes, and of a few samples, differ from ln C by chance: the mean of fewer than eight is not judged.

    ## References

    A. Karpathy, "A Recipe for Training Neural Networks", 2019: "verify loss @ init". TheDeepChecker (TOSEM 2023) checks the
    first loss within 100 % of ln C.
    """

    family: ClassVar[str] = "initialisation"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss", "pulse.loss")

    most_of_guess: float = 3.0  # times ln C
    most_above: float = 5.0  # nats above ln C
    least_of_guess: float = 0.1  # of ln C
    most_of_variance: float = 10.0  # times the targets' variance, for a squared error

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss = sole_loss(timeline)
        if loss is None or timeline.noisy_loss or not len(timeline.loss) or timeline.loss_steps[0] > 0:
            return
        if updates_within(timeline):
            return
        expected = self._expected(timeline, loss)
        first = each(timeline, loss, float(timeline.loss[0]))
        high = math.isfinite(first) and first > self._ceiling(loss, expected)
        low = loss.kind == "cross_entropy" and 0 <= first < self.least_of_guess * expected and begins_at_zero(timeline)
        if expected > 0 and (high or low):
            yield self._hit(timeline, loss, first, expected, high=high)

    def _expected(self, timeline: Timeline, loss: LossInfo) -> float:
        if loss.kind == "cross_entropy":
            return guess(loss)
        known = targets(timeline) if loss.kind == "mse" else None
        if known is None:
            return math.nan
        return max(known.std**2, loss.baseline or 0.0)  # of heavy tails the first batch may have more than most have

    def _ceiling(self, loss: LossInfo, expected: float) -> float:
        if loss.kind == "cross_entropy":
            return min(self.most_of_guess * expected, expected + self.most_above)
        return self.most_of_variance * expected

    def _hit(self, timeline: Timeline, loss: LossInfo, first: float, expected: float, *, high: bool) -> Hit:
        rms = float(given(timeline, "input_rms")[0]) if len(timeline.frames) else math.nan
        what = f"a guess among {loss.classes} classes" if loss.kind == "cross_entropy" else "the mean of the targets"
        meaning = "the model starts sure of itself, and wrong" if high else "the model knows the answers from the start"
        return Hit(
            modules=output_module(timeline),
            first_step=0,
            last_step=0,
            evidence={"first_loss": plain(first), "expected": plain(expected), "output_rms": plain(rms)},
            message=f"The first loss is {first:.4g}, where {what} has {expected:.4g}: {meaning}.",
            remedy=_remedy(timeline, rms, high=high),
            severity=self._severity(timeline, high=high),
            strength=1.0,
        )

    def _severity(self, timeline: Timeline, *, high: bool) -> Severity:
        lost = timeline.onset is not None or overshot(timeline)
        waited = timeline.step_count >= PATIENCE and not works(timeline) and not timeline.progressing
        return Severity.WARNING if high and (lost or waited) else Severity.INFO


def _remedy(timeline: Timeline, rms: float, *, high: bool) -> Remedy:
    modules = output_module(timeline)
    if not high:
        return Remedy(
            "See that no input holds the label, and that the classes are not one; a model that comes trained starts low."
        )
    if not modules or not rms > SURE_OF_ITSELF:
        return Remedy("Scale the last layer's initial weights down, so that its outputs start at about one.")
    factor = f"{SURE_OF_ITSELF / rms:.3g}"
    return Remedy(
        f"Multiply the initial weights of {modules[0]} by {factor}, as its outputs start at {rms:.3g} and should at about one.",
        "with torch.no_grad():  # directly after the model is made\n"
        f'    model.get_submodule("{modules[0]}").weight.mul_({factor})',
    )
