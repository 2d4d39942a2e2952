"""An activation function that takes the signal away, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import begins_at_zero
from gradscope.depth import decades
from gradscope.depth import has_norm
from gradscope.depth import is_residual
from gradscope.depth import plain
from gradscope.depth import slopes
from gradscope.evidence import RELU_FOR_SIGMOID
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.evidence import works
from gradscope.objective import silent
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Layer
from gradscope.timeline import Timeline
from gradscope.trends import median_of

# The most that one layer passes of the gradient, whatever its weights: sqrt(E[f'^2] / E[f^2]) for a standard normal input to
# f, by numeric integration; tanh has 1.09 there and ReLU 1.
PASSES = {"sigmoid": 0.39, "hardsigmoid": 0.32}
FLAT = ("tanh", "sigmoid", "hardtanh", "hardsigmoid")
MODERATE = {"tanh": 1.1, "sigmoid": 2.2, "hardtanh": 0.5, "hardsigmoid": 1.5}  # rms of the input at which 5 % are saturated


@final
@dataclass(frozen=True)
class SaturatingActivation(Rule):
    """The activation function itself takes the signal away: many sigmoids in a row, or units that start where it is flat.

    ## What it does

    Looks at step 0, before any update, in two ways. Where six matrix layers or more are each followed by a sigmoid, with
    neither normalisation nor residual additions, it measures how the gradient shrinks over them towards the input, and
    speaks above 0.3 decades a layer and four decades over all. So it does of two or more layers, most of the hidden ones, of
    which each gives its softmax to the next, above one decade a layer and two over all, up to the layer that takes the last.
    And where tanh or sigmoid saturates more than half of the elements of a layer at step 0 in half of such layers or more,
    though the weights are no larger than He's rule has them.

    ## Why it is bad

    A sigmoid's slope is a quarter at most, and its mean is not zero: with weights of the very best size a layer passes 39 %
    of the gradient, with PyTorch's default 12 %. Over ten layers that leaves a billionth, and training stays at the loss of
    a constant prediction. A curve that is flat where its inputs lie passes on next to nothing from the first step.

    ## How it is told apart

    - Tanh and ReLU pass the whole gradient at the right weights; where a net of these loses it, the weights are too small
      (`init-too-small`) or too large (`init-too-large`, which explains this finding).
    - In a net of sigmoids that rule's numbers are off as well, but other weights are no cure: this finding explains it.
    - Inputs that are not normalised saturate the first layers; `unnormalized-input` explains this finding then.
    - Sigmoids have means of a half, so that the last layer's first steps overshoot sooner (`lr-too-high`): at rates of 0.1,
      0.03 and 0.01 a net of eight sigmoid layers stayed at a constant's loss (two seeds), and so no rate is the cure.
    - A softmax that weighs something (attention, experts, slots of a memory) hands its weights to no layer, and one at the
      output is no hidden one: neither is meant.
    - A sigmoid at the output, in a gate, or in one of a few layers does no harm and is not meant.
    - Gates that begin open or closed by their biases are flat at the start too: of this case a warning is made only where
      training blows up, or stands still after 100 steps.
    - Units that saturate later in training are `saturated-units`, a symptom.

    The gradients of a net of ten sigmoid layers shrank by 0.82 to 0.86 decades a layer; of healthy nets of 12 to 30 layers by
    0.09 at most. Of three softmax layers of 64, 48 and 32 units the gradient shrank by 2.1 decades a layer, the signal by 2;
    the same net with ELUs showed 0.5. SGD with momentum left it at ln 6 for 250 steps.

    ## What to do

    Use ReLU or GELU with He's initialisation in place of the sigmoids, or put a LayerNorm before each of them. Where the
    curve begins flat, scale its input down.

    ## Known false alarms

    Sigmoids in branches that run in parallel are taken for depth. Where training works the finding is for information: where
    the loss has come under three quarters of a constant prediction's. Above that the last biases alone may have brought it
    down, and so they have where the output varied by less than 0.001 over the batch when it was last seen (the bound of
    `init-too-small`, which this explains): an autoencoder of seven sigmoid layers went from 0.69 to 0.61 and 0.59, and gave
    all pictures the same for 200 steps and more; with ELUs it came to 0.42. A training that after a hundred steps still stood
    where it had started (nine tenths of it or more) lost these to the activations, and the finding is a warning until it has
    converged: seven sigmoid layers under AdamW left 0.44 after 300 steps and had 0.29 after 350, where SiLUs had 0.03.

    ## References

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, section 3.
    S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("activation_gradient.rms", "weight.norm", "fact.wiring")
    explains: ClassVar[tuple[str, ...]] = (
        "saturated-units", "vanishing-gradients", "init-too-small", "loss-plateau", "collapsed-output", "lr-too-low",
        "weights-not-moving", "adam-epsilon-dominates", "fp16-underflow", "labels-unrelated", "lr-too-high",
    )  # fmt: skip

    least_slope: float = 0.3  # decades a layer by which the gradient shrinks towards the input
    least_total: float = 4.0  # decades over all of these layers
    least_layers: int = 6  # followed by a sigmoid
    least_soft_slope: float = 1.0  # the same over layers that a softmax follows
    least_soft_total: float = 2.0  # decades from the layer that takes the last softmax to the first that has one
    least_soft: int = 2  # layers followed by a softmax
    patience: int = 100  # steps in which a training that works has come down
    tenths: int = 20  # losses whose median tells where it is
    moved: float = 0.9  # of where it started, below which it has come down
    learned: float = 0.75  # of the best constant prediction's loss, above which biases may have brought it down
    most_share: float = 0.5  # saturated elements of a layer
    most_rho: float = 2.0  # variance of the weights over that of He's rule, above which these are to blame

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if not begins_at_zero(timeline):
            return
        found = self._stacked(timeline) or self._softmaxes(timeline) or self._flat_from_the_start(timeline)
        if found is not None:
            yield found

    def _stacked(self, timeline: Timeline) -> Hit | None:
        layers = [x for x in timeline.layers[:-1] if x.module.activation in PASSES and not x.module.norm_follows]
        if len(layers) < self.least_layers or not _make_up_a_plain_net(timeline, layers):
            return None
        gradient = decades(timeline.column("activation_gradient.rms")[:1, [x.site for x in layers]])
        slope = float(slopes(gradient)[0])
        total = slope * (len(layers) - 1)
        if not (slope > self.least_slope and total > self.least_total):
            return None
        kind = str(layers[0].module.activation)
        why = f"; with the best of weights each would still pass only {100 * PASSES[kind]:.0f} %"
        return self._shrinking(timeline, layers, slope, total, why, _replace(kind))

    def _softmaxes(self, timeline: Timeline) -> Hit | None:
        """Hidden layers whose softmax is what the next layer takes."""
        pairs = [(x, taker) for x, taker in pairwise(timeline.layers) if x.module.activation == "softmax"]
        pairs = [(x, taker) for x, taker in pairs if taker.weight.fan_in == x.weight.shape[0] > 1]
        layers = [x for x, _ in pairs]
        if len(layers) < self.least_soft or not _make_up_a_plain_net(timeline, layers):
            return None
        sites = [x.site for x in (*layers, pairs[-1][1])]
        gradient = decades(timeline.column("activation_gradient.rms")[:1, sites])
        slope = float(slopes(gradient)[0])
        total = float(gradient[0, -1] - gradient[0, 0])
        if not (slope > self.least_soft_slope and total > self.least_soft_total):
            return None
        units = layers[0].weight.shape[0]
        why = f": what a softmax puts out adds up to one, and each of {units} units has next to nothing of it"
        return self._shrinking(timeline, layers, slope, total, why, _without_softmax(timeline, layers))

    def _shrinking(self, timeline: Timeline, layers: list[Layer], slope: float, total: float, why: str, remedy: Remedy) -> Hit:
        kind = str(layers[0].module.activation)
        return Hit(
            modules=tuple(x.module.path for x in layers),
            first_step=0,
            last_step=0,
            evidence={"activation": kind, "decades_per_layer": plain(slope), "decades": plain(total), "layers": len(layers)},
            message=(
                f"Over {len(layers)} {kind} layers the gradient shrinks by a factor {10 ** min(total, 300.0):.2g} before any "
                f"update, {10**slope:.2g} a layer{why}."
            ),
            remedy=remedy,
            severity=max(gravity(timeline), Severity.INFO if self._learns(timeline) else Severity.WARNING),
            strength=4.0,
        )

    def _learns(self, timeline: Timeline) -> bool:
        """Whether more was learned than what the last layers' biases can do by themselves."""
        far = timeline.last_loss < self.learned * timeline.baseline and not silent(timeline)
        return works(timeline) and far and not self._stood(timeline)

    def _stood(self, timeline: Timeline) -> bool:
        """Whether the hundredth step found the loss where it had started, which the activations cost; not once converged."""
        early = timeline.loss[: self.patience]
        if timeline.converged or len(early) < self.patience:
            return False
        start, then = median_of(early[: self.tenths]), median_of(early[-self.tenths :])
        return bool(then > self.moved * start)

    def _flat_from_the_start(self, timeline: Timeline) -> Hit | None:
        layers = [x for x in timeline.layers[:-1] if x.module.activation in FLAT and not x.module.norm_follows]
        if not layers:
            return None
        shares = timeline.column("activation.saturated")[0][[x.site for x in layers]]
        flat = [(x, float(share)) for x, share in zip(layers, shares, strict=True) if share > self.most_share]
        if 2 * len(flat) < len(layers) or not flat or self._large(timeline, [x for x, _ in flat]):
            return None
        names = tuple(x.module.path for x, _ in flat)
        share = median_of(np.array([share for _, share in flat]))
        return Hit(
            modules=names,
            first_step=0,
            last_step=0,
            evidence={"share": plain(share), "layers": len(names), "of_layers": len(layers)},
            message=(
                f"{100 * share:.0f} % of the activations of {named(names)} are saturated at step 0, before any update, where 3 "
                "% is the most that healthy trainings show, and the weights are no larger than they should be."
            ),
            remedy=_scale_down(timeline, [x for x, _ in flat]),
            severity=Severity.WARNING if gravity(timeline) is Severity.CRITICAL else Severity.INFO,
            strength=4.0,
        )

    def _large(self, timeline: Timeline, layers: list[Layer]) -> bool:
        norms = timeline.column("weight.norm")[0].astype(np.float64)
        rhos = [x.weight.fan_in * norms[x.parameter] ** 2 / x.weight.size / x.gain_squared for x in layers]
        return not median_of(np.array(rhos)) <= self.most_rho


