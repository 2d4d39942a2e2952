"""Layers whose units all start alike and so stay alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.evidence import named
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Layer
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class SymmetricInit(Rule):
    """All units of a hidden layer start with the same weights and get the same gradient, so they never differ.

    ## What it does

    At the first sampled steps it looks at the rows of each hidden layer's weight and of its gradient. It speaks where the
    rows of both are equal (variance between rows under a millionth of the mean square) and the gradient is not zero. It
    also speaks where two layers or more are zero altogether and get a gradient of exactly zero at each of the first three
    sampled steps: nothing can ever start.

    ## Why it is bad

    Units with equal weights and equal gradients stay equal for ever: the layer has the capacity of one unit, whatever its
    width.

    ## How it is told apart

    - A layer that is zero on purpose (the last of a residual branch, LoRA's B, a new head) gets a gradient whose rows
      differ, and leaves zero at the first step.
    - A layer with one output unit has nothing to be symmetric with.
    - The last layer does not count: its rows get different gradients from different targets.
    - Frozen layers and layers that no optimizer holds do not count.

    A network initialised with a constant 0.05 showed a spread of the gradient's rows of 7e-8; random initial weights show
    0.1 and more.

    ## What to do

    Draw the weights at random, by He's or Xavier's rule. Biases may start at zero, weights may not.

    ## Known false alarms

    None known. Noise that differs from unit to unit, such as dropout, can break the symmetry later; where training works
    and the rows have come apart, the finding is no more than an aside.

    ## References

    I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", 2016, section 8.4.
    """

    family: ClassVar[str] = "initialisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = (
        "weight.row_spread",
        "weight.norm",
        "weight_gradient.row_spread",
        "weight_gradient.norm",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "init-too-small", "init-too-large", "vanishing-gradients", "loss-plateau", "collapsed-output", "weights-not-moving",
        "dead-units", "lr-too-low",
    )  # fmt: skip

    most_spread: float = 1e-6  # variance between rows over mean square
    last_first_step: int = 10  # only frames before this step show how training began
    zero_frames: int = 3  # frames for which layers of zeros must get no gradient

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        early = int(np.count_nonzero(timeline.steps < self.last_first_step))
        hidden = [x for x in timeline.layers[:-1] if timeline.trained[x.parameter] and x.weight.shape[0] > 1]
        if not early or not hidden:
            return
        alike = self._alike(timeline, hidden)
        places = np.flatnonzero(alike[:early].any(axis=0))
        equal = [hidden[place] for place in places]
        if equal:
            yield self._hit(timeline, equal, early, still=bool(alike[-1, places].any()), zero=False)
        stuck = self._stuck_at_zero(timeline, early)
        if not equal and len(stuck) > 1:
            yield self._hit(timeline, stuck, early, still=True, zero=True)

    def _alike(self, timeline: Timeline, layers: list[Layer]) -> npt.NDArray[np.bool_]:
        places = [layer.parameter for layer in layers]
        gradient = timeline.column("weight_gradient.norm")[:, places]
        moved = np.isfinite(gradient) & (gradient > 0)
        weights = timeline.held("weight.row_spread")[:, places] < self.most_spread  # False where NaN
        return moved & weights & (timeline.held("weight_gradient.row_spread")[:, places] < self.most_spread)

    def _stuck_at_zero(self, timeline: Timeline, early: int) -> list[Layer]:
        if early < self.zero_frames:
            return []
        still = (timeline.held("weight.norm")[:early] == 0) & (timeline.column("weight_gradient.norm")[:early] == 0)
        held = still.all(axis=0) & timeline.trained
        return [layer for layer in timeline.layers if held[layer.parameter]]

    def _hit(self, timeline: Timeline, layers: list[Layer], early: int, *, still: bool, zero: bool) -> Hit:
        names = tuple(layer.module.path for layer in layers)
        spread = timeline.held("weight_gradient.row_spread")[:early, [layer.parameter for layer in layers]]
        widest = float(np.max(spread[np.isfinite(spread)], initial=0.0))
        what = (
            "start at zero and get no gradient" if zero else "start with equal weights for all units, which get equal gradients"
        )
        return Hit(
            modules=names,
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1] if still else timeline.steps[early - 1]),
            evidence={"layers": list(names), "gradient_row_spread": widest, "still_alike": still},
            message=f"{len(names)} of {len(timeline.layers)} layers ({named(names)}) {what}, so their units stay alike.",
            remedy=_remedy(names),
            severity=self._severity(timeline, still),
            strength=10.0,
        )

    def _severity(self, timeline: Timeline, still: bool) -> Severity:
        if works(timeline):
            return Severity.WARNING if still else Severity.INFO
        return Severity.CRITICAL


def _remedy(names: tuple[str, ...]) -> Remedy:
    return Remedy(
        f"Draw the weights of {named(names)} at random.",
        f"for name in {list(names)!r}:\n    torch.nn.init.kaiming_normal_(model.get_submodule(name).weight)",
    )
