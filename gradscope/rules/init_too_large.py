"""Initial weights that make the signal grow from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import InitGrowth
from gradscope.depth import has_norm
from gradscope.depth import init_growth
from gradscope.depth import init_remedy
from gradscope.depth import matrix_ratios
from gradscope.depth import matrix_remedy
from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import gravity
from gradscope.evidence import measured
from gradscope.evidence import overshot
from gradscope.evidence import owners
from gradscope.evidence import suffices
from gradscope.objective import REGRESSIONS
from gradscope.objective import chance
from gradscope.objective import each
from gradscope.objective import given
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of


@final
@dataclass(frozen=True)
class InitTooLarge(Rule):
    """The initial weights are so large that the signal grows from layer to layer, or saturates each of them.

    ## What it does

    At step 0, before any update, it compares each matrix layer's variance with the one that keeps the scale, rho = fan_in
    * Var(W) / gain^2, and measures how the signal (the standard deviation over the batch) changes with depth. It speaks
    where the median rho is above 2 and the signal grows by more than a tenth of a decade a layer and by more than one and
    a half decades over all. Networks of three to five layers are too short for a slope: there it takes a median rho above
    4 and a training that blew up. Where the first step was measured to overshoot, and not to do so once each layer's weights
    are divided by the root of its rho, that is enough, however much the signal grows. In a net of any depth without
    normalisation it is enough, too, that the median rho is above 4, with the last layer and with matrices that are
    parameters by themselves, and that the output starts at three times the targets' root mean square (logits: at 10).

    ## Why it is bad

    Activations and gradients grow as the product of the layers' gains. Eight ReLU layers of width 128 with a standard
    deviation of 0.3 (rho = 5.8) multiply the signal by 2.4 a layer; the largest stable learning rate was a factor 800
    below the usual one. The loss starts orders of magnitude above that of a constant prediction, and the first steps
    overshoot.

    ## How it is told apart

    - A learning rate that is too high shows no slope at step 0; it makes things grow only after the first update.
    - A residual net without normalisation grows from block to block though each layer has rho near 1; see
      missing-normalization. A residual net is judged by its blocks, not by the layers inside them.
    - L-BFGS makes several updates within a step, and what is seen of step 0 came after them: at a rate of 5, without a line
      search, weights of the usual start had a rho of 9 to 1e18 there. So nothing is said where its steps have several.
    - Layers that a normalisation follows are indifferent to their scale, layers that start at zero have none, and the
      last layer sets the scale of the output alone: none of them counts. Embeddings are no matrix layers.

    On 26 healthy small trainings the slope at step 0 lay between -0.03 and +0.00 decades a layer; with weights 2.4 times
    too large it was +0.33 to +0.37, where half log10 rho says +0.38. The largest share of saturated activations was 3 %;
    tanh nets whose weights had a standard deviation of 1 (rho = 25) began with 82 to 94 %, and in 250 steps came to a loss
    of 0.5 to 2.2, where Xavier's rule comes to 0.02.

    Nets of two and three layers whose weights had a standard deviation of 1 (rho of 20 to 73) put out 35 to 184 where the
    targets have 0.7, and after 300 steps their loss was 190 to 8,000 times a constant's; He's weights put out 2. Before 100
    steps such a start is for information, unless training blows up; then it is a warning as long as the loss is above that of
    a constant prediction, or a squared error above four fifths of it: all that such a net learns for long is to bring its
    output down. Graph nets of randn (rho of 9) had 0.94 to 2.4 times a constant's loss after 250 steps of Adam, on four
    seeds.

    ## What to do

    Multiply each layer's weights by 1 / sqrt(rho), or initialise with He's or Xavier's rule and the gain of the
    activation that follows.

    ## Known false alarms

    A fine-tuned checkpoint may have weights of any size; where it trains, the finding is no more than an aside.

    ## References

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010. K. He, X.
    Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015, section 2.2.
    """

    family: ClassVar[str] = "initialisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight.norm", "fact.wiring")
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "loss-divergence", "gradient-spikes", "dead-units", "saturated-units",
        "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau", "initial-loss-off", "collapsed-output",
        "activation-growth", "saturating-activation",
        "fp16-overflow", "attention-logit-growth", "output-logit-drift", "residual-growth", "clipping-too-tight",
    )  # fmt: skip

    least_rho: float = 2.0  # median over the layers
    least_slope: float = 0.1  # decades a layer
    least_total: float = 1.5  # decades over all layers
    least_layers: int = 5  # compared, from which a slope counts
    few_layers: int = 2  # compared, from which rho alone counts after a blow-up
    few_rho: float = 4.0  # median over so few layers
    least_saturated: float = 0.5  # of the activations at step 0, in the median layer
    ordinary_input: float = 3.0  # rms, above which the input may be what saturates
    large_output: float = 3.0  # times the targets' root mean square, at step 0
    large_logits: float = 10.0  # root mean square at step 0
    learned: float = 0.8  # of a constant's squared error, above which nothing was learned but to bring the output down
    loss_off: float = 3.0  # times the best constant prediction's loss at step 0, from which saturation has done harm

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        growth = init_growth(timeline)
        found = self._over_depth(timeline, growth) if growth is not None and growth.rho > self.least_rho else None
        found = found or self._at_the_output(timeline)
        if found is not None:
            yield found

    def _over_depth(self, timeline: Timeline, growth: InitGrowth) -> Hit | None:
        share = self._saturated(timeline, growth)
        if share > self.least_saturated:
            return self._saturated_hit(timeline, growth, share)
        if growth.count >= self.least_layers and growth.slope > self.least_slope and growth.total > self.least_total:
            return self._hit(timeline, growth, 5.0 if suffices(timeline, self.name) else 4.0)
        if suffices(timeline, self.name):
            return self._hit(timeline, growth, 5.0)
        return self._hit(timeline, growth, 3.0) if self._short_and_blown_up(timeline, growth) else None

    def _short_and_blown_up(self, timeline: Timeline, growth: InitGrowth) -> bool:
        short = self.few_layers <= growth.count < self.least_layers and growth.unit == "layers"
        return short and growth.rho > self.few_rho and timeline.onset is not None

    def _hit(self, timeline: Timeline, growth: InitGrowth, strength: float) -> Hit:
        grown = 10 ** min(growth.total, 300.0)
        return Hit(
            modules=tuple(growth.rhos),
            first_step=0,
            last_step=0,
            evidence={
                "rho": plain(growth.rho),
                "decades_per_layer": plain(growth.slope),
                "decades": plain(growth.total),
                growth.unit: growth.count,
                **measured(timeline, self.name),
            },
            message=(
                f"At step 0 the weights' variance is {growth.rho:.3g} times what keeps the scale (median over layers), and "
                f"over {growth.count} {growth.unit} the signal grows by a factor {grown:.3g} before any update."
            ),
            remedy=init_remedy(growth),
            severity=gravity(timeline),
            strength=strength,
        )

    def _saturated(self, timeline: Timeline, growth: InitGrowth) -> float:
        """Median over the layers of the share saturated at step 0; NaN where it says nothing about the weights."""
        sites = [layer.site for layer in timeline.layers if layer.module.path in growth.rhos]
        inputs = timeline.column("input.rms")[0]
        if len(sites) < self.few_layers or (inputs > self.ordinary_input).any():
            return float("nan")
        return median_of(timeline.column("activation.saturated")[0][sites])

    def _saturated_hit(self, timeline: Timeline, growth: InitGrowth, share: float) -> Hit:
        off = timeline.first_loss > self.loss_off * timeline.baseline > 0 and not timeline.converged
        return Hit(
            modules=tuple(growth.rhos),
            first_step=0,
            last_step=0,
            evidence={
                "rho": plain(growth.rho),
                "saturated": plain(share),
                "first_loss": plain(timeline.first_loss),
                **measured(timeline, self.name),
            },
            message=(
                f"At step 0 the weights' variance is {growth.rho:.3g} times what keeps the scale (median over layers), which "
                f"saturates {100 * share:.0f} % of the activations before any update."
            ),
            remedy=init_remedy(growth),
            severity=max(gravity(timeline), Severity.WARNING if off else Severity.INFO),
            strength=5.0 if suffices(timeline, self.name) else 4.0,
        )

    def _at_the_output(self, timeline: Timeline) -> Hit | None:
        """Weights that are too large, and an output that is from the start; the depth does not matter."""
        loss = sole_loss(timeline)
        rhos = matrix_ratios(timeline)
        if loss is None or not rhos or has_norm(timeline) or (timeline.column("input.rms")[0] > self.ordinary_input).any():
            return None
        rho, output = median_of(np.array(list(rhos.values()))), float(given(timeline, "input_rms")[0])
        known = targets(timeline) if loss.kind in REGRESSIONS else None
        logits = loss.kind in ("cross_entropy", "bce_with_logits")
        usual = math.hypot(known.mean, known.std) if known else (1.0 if logits else math.nan)
        if not (rho > self.few_rho and output > (self.large_logits if logits else self.large_output * usual)):
            return None
        what = "logits start at about" if logits else "the targets have"
        return Hit(
            modules=owners(timeline, rhos),
            first_step=0,
            last_step=0,
            evidence={"rho": plain(rho), "output_rms": plain(output), "usual_rms": plain(usual), "matrices": len(rhos)},
            message=(
                f"At step 0 the weights' variance is {rho:.3g} times what keeps the scale (median of {len(rhos)} matrices), "
                f"and the output's root mean square is {output:.3g}, where {what} {usual:.3g}."
            ),
            remedy=matrix_remedy(rhos),
            severity=self._severity(timeline, loss),
            strength=4.0,
        )

    def _severity(self, timeline: Timeline, loss: LossInfo) -> Severity:
        """Outputs that are far too large come down at once where steps are long enough; after a while they should have."""
        if timeline.onset is not None or overshot(timeline):
            return Severity.CRITICAL
        if timeline.step_count < PATIENCE:
            return Severity.INFO
        known = targets(timeline) if loss.kind in ("l1", "smooth_l1") else None
        level = known.std if known else chance(timeline, loss)  # a constant's mean error is no larger than its root mean square
        level *= self.learned if loss.kind == "mse" else 1.0
        return Severity.WARNING if each(timeline, loss, timeline.last_loss) > level else Severity.INFO