def _make_up_a_plain_net(timeline: Timeline, layers: list[Layer]) -> bool:
    """Whether these are most of the hidden layers, with neither residual additions nor normalisation."""
    most = 2 * len(layers) > len(timeline.layers[:-1])
    return most and not is_residual(timeline) and not has_norm(timeline)


def _replace(kind: str) -> Remedy:
    return Remedy(
        f"Use ReLU and He's initialisation in place of {kind}, or put a LayerNorm before each activation.",
        RELU_FOR_SIGMOID,
    )


def _without_softmax(timeline: Timeline, layers: list[Layer]) -> Remedy:
    behind = [timeline.schema.modules[x.site + 1].path for x in layers]
    own = all((module := timeline.modules.get(path)) and module.type == "Softmax" for path in behind)
    return Remedy(
        "Use ReLU and He's initialisation in place of each softmax between layers; it belongs at the output.",
        f"for name in {behind!r}:  # before the optimizer is made\n    model.set_submodule(name, torch.nn.ReLU())\n"
        f"for name in {[x.module.path for x in layers]!r}:\n"
        '    torch.nn.init.kaiming_normal_(model.get_submodule(name).weight, nonlinearity="relu")'
        if own
        else None,
    )


def _scale_down(timeline: Timeline, layers: list[Layer]) -> Remedy:
    """Bring the layer's output to the size at which 5 % of the activations are saturated."""
    rms = timeline.column("activation.rms")[0]
    factors = {
        x.module.path: float(f"{MODERATE[str(x.module.activation)] / rms[x.site]:.3g}")
        for x in layers
        if math.isfinite(rms[x.site]) and rms[x.site] > MODERATE[str(x.module.activation)]
    }
    text = f"Scale down what goes into the activations of {named([x.module.path for x in layers])}, or put a LayerNorm before."
    code = (
        f"factors = {factors}\nwith torch.no_grad():  # directly after the model is made\n"
        "    for name, factor in factors.items():\n        for parameter in model.get_submodule(name).parameters():\n"
        "            parameter.mul_(factor)"
    )
    return Remedy(text, code if factors else None)
