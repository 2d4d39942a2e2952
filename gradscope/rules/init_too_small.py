"""Initial weights that let the signal die from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope import middles
from gradscope.depth import InitGrowth
from gradscope.depth import has_norm
from gradscope.depth import init_growth
from gradscope.depth import init_remedy
from gradscope.depth import is_residual
from gradscope.depth import matrix_ratios
from gradscope.depth import matrix_remedy
from gradscope.depth import most_matrix_ratios
from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import RELU_FOR_SIGMOID
from gradscope.evidence import gravity
from gradscope.evidence import owners
from gradscope.evidence import stalled
from gradscope.objective import adapts
from gradscope.objective import given
from gradscope.objective import silent
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class InitTooSmall(Rule):
    """The initial weights are so small that the signal dies from layer to layer.

    ## What it does

    At step 0, before any update, it compares each matrix layer's variance with the one that keeps the scale, rho = fan_in
    * Var(W) / gain^2, and measures how the signal (the standard deviation over the batch, not the root mean square, which
    biases keep up) changes with depth. It speaks where a net of four matrix layers or more, without normalisation and
    without residual additions, has a median rho below 0.7 and loses more than 0.15 decades a layer and more than three
    decades over all. Of matrices that no layer of torch holds it is not known which way they are multiplied: four or more
    count with the longer side as fan_in and no activation, which is the largest rho that they can have; they must lose three
    decades even so, and the output must vary by less than 0.001 over the batch.
    So are two or three layers judged, with a median rho below 0.01; as training may well recover from that, it is an aside
    until a hundred steps have brought the loss nowhere.

    ## Why it is bad

    All inputs arrive at the output as the same number, so the model can only learn a constant; and the gradient of the
    first layers is as small as the signal of the last. PyTorch's default for `nn.Linear` has rho = 1/6 before a ReLU, a
    factor 0.41 a layer: a 20-layer net loses 7.7 decades. Its training stayed at the loss of a constant prediction.

    ## How it is told apart

    - Short nets get by with the default, which loses less than three decades in fewer than eight layers: 24 nets of four to
      seven layers (momentum and Adam, three seeds) lost 0.9 to 2.2, and all trained. Weights of standard deviation 0.01 or
      0.03 lost 3.3 to 6.7 decades in five to seven layers: with momentum all five such nets stayed at a constant, with
      Adam four trained and one did not. So with optimizers that divide by the gradient's size a loss of less than seven
      decades is an aside until a hundred steps have shown what becomes of it: eight SiLU layers with PyTorch's default lost
      3.2 decades, and AdamW brought them to a twelfth of where they began. Below four layers nothing is said.
    - A normalisation restores the scale, a residual addition passes it by; with either, the rule is silent (a healthy net
      whose residual branches start at zero shows -2.8 decades a layer inside the branches).
    - Weights of the right size whose signal dies all the same (dead or saturated units) have rho near 1.
    - Layers that start at zero and the last layer do not count.

    On 26 healthy small trainings the slope lay between -0.03 and +0.00 decades a layer; with too small weights it was
    -0.33 to -1.15.

    ## What to do

    Multiply each layer's weights by 1 / sqrt(rho), or initialise with He's or Xavier's rule and the gain of the
    activation that follows, or put a LayerNorm before each activation. Behind a sigmoid no initialisation helps for long;
    use ReLU.

    ## Known false alarms

    Parallel branches that run one after another count as depth. Where training works the finding is no more than an
    aside.

    ## References

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010. K. He, X.
    Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015, section 2.2.
    """

    family: ClassVar[str] = "initialisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight.norm", "fact.wiring")
    explains: ClassVar[tuple[str, ...]] = (
        "vanishing-gradients", "loss-plateau", "collapsed-output", "lr-too-low", "dead-units", "weights-not-moving",
        "adam-epsilon-dominates", "fp16-underflow", "labels-unrelated",
    )  # fmt: skip

    most_rho: float = 0.7  # median over the layers; PyTorch's default before a ReLU has 1/6
    most_slope: float = -0.15  # decades a layer
    most_total: float = -3.0  # decades over all layers
    recovered: float = -7.0  # decades, above which Adam brought most nets back
    few_layers: int = 2  # of which all must be tiny, and training stand still
    few_rho: float = 0.01  # median over so few
    least_layers: int = 4  # matrix layers; the default needs eight to lose three decades, ln(1e-3) / ln(0.41)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if is_residual(timeline) or has_norm(timeline):
            return
        if len(timeline.layers) >= self.least_layers:
            growth = init_growth(timeline)
            shrinks = growth is not None and growth.slope < self.most_slope and growth.total < self.most_total
            if growth is not None and shrinks and growth.rho < self.most_rho:
                yield self._hit(timeline, growth)
        else:
            yield from self._by_the_output(timeline)

    def _by_the_output(self, timeline: Timeline) -> Iterator[Hit]:
        """Few layers, or matrices that no layer of torch holds: what they let through at most, and what came out of them."""
        rhos = {**matrix_ratios(timeline), **most_matrix_ratios(timeline)}
        if len(rhos) < self.few_layers:
            return
        short = len(rhos) < self.least_layers
        known = np.array(list(rhos.values()))
        total, rho = 0.5 * float(np.log10(known).sum()), middles.median(known)
        output = float(given(timeline, "input_signal")[0])  # over the batch: biases do not show in it
        tiny = rho < (self.few_rho if short else self.most_rho)
        if tiny and total < self.most_total and output < 10**self.most_total:
            severity = Severity.INFO if self._may_recover(timeline, total) else gravity(timeline)
            if short:  # which may well recover with any optimizer
                severity = Severity.WARNING if stalled(timeline) else Severity.INFO
            yield self._output_hit(timeline, rhos, rho, total, output, severity)

    def _output_hit(
        self, timeline: Timeline, rhos: dict[str, float], rho: float, total: float, output: float, severity: Severity
    ) -> Hit:
        return Hit(
            modules=owners(timeline, rhos),
            first_step=0,
            last_step=0,
            evidence={"rho": plain(rho), "decades": plain(total), "matrices": len(rhos), "output_signal": plain(output)},
            message=(
                f"At step 0 the weights' variance is {rho:.3g} times what keeps the scale (median of {len(rhos)} matrices), "
                f"and the output varies by {output:.2g} over the batch: the signal fades over depth before any update."
            ),
            remedy=matrix_remedy(rhos),
            severity=severity,
            strength=4.0,
        )

    def _may_recover(self, timeline: Timeline, total: float) -> bool:
        """Whether the signal is not wholly lost and the optimizer's steps are as long for small gradients: time will tell."""
        return adapts(timeline) and total > self.recovered and timeline.step_count < PATIENCE and timeline.onset is None

    def _severity(self, timeline: Timeline, total: float) -> Severity:
        """Where the output still does not vary over the batch, a loss that looks as if it had come down did so by chance."""
        if self._may_recover(timeline, total):
            return Severity.INFO
        constant = timeline.step_count >= PATIENCE and silent(timeline)
        return max(gravity(timeline), Severity.WARNING if constant else Severity.INFO)

    def _hit(self, timeline: Timeline, growth: InitGrowth) -> Hit:
        sigmoids = sum(timeline.modules[path].activation == "sigmoid" for path in growth.rhos)
        return Hit(
            modules=tuple(growth.rhos),
            first_step=0,
            last_step=0,
            evidence={
                "rho": plain(growth.rho),
                "decades_per_layer": plain(growth.slope),
                "decades": plain(growth.total),
                "layers": growth.count,
            },
            message=(
                f"At step 0 the weights' variance is {growth.rho:.3g} times what keeps the scale (median over layers), and "
                f"over {growth.count} layers the signal shrinks to {10 ** max(growth.total, -300.0):.2g} of itself before any "
                "update."
            ),
            remedy=_for_sigmoids() if 2 * sigmoids > len(growth.rhos) else init_remedy(growth),
            severity=self._severity(timeline, growth.total),
            strength=4.0,
        )


def _for_sigmoids() -> Remedy:
    return Remedy(
        "Use ReLU and He's initialisation in place of the sigmoids, which pass on a quarter of their input's spread at most.",
        RELU_FOR_SIGMOID,
    )
