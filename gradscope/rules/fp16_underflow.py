"""Gradients, or an optimizer's eps, that are too small for float16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope import middles
from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Layer
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.trends import row_medians

LARGEST = 65504.0  # finite number of float16
HEADROOM = 10.0  # that a loss scale leaves above the largest gradient
MOST_SCALE = 24  # log2 of the largest loss scale that a remedy names


@final
@dataclass(frozen=True)
class Fp16Underflow(Rule):
    """Gradients are too small for float16 and become zero, or an optimizer's eps does.

    ## What it does

    Where layers put out float16 and no loss scale was seen, it compares their weights' gradients with the smallest number
    that float16 has, 2^-24 or 6e-8. It speaks where in the median sampled step the gradient's root mean square is below a
    millionth and more than 5 % of its elements are exactly zero, in half of these layers or more. And it speaks where an
    optimizer that divides by the gradient's size holds float16 parameters with an eps below 6e-8: eps is then zero in
    float16, and an element without gradient is divided by zero.

    ## Why it is bad

    What becomes zero on its way back is lost to all layers in front. With Adam's eps of 1e-8 in float16, 0/0 makes NaN.

    ## How it is told apart

    - ReLU sets half of the gradients of activations to zero, but a weight's gradient sums over the batch and is seldom zero;
      a constant input or a dead unit makes it so in rows and columns, at any size of the rest. It takes both: zeros, and
      a rest that is near the smallest number.
    - With a GradScaler gradients are scaled before they come down to float16, and nothing is said of them.
    - Gradients that vanish over depth do so in float32 as well; `init-too-small` and `vanishing-gradients` then explain this.
    - Where all gradients are exactly zero it takes more: not even the last layer's output may get one, though the loss
      reaches it by a factor above zero.
    - A training whose loss is under a twentieth of the best constant prediction's has small gradients by right; where the
      loss has come down by a tenth or more the finding is for information. A factor before the loss is taken off first.

    ## What to do

    Scale the loss with `torch.amp.GradScaler`, or use bfloat16. Keep parameters in float32; where they have to be in
    float16, set eps to 1e-4.

    ## Known false alarms

    None known.

    ## References

    P. Micikevicius et al., "Mixed Precision Training", 2018, section 3.2. google-deepmind/optax#1754 on eps in float16.
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight_gradient.norm", "fact.optimizer")
    explains: ClassVar[tuple[str, ...]] = (
        "vanishing-gradients", "loss-plateau", "lr-too-low", "weights-not-moving", "adam-epsilon-dominates",
        "collapsed-output", "loss-divergence", "exploding-gradients", "nonfinite-origin", "nonfinite-gradients",
        "nonfinite-loss",
    )  # fmt: skip

    most_gradient: float = 1e-6  # root mean square, sixteen times the smallest number of float16
    least_zero: float = 0.05  # of the gradient's elements
    least_share: float = 0.5  # of the layers
    least_samples: int = 5  # sampled steps with a gradient
    least_eps: float = 6e-8  # about 2^-24

    def obstacle(self, timeline: Timeline) -> str | None:
        if any(m.dtype == "float16" for m in timeline.info.modules) or _half_parameters(timeline):
            return Rule.obstacle(self, timeline)
        return "nothing of the model was seen in float16"

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        for optimizer in timeline.info.optimizers:
            eps = optimizer.settings.get("eps")
            if eps is not None and eps < self.least_eps and _half_parameters(timeline) & set(optimizer.parameters):
                yield self._eps(timeline, optimizer, eps)
                return
        layers = [x for x in timeline.layers if x.module.dtype == "float16" and timeline.trained[x.parameter]]
        if not layers or timeline.converged or np.isfinite(timeline.pulse("loss_scale")).any():
            return
        yield from self._gradients(timeline, layers)

    def _gradients(self, timeline: Timeline, layers: list[Layer]) -> Iterator[Hit]:
        places = [layer.parameter for layer in layers]
        norms = timeline.column("weight_gradient.norm")[:, places].astype(np.float64)
        sizes = np.sqrt([layer.weight.size for layer in layers])
        zero = timeline.column("weight_gradient.zero")[:, places]
        judged = np.isfinite(norms) & np.isfinite(zero)
        rms = row_medians(np.where(judged, norms / sizes, np.nan).T)
        zeros = row_medians(np.where(judged, zero, np.nan).T)
        lost = (judged.sum(axis=0) >= self.least_samples) & (rms < self.most_gradient) & (zeros > self.least_zero)
        enough = lost.sum() >= self.least_share * len(layers)
        if enough and ((rms[lost] > 0).any() or self._nothing_left(timeline, layers[-1])):
            names = tuple(layer.module.path for layer, is_lost in zip(layers, lost, strict=True) if is_lost)
            rows = np.flatnonzero(judged[:, lost].any(axis=1))
            yield self._underflow(timeline, names, rows, middles.median(rms[lost]), middles.median(zeros[lost]))

    def _nothing_left(self, timeline: Timeline, last: Layer) -> bool:
        """Whether not even the last layer's output gets a gradient, under a loss that has one."""
        arrived = timeline.column("activation_gradient.absmax")[:, last.site]
        arrived = arrived[np.isfinite(arrived)]
        return len(arrived) >= self.least_samples and bool((arrived == 0).all()) and _weight(timeline) > 0

    def _underflow(self, timeline: Timeline, names: tuple[str, ...], rows: np.ndarray, rms: float, zeros: float) -> Hit:
        return Hit(
            modules=names,
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"gradient_rms": plain(rms), "zero": plain(zeros), "smallest": 2.0**-24, "layers": len(names)},
            message=(
                f"The gradients of {named(names)} have a root mean square of {rms:.2g} and {100 * zeros:.0f} % of their "
                "elements are zero: the model runs in float16, whose smallest number is 6e-8, and no loss scale was seen."
            ),
            remedy=_scaler(timeline),
            severity=self._severity(timeline),
            strength=4.0,
        )

    def _severity(self, timeline: Timeline) -> Severity:
        if timeline.learning:
            return Severity.INFO
        stalled = timeline.step_count >= PATIENCE and not timeline.progressing
        return Severity.CRITICAL if stalled else Severity.WARNING

    def _eps(self, timeline: Timeline, optimizer: OptimizerInfo, eps: float) -> Hit:
        held = [name for name in optimizer.parameters if name in _half_parameters(timeline)]
        return Hit(
            modules=owners(timeline, held),
            first_step=0,
            last_step=max(timeline.step_count - 1, 0),
            evidence={"optimizer": optimizer.type, "eps": eps, "smallest": 2.0**-24, "parameters": len(held)},
            message=(
                f"{optimizer.type} holds {len(held)} parameters in float16 with eps = {eps:g}, which is zero in float16, whose "
                "smallest number is 6e-8: an element without gradient is divided by zero."
            ),
            remedy=Remedy(
                "Keep the parameters in float32 and run the forward pass under autocast; or set eps to 1e-4.",
                'for group in optimizer.param_groups:\n    group["eps"] = 1e-4',
            ),
            severity=Severity.INFO if works(timeline) else max(gravity(timeline), Severity.WARNING),
            strength=10.0,
        )


def _weight(timeline: Timeline) -> float:
    """By what the recognised loss was multiplied before backward(); NaN where that is not known."""
    return median_of(timeline.column("loss.weight").ravel())


def _half_parameters(timeline: Timeline) -> set[str]:
    return {parameter.name for parameter in timeline.info.parameters if parameter.dtype == "float16"}


def _scaler(timeline: Timeline) -> Remedy:
    """A loss scale of 2^floor(log2(65504 / (10 max|g|))), the largest that leaves room above the largest gradient seen."""
    gradients = timeline.column("activation_gradient.absmax")
    largest = float(np.max(gradients[np.isfinite(gradients)], initial=0.0))
    power = MOST_SCALE if largest <= 0 else min(math.floor(math.log2(LARGEST / (HEADROOM * largest))), MOST_SCALE)
    device = timeline.info.device.partition(":")[0]
    return Remedy(
        f"Scale the loss, by 2^{power} to begin with, or use bfloat16.",
        f'scaler = torch.amp.GradScaler("{device}", init_scale=2.0**{power})  # before the loop\n'
        "# and in place of backward() and step():\noptimizer.zero_grad()\nscaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\nscaler.update()",
    )
