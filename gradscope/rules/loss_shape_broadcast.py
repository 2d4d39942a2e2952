"""Output and target whose shapes do not match and are stretched to each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.evidence import run_length
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

Shape = tuple[int, ...]


@final
@dataclass(frozen=True)
class LossShapeBroadcast(Rule):
    """Output and target have different shapes, and broadcasting compares every output with every target.

    ## What it does

    Reads the shapes of subtractions and of losses in the autograd graph, and of the differences and products that a loss
    written by hand is the mean of: log-cosh, quantile, hinge, a likelihood. It speaks where two shapes differ by an axis of
    length one only, as (64, 1) and (64,), or (16, 1, 8, 8) and (16, 8, 8), and their result is larger than both.

    ## Why it is bad

    (N, 1) minus (N,) gives N x N differences. Their mean is least where every output equals the mean of all targets, so the
    model learns a constant: the loss comes down to the variance of the targets and stays there, and nothing warns but for
    losses of torch.nn, once.

    ## How it is told apart

    A broadcast over an axis that the larger side has anyway (a bias, a mean, class weights) does not grow the result beyond
    the larger side. (N, 1) minus (1, N), as in pairwise distances, has all its axes written out: that is meant. So are pairs
    that go through an exponential, as a kernel's do, and pairs of which both sides have a gradient.

    ## What to do

    Bring both to the same shape before the loss: `target.reshape_as(output)`, or `output.squeeze(-1)`.

    ## Known false alarms

    A pairwise difference of an output (N, 1) and fixed numbers `y.T`, as in an energy distance: the graph does not tell the
    shape of what has no gradient. Measured in 193 healthy small trainings: none; with the fault in 8 of 8, and in 16 of 16
    losses written by hand; 12 pairwise and row-wise losses that are meant raise nothing. Of maps
    (N, 1, H, W) and (N, H, W) 4 of 4 losses are seen.

    ## References

    Warning in `torch.nn.functional.mse_loss`, "Using a target size that is different to the input size"; NumPy,
    "Broadcasting".
    """

    family: ClassVar[str] = "loss wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.wiring",)
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "collapsed-output", "labels-unrelated", "lr-too-low", "initial-loss-off",
    )  # fmt: skip

    losses: tuple[str, ...] = ("mse", "l1", "smooth_l1")  # that stretch their two sides to each other

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        wiring = timeline.info.wiring
        if wiring is None:
            return
        pairs = [(loss.input_shape, loss.target_shape) for loss in wiring.losses if loss.kind in self.losses]
        pairs += [(broadcast.left, broadcast.right) for broadcast in wiring.broadcasts]
        for left, right in pairs:
            if left is not None and right is not None and _stretched(left, right):
                yield self._hit(timeline, left, right)
                return

    def _hit(self, timeline: Timeline, left: Shape, right: Shape) -> Hit:
        first, last = run_length(timeline)
        result = _together(left, right) or ()
        compared, meant = math.prod(result), max(math.prod(left), math.prod(right))
        return Hit(
            modules=(),
            first_step=first,
            last_step=last,
            evidence={"left": list(left), "right": list(right), "result": list(result), "differences": compared},
            message=(
                f"The loss subtracts shapes {left} and {right}: broadcasting makes {compared} differences of them instead of "
                f"{meant}, each output against each target, so the model learns the mean of all targets."
            ),
            remedy=Remedy(
                text="Give output and target the same shape before the loss.",
                code="loss = criterion(output, target.reshape_as(output))",
            ),
            severity=Severity.CRITICAL,
            strength=10.0,
        )


def _stretched(left: Shape, right: Shape) -> bool:
    """Whether the two mean the same elements, but for an axis of one, and together make more than either has."""
    result = _together(left, right)
    same = [size for size in left if size != 1] == [size for size in right if size != 1]
    return len(left) != len(right) and same and result is not None and math.prod(result) > math.prod(left)


def _together(left: Shape, right: Shape) -> Shape | None:
    """The shape that broadcasting gives, or None where it gives none."""
    length = max(len(left), len(right))
    pairs = zip((1,) * (length - len(left)) + left, (1,) * (length - len(right)) + right, strict=True)
    sizes = [(max(a, b) if a == b or 1 in (a, b) else None) for a, b in pairs]
    return tuple(size for size in sizes if size is not None) if None not in sizes else None
