"""Outputs that are the same whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import Indices
from gradscope.evidence import warming_up
from gradscope.objective import REGRESSIONS
from gradscope.objective import chance
from gradscope.objective import each
from gradscope.objective import given
from gradscope.objective import output_module
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import row_medians


@final
@dataclass(frozen=True)
class CollapsedOutput(Rule):
    """The model gives every sample the same output.

    ## What it does

    Compares the spread of the output over the batch with that of the targets, over the last 100 steps. It speaks where it is
    under 3 % of it (for logits: under 0.03, which changes a probability by no more than 1 %) in nine of ten sampled steps,
    while the loss stays where the best constant prediction has it and does not fall. It names the layer after which samples
    can no longer be told apart.

    ## Why it is bad

    Such a model has learned the mean of the targets, or how often each class occurs. What tells samples apart is lost on the
    way, and mostly its gradient with it.

    ## How it is told apart

    It is a symptom: inputs that do not differ, initial weights that are too small, dead units, a loss of the wrong shape, a
    graph that is cut and steps that were too long all end like this, and stand above it where they are seen. A loss below that
    of a constant has used its input. A model that has only begun has small outputs, too: 100 steps have to pass.

    In healthy small trainings with one loss this spread was 69 % at least (a diffusion model; 100 % in classifiers). With
    labels at random, which is another fault, it was 5.6 %; where weights began too small, or steps had killed the units,
    under 0.05 %.

    ## What to do

    Look at the layer that is named: what goes in differs from sample to sample, and what comes out does not. Where its units
    are dead, its weights tiny or its input detached, that is the cause; the finding's code measures the spread before and after
    it.

    ## Known false alarms

    Tasks in which a constant is the best that there is.

    ## References

    S. S. Schoenholz et al., "Deep Information Propagation" (ICLR 2017), on depths beyond which inputs become the same.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("fact.loss", "loss.input_signal", "pulse.loss")
    least_steps: ClassVar[int] = 100

    most_signal: float = 0.03  # over the batch; of the targets' spread, or in logits
    window: int = 100  # steps
    least_frames: int = 3  # sampled steps that show it
    least_share: float = 0.9  # of the sampled steps in the window
    least_level: float = 0.9  # of the loss of the best constant prediction
    most_level: float = 3.0  # above it the output is the same and not even the best constant
    lost: float = 0.01  # of a layer's rms, under which its signal counts as lost

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss = sole_loss(timeline)
        if loss is None or timeline.noisy_loss or timeline.progressing or timeline.converged or warming_up(timeline):
            return
        spread = _spread(timeline, loss)
        level, last = chance(timeline, loss), each(timeline, loss, timeline.last_loss)
        if not spread > 0 or not self.least_level * level <= last <= self.most_level * level:
            return
        signal = given(timeline, "input_signal")
        rows = np.flatnonzero((timeline.steps >= timeline.step_count - self.window) & np.isfinite(signal))
        flat = signal[rows] < self.most_signal * spread
        if flat.sum() >= max(self.least_frames, self.least_share * len(rows)):
            yield self._hit(timeline, rows[flat], spread, (last, level))

    def _hit(self, timeline: Timeline, rows: Indices, spread: float, losses: tuple[float, float]) -> Hit:
        signal = median_of(given(timeline, "input_signal")[rows])
        place = self._lost_at(timeline, rows)
        modules = (place,) if place is not None else output_module(timeline)
        where = f"; samples become the same in {place}" if place is not None else ""
        return Hit(
            modules=modules,
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={
                "output_spread": plain(signal),
                "needed_spread": plain(spread),
                "loss": plain(losses[0]),
                "constant_prediction": plain(losses[1]),
                "lost_at": place,
            },
            message=(
                f"The output varies by {signal:.2g} over the batch, where the task takes {spread:.2g}, and the loss stays at "
                f"{losses[0]:.4g}, with {losses[1]:.4g} for a constant{where}."
            ),
            remedy=Remedy(
                f"Find out why {modules[0]} gives all samples the same."
                if modules
                else "Find the layer that loses the samples.",
                f'features = []\nhandle = model.get_submodule("{modules[0]}").register_forward_hook('
                "lambda layer, given, output: features.append((given[0].std(0).mean(), output.std(0).mean())))\n"
                "model(x)  # then features holds the spread over the batch before and after\nhandle.remove()"
                if modules
                else None,
            ),
            severity=Severity.WARNING,
            strength=1.0,
        )

    def _lost_at(self, timeline: Timeline, rows: Indices) -> str | None:
        """The first matrix layer whose output holds next to nothing of what tells samples apart, where one before did."""
        signal = row_medians(timeline.column("activation.signal")[rows].T)
        rms = row_medians(timeline.column("activation.rms")[rows].T)
        for layer in timeline.layers:
            if signal[layer.site] <= self.lost * rms[layer.site]:
                return layer.module.path
        return None


def _spread(timeline: Timeline, loss: LossInfo) -> float:
    """How far outputs have to differ to do the task: as the targets do, or by one where they are logits."""
    if loss.kind in ("cross_entropy", "bce_with_logits"):
        return 1.0
    known = targets(timeline) if loss.kind in (*REGRESSIONS, "bce") else None
    return known.std if known else math.nan
