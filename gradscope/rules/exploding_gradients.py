"""Gradients that grow from layer to layer, or from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import decades
from gradscope.depth import depth_sites
from gradscope.depth import is_residual
from gradscope.depth import largest
from gradscope.depth import plain
from gradscope.depth import slopes
from gradscope.evidence import calm_clipping
from gradscope.evidence import gravity
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class ExplodingGradients(Rule):
    """Gradients grow without bound, from the output towards the input or from step to step, and training does not work.

    ## What it does

    Speaks where training does not work and one of these holds.

    - Over depth: the gradient of the layers' outputs grows by more than 0.15 decades a layer towards the input, and by
      more than three decades over all, in three of five sampled steps, or in one before training blew up. A residual net
      is judged block by block.
    - Over time: the gradient's norm is more than 1,000 times what it was in the first five steps, in three of five steps,
      or it is infinite.

    ## Why it is bad

    A step in the direction of such a gradient moves the first layers out of all proportion, or overflows to NaN.

    ## How it is told apart

    - A single spike that returns is no explosion; see gradient-spikes.
    - Batch normalisation makes gradients grow with depth at the start, harmlessly: 0.09 decades a layer at 20 layers. The
      other healthy trainings of 26 stayed below 0.03; with weights that were too large it was 0.37 to 1.1.
    - Where the loss comes down all the same (Adam divides the scale out) nothing is said.
    - It is a symptom: weights that are too large, a learning rate that is too high, gradients that are not cleared and a
      missing normalisation all bring it about.

    ## What to do

    Remove the cause. Clipping the gradient's norm keeps a training alive meanwhile, at the norm it had before it
    exploded.

    ## Known false alarms

    Branches that run in parallel are taken for depth.

    ## References

    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013. G. Yang and
    others, "A Mean Field Theory of Batch Normalization", 2019.
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("pulse.gradient_norm",)

    least_slope: float = 0.15  # decades a layer, towards the input
    least_total: float = 3.0  # decades over all layers
    least_layers: int = 5  # compared
    factor: float = 1e3  # of the norm over that of the first five steps
    run_up: float = 10.0  # the same, in the ten steps before a norm is infinite, without which it broke and did not explode
    held: int = 3  # of the last five samples or steps
    window: int = 5  # sampled steps that are looked back on

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if works(timeline):
            return
        found = self._over_depth(timeline) or self._over_time(timeline)
        if found is not None:
            yield found

    def _over_depth(self, timeline: Timeline) -> Hit | None:
        sites = depth_sites(timeline)
        if len(sites) < self.least_layers or timeline.info.wiring is None:
            return None
        onset = timeline.onset
        rows = np.flatnonzero(timeline.steps <= (onset if onset is not None else timeline.step_count))
        slope = -slopes(decades(timeline.column("activation_gradient.rms")[np.ix_(rows, sites)]))
        grown = (slope > self.least_slope) & (slope * (len(sites) - 1) > self.least_total)  # False where NaN
        held = lasting(grown, least=1 if onset is not None else self.held, window=self.window)
        if not held.any():
            return None
        seen = np.flatnonzero(grown)
        return self._depth_hit(timeline, sites, int(rows[seen[0]]), int(rows[seen[-1]]), float(slope[seen[0]]))

    def _depth_hit(self, timeline: Timeline, sites: npt.NDArray[np.intp], first: int, last: int, slope: float) -> Hit:
        total = slope * (len(sites) - 1)
        names = [timeline.schema.modules[site].path for site in sites]
        unit = "blocks" if is_residual(timeline) else "layers"
        return Hit(
            modules=largest(timeline.column("activation_gradient.rms")[first][sites], names),
            first_step=int(timeline.steps[first]),
            last_step=int(timeline.steps[last]),
            evidence={"axis": "depth", "decades_per_layer": plain(slope), "decades": plain(total), unit: len(sites)},
            message=(
                f"The gradient grows by a factor {10 ** min(total, 300.0):.2g} from the last to the first of {len(sites)} "
                f"{unit} at step {timeline.steps[first]}, {10**slope:.2g} for each of them."
            ),
            remedy=_clip(timeline, int(timeline.steps[first]) + 1),
            severity=_grave(timeline),
            strength=1.0,
        )

    def _over_time(self, timeline: Timeline) -> Hit | None:
        norms, steps = timeline.gradient_norms, timeline.pulse("step")
        start = min(median_of(norms[:1]), median_of(norms[:5]), key=lambda value: value if value > 0 else np.inf)
        if not start > 0:
            return None
        infinite = np.isposinf(norms) & self._exploded(norms, start)
        grown = (np.isfinite(norms) & (norms > self.factor * start)) | infinite
        held = lasting(grown, least=self.held, window=self.window) | infinite
        if not held.any():
            return None
        first, last = int(steps[np.argmax(grown)]), int(steps[np.flatnonzero(held)[-1]])
        finite = norms[np.isfinite(norms)]
        shown = "infinity" if np.isposinf(norms).any() else f"{finite.max():.3g}"
        return Hit(
            modules=self._largest_weights(timeline, first),
            first_step=first,
            last_step=last,
            evidence={
                "axis": "time",
                "first_norm": plain(start),
                "largest_norm": plain(float(finite.max())),
                "infinite": shown == "infinity",
            },
            message=(
                f"The gradient's norm grew from {start:.3g} at the start to {shown}, past {self.factor:g} times the start at "
                f"step {first}."
            ),
            remedy=_clip(timeline, first),
            severity=_grave(timeline),
            strength=1.0,
        )

    def _exploded(self, norms: npt.NDArray[np.float64], start: float) -> bool:
        """Whether an infinite norm was led up to: from an ordinary one straight to infinity is no explosion."""
        first = int(np.argmax(np.isposinf(norms)))
        before = norms[max(first - 10, 0) : first]
        return bool((before[np.isfinite(before)] > self.run_up * start).any())

    def _largest_weights(self, timeline: Timeline, step: int) -> tuple[str, ...]:
        place = int(np.searchsorted(timeline.steps, step))
        if place >= len(timeline.steps):
            return ()
        names = [
            timeline.parameters[s.path].module if s.path in timeline.parameters else s.path for s in timeline.schema.parameters
        ]
        return largest(timeline.column("weight_gradient.norm")[place], names)


def _grave(timeline: Timeline) -> Severity:
    return max(gravity(timeline), Severity.WARNING)


def _clip(timeline: Timeline, before: int) -> Remedy:
    """Clipping at the 90th percentile of the norms before the step at which they grew, where there were enough."""
    clip = calm_clipping(timeline, before=before)
    if clip is None:
        return Remedy("Remove the cause: the gradient was too large from the start, and there is no norm to clip it at.")
    return Remedy(f"Remove the cause. {clip.text}", clip.code)
