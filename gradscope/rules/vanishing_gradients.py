"""Gradients that die on their way to the first layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import decades
from gradscope.depth import depth_sites
from gradscope.depth import has_norm
from gradscope.depth import is_residual
from gradscope.depth import plain
from gradscope.depth import slopes
from gradscope.evidence import RELU_FOR_SIGMOID
from gradscope.evidence import gravity
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Layer
from gradscope.timeline import Timeline
from gradscope.trends import lasting


@final
@dataclass(frozen=True)
class VanishingGradients(Rule):
    """The gradient dies on its way from the output to the first layers, so that these do not learn.

    ## What it does

    Compares the gradient of the layers' outputs over depth, of a residual net block by block. It speaks where in five of
    five sampled steps it shrinks towards the input by more than 0.15 decades a layer and by more than four decades over
    all, and where that keeps the first layer from learning: its update ratio is below 0.000001, or, under an optimizer
    that divides by the gradient's size, its gradient is below ten times that optimizer's eps. It is silent where the loss
    comes down.

    ## Why it is bad

    The first layers stay as they were initialised, and what they lose of the input nothing later can restore.

    ## How it is told apart

    - A training that has converged has small gradients everywhere, and a loss that came down.
    - Adam makes up for gradients that are small but larger than its eps: then the first layers move, and nothing is said.
    - Inside residual branches that start at zero gradients are small by design; blocks are compared, not layers.
    - Layers that are frozen, detached or dead have no gradient or one of exactly zero; those do not count for the slope.

    Healthy nets of 12 to 30 layers showed slopes between -0.09 and +0.03 decades a layer, with either sign; PyTorch's
    default initialisation of a 20-layer ReLU net shrinks by 0.39 a layer, a sigmoid net by 0.82.

    ## What to do

    Initialise with He's rule, put a normalisation before the activations, or add residual connections; replace sigmoid by
    ReLU.

    ## Known false alarms

    Branches that run in parallel are taken for depth.

    ## References

    S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991. X. Glorot and Y. Bengio, "Understanding the
    difficulty of training deep feedforward neural networks", 2010.
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("activation_gradient.rms", "weight_gradient.norm", "update.ratio", "fact.wiring")
    least_steps: ClassVar[int] = 5

    least_slope: float = 0.15  # decades a layer, towards the output
    least_total: float = 4.0  # decades over all layers
    least_layers: int = 5  # compared
    window: int = 5  # sampled steps, all of which must show it
    most_ratio: float = 1e-6  # update ratio of the first layer, where the optimizer does not adapt
    eps_margin: float = 10.0  # rms of the first layer's gradient over eps, where it does

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        sites = depth_sites(timeline)
        if len(sites) < self.least_layers or works(timeline) or timeline.converged:
            return
        first = next((x for x in timeline.layers if timeline.trained[x.parameter] and not x.weight.zero_at_start), None)
        if first is None:
            return
        slope = slopes(decades(timeline.column("activation_gradient.rms")[:, sites]))
        shrunk = (slope > self.least_slope) & (slope * (len(sites) - 1) > self.least_total)  # False where NaN
        shrunk &= self._matters(timeline, first)
        onset = timeline.onset
        if onset is not None:
            shrunk &= timeline.steps <= onset
        held = lasting(shrunk, least=self.window, window=self.window)
        if held.any():
            yield self._hit(timeline, sites, first, slope, np.flatnonzero(held))

    def _matters(self, timeline: Timeline, first: Layer) -> npt.NDArray[np.bool_]:
        optimizer = timeline.optimized.get(first.weight.name)  # none where steps are made by hand
        eps = optimizer.settings.get("eps") if optimizer is not None else None
        if eps is None:
            still: npt.NDArray[np.bool_] = timeline.column("update.ratio")[:, first.parameter] < self.most_ratio
            return still
        norm = timeline.column("weight_gradient.norm")[:, first.parameter]
        drowned: npt.NDArray[np.bool_] = norm < self.eps_margin * eps * np.sqrt(first.weight.size)
        return drowned

    def _hit(
        self,
        timeline: Timeline,
        sites: npt.NDArray[np.intp],
        first: Layer,
        slope: npt.NDArray[np.float64],
        held: npt.NDArray[np.intp],
    ) -> Hit:
        row = int(held[0]) - self.window + 1
        typical = middles.median(slope[row : held[-1] + 1][np.isfinite(slope[row : held[-1] + 1])])
        total = typical * (len(sites) - 1)
        unit = "blocks" if is_residual(timeline) else "layers"
        names = tuple(timeline.schema.modules[site].path for site in sites)
        ratio = float(timeline.column("update.ratio")[held[-1], first.parameter])
        return Hit(
            modules=names[: max(len(names) // 2, 1)],
            first_step=int(timeline.steps[row]),
            last_step=int(timeline.steps[held[-1]]),
            evidence={
                "decades_per_layer": plain(typical),
                "decades": plain(total),
                unit: len(sites),
                "first_update_ratio": plain(ratio),
            },
            message=(
                f"From the last to the first of {len(sites)} {unit} the gradient shrinks by a factor "
                f"{10 ** min(total, 300.0):.2g}, and {first.module.path} moves by {ratio:.1g} of its norm a step."
            ),
            remedy=_remedy(timeline, typical),
            severity=max(gravity(timeline), Severity.WARNING),
            strength=1.0,
        )


def _remedy(timeline: Timeline, slope: float) -> Remedy:
    sigmoids = sum(layer.module.activation == "sigmoid" for layer in timeline.layers)
    if 2 * sigmoids > len(timeline.layers):
        return Remedy(
            f"Use ReLU in place of the sigmoids, with He's initialisation: each layer now loses a factor {10**slope:.2g}.",
            RELU_FOR_SIGMOID,
        )
    norm = "" if has_norm(timeline) else ", or put a normalisation before each activation"
    return Remedy(
        f"Initialise so that each layer passes {10**slope:.2g} times more{norm}.",
        "for module in model.modules():\n    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):\n"
        '        torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")',
    )
