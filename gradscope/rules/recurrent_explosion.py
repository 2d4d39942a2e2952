"""Gradients that grow on their way back through time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import largest
from gradscope.depth import plain
from gradscope.evidence import TimeGrowth
from gradscope.evidence import captured
from gradscope.evidence import carries_state
from gradscope.evidence import clipping_norm
from gradscope.evidence import gravity
from gradscope.evidence import no_recurrence
from gradscope.evidence import overshoot
from gradscope.evidence import overshot
from gradscope.evidence import time_growth
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting

MOST_NORM = 1.0  # that the remedy clips at
KEPT = 0.9  # of the gradient at each time step, that the remedy aims at
MOST_MATRICES = 4  # of a module that recurs, up to which dividing them by the growth of a step is the remedy


@final
@dataclass(frozen=True)
class RecurrentExplosion(Rule):
    """The gradient of a recurrent layer grows with every time step that it goes back.

    ## What it does

    Measures the gradient at each time step of a recurrent layer, or of a module that is called once for each time step, and
    how it grows from the last step back to the first. It speaks where it grows by more than 5 % a time step and by more than
    a hundred times in all: at step 0, before any update; or later, in three of five sampled steps, or in one of the last
    three before training blew up.

    A recurrence that is written by hand is seen in the autograd graph, over the uses of its matrix that need one another.

    ## Why it is bad

    The same matrix multiplies the state at every time step. Where it stretches the state by a factor a, the gradient of the
    first inputs is a^T times that of the last: a linear recurrence with a spectral radius of 1.15 grew by 1.09 a step, 2,200
    times over 60 steps, and was NaN after one update; a tanh recurrence with a radius of 3 grew by 1.3 a step, 26 million
    times.

    ## How it is told apart

    - Where every time step has a loss of its own the gradient adds up on its way back, in proportion to the steps at most:
      that is never both more than 5 % a step and more than a hundredfold.
    - A tanh or a gate that saturates shrinks what the matrix stretches: a tanh recurrence with a radius of 1.5 had a = 0.9 and
      is left alone. Measured is what comes back, not the matrix.
    - A learning rate that is too high shows no growth through time before the first update. Where a step was measured to
      overshoot for no other reason, what grows after it is that step's work: RMSprop at 0.3 overshot 24 times in its first
      step, and the gradient of its LSTM grew by 1.23 a time step from the third on.
    - Modules that several places share but that hold no square matrix (activations, output heads) are not judged, nor are
      layers that run in both directions.

    PyTorch's default LSTM and GRU have a = 0.67 and 0.63 at the start; an LSTM whose forget gates begin open has 1.04.

    ## What to do

    Multiply the recurrent matrix by 0.9 / a, or begin with an orthogonal one, and clip the gradient at a norm of 1. Exactly
    1 / a is not enough by itself: with momentum such a recurrence blew up again within 200 steps, and so it did at 0.97 / a;
    at 0.9 / a it trained. Of layers on top of one another each matrix is multiplied: five of radius 1.2, with a = 1.79, stayed
    at ln 4 with clipping alone, and learned once multiplied. An LSTM or GRU in place of a plain recurrence removes the product
    altogether.

    ## Known false alarms

    Where training works all the same, kept in hand by clipping or a small rate, and has come to half the best constant
    prediction's loss, the finding is no more than an aside. So is growth that comes later, as long as the loss falls and
    nothing blew up: a layer that learns to remember its first input has to open a way for its gradient, and ReLUs that began
    with the identity grew by 1.22 a time step for some steps, 120 times over 25, while the loss went from 0.65 to 6e-7.

    ## References

    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013: growth needs a largest
    singular value above 1 for tanh, above 4 for the sigmoid.
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ()
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "gradient-spikes", "loss-divergence", "nonfinite-origin", "nonfinite-gradients",
        "nonfinite-loss", "initial-loss-off", "activation-growth", "saturated-units", "dead-units", "loss-plateau",
        "oscillating-loss", "collapsed-output", "clipping-too-tight", "adam-second-moment-lag", "fp16-overflow",
    )  # fmt: skip

    least_factor: float = 1.05  # by which the gradient grows with each time step back
    least_total: float = 2.0  # decades over all time steps
    held: int = 3  # of the last five sampled steps
    window: int = 5  # sampled steps that are looked back on
    last_before: int = 3  # sampled steps before a blow-up, one of which is enough
    well_below: float = 0.5  # of the best constant prediction's loss, under which training works well

    def obstacle(self, timeline: Timeline) -> str | None:
        return Rule.obstacle(self, timeline) or no_recurrence(timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        through = time_growth(timeline)
        growth, lengths = through.decades, through.steps
        rows = captured(growth)
        if timeline.onset is not None:
            rows = rows[timeline.steps[rows] <= timeline.onset]
        if not len(rows):
            return
        with np.errstate(invalid="ignore"):
            grown = (growth / (lengths - 1) > math.log10(self.least_factor)) & (growth > self.least_total)
        from_start = timeline.steps[rows[0]] == 0 and bool(grown[rows[0]].any())
        if from_start or self._later(timeline, grown[rows]):
            shown = rows[grown[rows].any(axis=1)]
            if from_start or not self._made_by_a_step(timeline, int(timeline.steps[shown[0]])):
                yield self._hit(timeline, through, shown, from_start)

    def _made_by_a_step(self, timeline: Timeline, first: int) -> bool:
        """Whether a step before the growth was measured to overshoot by itself: it has made the weights that grow."""
        found = overshoot(timeline)
        return found is not None and found.step < first and not any(without < 1 for without in found.without.values())

    def _later(self, timeline: Timeline, grown: npt.NDArray[np.bool_]) -> bool:
        if lasting(grown, least=self.held, window=self.window).any():
            return True
        return timeline.onset is not None and bool(grown[-self.last_before :].any())

    def _hit(
        self,
        timeline: Timeline,
        through: TimeGrowth,
        rows: npt.NDArray[np.intp],
        from_start: bool,
    ) -> Hit:
        row = int(rows[0])
        growth = through.decades
        site = int(np.nanargmax(growth[row]))
        module = through.modules[site]
        total, steps = float(growth[row, site]), int(through.steps[row, site])
        factor = 10 ** (total / (steps - 1))
        return Hit(
            modules=largest(np.where(growth[row] > self.least_total, growth[row], 0), through.modules),
            first_step=int(timeline.steps[row]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"factor": plain(factor), "decades": plain(total), "time_steps": steps},
            message=(
                f"At step {timeline.steps[row]} the gradient of {module or 'the model'} grows by a factor {factor:.3g} with "
                f"each time step back, {10 ** min(total, 300.0):.2g} over {steps} steps, where 1 keeps it."
            ),
            remedy=_remedy(timeline, module, through.matrices[site], factor),
            severity=self._severity(timeline, from_start),
            strength=self._strength(timeline, total, from_start),
        )

    def _severity(self, timeline: Timeline, from_start: bool) -> Severity:
        """As grave as its consequences; an aside where the loss has come more than half the way, or nothing came of it."""
        falling = (works(timeline) or timeline.progressing) and not overshot(timeline)
        if not from_start and falling and timeline.onset is None:
            return Severity.INFO
        well = timeline.several_objectives or timeline.last_loss < self.well_below * timeline.baseline
        return max(gravity(timeline), Severity.INFO if well else Severity.WARNING)

    def _strength(self, timeline: Timeline, total: float, from_start: bool) -> float:
        """More where the step that was too long would not have been without the growth, whose square the curvature has."""
        found = overshoot(timeline)
        if from_start and found is not None and math.log10(min(found.overshoot, 1e300)) < 2 * total:
            return 5.0
        return 4.0 if from_start else 3.0


def _remedy(timeline: Timeline, module: str, names: list[str], factor: float) -> Remedy:
    norm = min(clipping_norm(timeline), MOST_NORM)  # what was seen has the growth in it
    clip = f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={norm:g})  # between backward() and optimizer.step()"
    stacked = all(carries_state(name) for name in names)  # a layer's matrix each, and no block's
    if len(names) > MOST_MATRICES and not stacked:
        return Remedy(f"Start {module or 'the model'} with smaller weights, and clip the gradient at a norm of {norm:g}.")
    return Remedy(
        f"Multiply the recurrent matrix of {module or 'the model'} by {KEPT / factor:.3g}, so that a time step keeps 90 % "
        f"of the gradient, and clip the gradient at a norm of {norm:g}.",
        f"with torch.no_grad():  # directly after the model is made\n    for name in {names!r}:\n"
        f"        model.get_parameter(name).mul_({KEPT / factor:.3g})  # {KEPT:g} / {factor:.3g}\n# and in each step:\n{clip}",
    )
