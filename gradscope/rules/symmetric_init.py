"""Layers whose units all start alike and so stay alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import stands_alone
from gradscope.evidence import Indices
from gradscope.evidence import carries_state
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import carried_on


@final
@dataclass(frozen=True)
class SymmetricInit(Rule):
    """All units of a hidden layer start with the same weights and get the same gradient, so they never differ.

    ## What it does

    At the first sampled steps it looks at the rows of each hidden layer's weight and of its gradient. It speaks where the
    rows of both are equal (variance between rows under a millionth of the mean square) and the gradient is not zero; or the
    columns, where the units stand there. Matrices that are parameters by themselves are looked at like layers, and so are
    those with which an RNN, LSTM or GRU carries its state on. It also speaks where two of all these or more are zero
    altogether and get a gradient of exactly zero at each of the first three sampled steps: nothing can ever start.

    ## Why it is bad

    Units with equal weights and equal gradients stay equal for ever: the layer has the capacity of one unit, whatever its
    width.

    ## How it is told apart

    - A layer that is zero on purpose (the last of a residual branch, LoRA's B, a new head) gets a gradient whose rows
      differ, and leaves zero at the first step.
    - A layer with one output unit has nothing to be symmetric with, and one with a single input is left out.
    - A parameter by itself that is zero at the start is no layer: a bias or a position, which may well be alike.
    - The last layer does not count: its rows get different gradients from different targets.
    - Frozen layers and layers that no optimizer holds do not count.

    A network initialised with a constant 0.05 showed a spread of the gradient's rows of 7e-8; random initial weights show
    0.1 and more. Of an LSTM with all its parameters at 0.05 the matrix of the state showed 1e-15 and less, weight and gradient,
    all of 216 steps long, and the loss stayed at ln 4. Its gradient shrank by nine decades over 30 time steps in the end, so
    this finding explains `recurrent-vanishing`.

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
        "dead-units", "lr-too-low", "recurrent-vanishing",
    )  # fmt: skip

    most_spread: float = 1e-6  # variance between rows over mean square
    last_first_step: int = 10  # only frames before this step show how training began
    zero_frames: int = 3  # frames for which layers of zeros must get no gradient

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        early = int(np.count_nonzero(timeline.steps < self.last_first_step))
        hidden = self._hidden(timeline)
        if not early or not len(hidden):
            return
        places = hidden[self._alike(timeline, hidden, early).any(axis=0)]
        if len(places):
            still = bool(self._alike(timeline, places, len(timeline.steps))[-1].any())
            yield self._hit(timeline, places, early, still=still, zero=False)
        stuck = self._stuck_at_zero(timeline, early)
        if not len(places) and len(stuck) > 1:
            yield self._hit(timeline, stuck, early, still=True, zero=True)

    def _hidden(self, timeline: Timeline) -> Indices:
        """Places of the trained matrices of all layers but the last; where none is a layer, of those that are by themselves."""
        layers = {layer.parameter: layer.weight for layer in timeline.layers}
        alone = {
            place: weight
            for place, site in enumerate(timeline.schema.parameters)
            if (weight := timeline.parameters.get(site.path)) and stands_alone(timeline, weight) and not weight.zero_at_start
        }
        inner = list(layers.items())[:-1] + list(alone.items())[: len(alone) if layers else -1]
        inner += [(place, timeline.parameters[timeline.schema.parameters[place].path]) for place in _carrying(timeline)]
        wide = [place for place, weight in inner if weight.shape[0] > 1 and weight.fan_in > 1 and timeline.trained[place]]
        return np.array(wide, dtype=np.intp)

    def _alike(self, timeline: Timeline, places: Indices, frames: int) -> npt.NDArray[np.bool_]:
        """Of so many frames from the start; [frames, places]."""
        gradient = timeline.column("weight_gradient.norm")[:frames, places]
        zero, weights, gradients = (
            carried_on(timeline.column(name)[:frames, places])
            for name in ("weight_gradient.zero", "weight.row_spread", "weight_gradient.row_spread")
        )
        moved = np.isfinite(gradient) & (gradient > 0) & (zero < 1)  # else the sample says nothing of a sparse gradient
        alike: npt.NDArray[np.bool_] = moved & (weights < self.most_spread) & (gradients < self.most_spread)
        return alike  # False where NaN

    def _stuck_at_zero(self, timeline: Timeline, early: int) -> Indices:
        if early < self.zero_frames:
            return np.zeros(0, dtype=np.intp)
        norms, gradients = (timeline.column(name)[:early] for name in ("weight.norm", "weight_gradient.norm"))
        held = ((carried_on(norms) == 0) & (gradients == 0)).all(axis=0) & timeline.trained
        places = [layer.parameter for layer in timeline.layers] + _carrying(timeline)
        return np.array(sorted(place for place in places if held[place]), dtype=np.intp)

    def _hit(self, timeline: Timeline, places: Indices, early: int, *, still: bool, zero: bool) -> Hit:
        weights = [timeline.schema.parameters[place].path for place in places]
        layers = {layer.parameter for layer in timeline.layers}
        modules = owners(timeline, weights)
        all_layers = layers.issuperset(places.tolist())
        names = modules if all_layers else tuple(weights)
        count = f"{len(names)} of {len(layers)} layers" if all_layers else f"{len(names)} weight matrices"
        spread = timeline.held("weight_gradient.row_spread")[:early, places]
        widest = float(np.max(spread[np.isfinite(spread)], initial=0.0))
        what = (
            "start at zero and get no gradient" if zero else "start with equal weights for all units, which get equal gradients"
        )
        return Hit(
            modules=modules,
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1] if still else timeline.steps[early - 1]),
            evidence={"layers": list(names), "gradient_row_spread": widest, "still_alike": still},
            message=f"{count} ({named(names)}) {what}, so their units stay alike.",
            remedy=_remedy(weights, names),
            severity=self._severity(timeline, still),
            strength=10.0,
        )

    def _severity(self, timeline: Timeline, still: bool) -> Severity:
        if works(timeline):
            return Severity.WARNING if still else Severity.INFO
        return Severity.CRITICAL


def _carrying(timeline: Timeline) -> list[int]:
    """Places of the matrices with which torch's recurrent layers carry their state on: their units are those of the layer."""
    recurrent = {module.path for module in timeline.info.modules if module.role == "recurrent"}
    known = [(site.path, timeline.parameters.get(site.path)) for site in timeline.schema.parameters]
    return [
        place
        for place, (path, weight) in enumerate(known)
        if weight is not None and weight.module in recurrent and carries_state(path)
    ]


def _remedy(weights: list[str], names: tuple[str, ...]) -> Remedy:
    return Remedy(
        f"Draw the weights of {named(names)} at random.",
        f"parameters = dict(model.named_parameters())\nfor name in {weights!r}:\n"
        "    torch.nn.init.kaiming_normal_(parameters[name])",
    )
