"""Residual stacks and deep plain nets that nothing keeps in scale."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope import middles
from gradscope.depth import LEAST_BLOCKS
from gradscope.depth import begins_at_zero
from gradscope.depth import decades
from gradscope.depth import has_norm
from gradscope.depth import init_growth
from gradscope.depth import init_ratios
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import gravity
from gradscope.evidence import measured
from gradscope.evidence import suffices
from gradscope.records import Hit
from gradscope.records import ParameterInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import theil_sen


@final
@dataclass(frozen=True)
class MissingNormalization(Rule):
    """A deep model has no normalisation, and its scale grows with depth or its first steps blow it up.

    ## What it does

    In a model without any normalisation it looks for two patterns.

    - A residual stack of six blocks or more whose output, at step 0, grows by a tenth of a decade a block or more, while
      the layers inside the blocks are initialised well (median rho = fan_in * Var(W) / gain^2 between 0.3 and 2.5).
      Where the model itself adds up the branches no module puts the sum out: then the layers' outputs stand for it, whose
      growth is shared out among the additions, and training must have blown up or overshot for want of a normalisation.
    - A plain net of ten matrix layers or more whose scale is even over depth at step 0, and which blows up within the
      first ten steps although no step before moved the median weight matrix by a tenth of its norm; or whose first step was
      measured to overshoot, and not to do so once what each layer puts out is divided by its root mean square.

    ## Why it is bad

    Each block adds a branch as large as its input, so the variance doubles from block to block: 30 blocks multiplied the
    signal by 6,200 and the gradient by 26,000, and a learning rate of 0.05 overshot the valley of the loss by a factor
    19,000. With a LayerNorm before each branch it was 0.1. In a deep plain net the small changes of all layers multiply,
    so that a step that each layer would bear is too much for all of them together.

    ## How it is told apart

    - Too large initial weights show a median rho above 2.5; see init-too-large.
    - A model with any normalisation, as a module or as a function, is left alone, and so are residual branches that start
      at zero or scaled down (Fixup, ReZero): their blocks do not grow.
    - A learning rate that is too high moves the median matrix by a tenth of its norm or more before the blow-up; see
      lr-too-high.

    ## What to do

    Normalise the input of each branch (LayerNorm, RMSNorm, GroupNorm for convolutions) and scale what it adds by
    1/sqrt(number of blocks); or start the last layer of each branch at zero. The code wraps blocks that return
    x + branch(x); where a block does more to the sum, change its forward() instead. On 24 linear and 14 convolutional blocks
    (three seeds each) norm and scale together came to 0.03 to 0.46, where a constant has 2.3; the scale alone left one of
    the six above 3, and the norm alone made one NaN.

    ## Known false alarms

    Deep residual nets without normalisation that train with a small learning rate: there the finding is no more than an
    aside.

    ## References

    S. De and S. Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function", 2020. H. Zhang, Y.
    Dauphin, T. Ma, "Fixup Initialization", 2019. A. Brock, S. De, S. Smith, "Characterizing signal propagation to close
    the performance gap in unnormalized ResNets", 2021.
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("fact.wiring", "activation.rms", "weight.norm")
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "exploding-gradients", "loss-divergence", "gradient-spikes", "residual-growth", "activation-growth",
        "dead-units", "saturated-units", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau",
        "initial-loss-off", "collapsed-output",
        "fp16-overflow", "attention-logit-growth", "output-logit-drift", "clipping-too-tight",
    )  # fmt: skip

    least_slope: float = 0.1  # decades of rms a block; doubling the variance is 0.15
    least_rho: float = 0.3  # median over the layers
    most_rho: float = 2.5  # above it the initial weights are to blame
    least_blocks: int = LEAST_BLOCKS  # residual blocks
    least_plain_layers: int = 10  # of a net without residual additions
    plain_steps: int = 10  # within which a plain net blows up
    most_step: float = 0.1  # update ratio of the median matrix up to the blow-up; larger ones are the learning rate's fault
    even_slope: float = 0.1  # decades of signal a layer, either way, in a plain net that is initialised well

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        wiring = timeline.info.wiring
        if wiring is None or has_norm(timeline) or not begins_at_zero(timeline):
            return
        if wiring.residual_additions >= self.least_blocks:
            yield from self._residual(timeline)
        elif not wiring.residual_additions:
            yield from self._plain(timeline)

    def _residual(self, timeline: Timeline) -> Iterator[Hit]:
        blocks = list(timeline.blocks)
        rhos = list(init_ratios(timeline).values())
        if not rhos or not self.least_rho <= middles.median(rhos) <= self.most_rho:
            return
        if len(blocks) < self.least_blocks:
            yield from self._unseen_stream(timeline, middles.median(rhos))
            return
        slope = theil_sen(decades(timeline.column("activation.rms")[0][blocks]))
        if slope >= self.least_slope:
            yield self._residual_hit(timeline, blocks, slope, middles.median(rhos))

    def _unseen_stream(self, timeline: Timeline, rho: float) -> Iterator[Hit]:
        """Branches that the model itself adds up: no module puts out the sum, but what the layers make of it grows along."""
        wiring = timeline.info.wiring
        sites = [layer.site for layer in timeline.layers[:-1] if not layer.weight.zero_at_start]
        additions = wiring.residual_additions if wiring is not None else 0
        if not additions or len(sites) < additions or not (suffices(timeline, self.name) or timeline.onset is not None):
            return
        slope = theil_sen(decades(timeline.column("activation.rms")[0][sites])) * len(sites) / additions
        if slope >= self.least_slope:
            yield self._stream_hit(timeline, sites, additions, slope, rho)

    def _stream_hit(self, timeline: Timeline, sites: list[int], additions: int, slope: float, rho: float) -> Hit:
        return Hit(
            modules=tuple(timeline.schema.modules[site].path for site in sites),
            first_step=0,
            last_step=0,
            evidence={
                "blocks": additions,
                "decades_per_block": plain(slope),
                "rho": plain(rho),
                **measured(timeline, self.name),
            },
            message=(
                f"The residual stack has no normalisation: at step 0 the scale of its layers grows by a factor {10**slope:.3g} "
                f"with each of {additions} additions, though the weights are of the right size (rho {rho:.2g})."
            ),
            remedy=Remedy(
                f"Normalise what each branch takes in, and scale what each of the {additions} branches adds by "
                f"{additions**-0.5:.2g}, or let the last layer of each branch begin at zero."
            ),
            severity=gravity(timeline),
            strength=5.0 if suffices(timeline, self.name) else 4.0,
        )

    def _residual_hit(self, timeline: Timeline, blocks: list[int], slope: float, rho: float) -> Hit:
        names = tuple(timeline.schema.modules[block].path for block in blocks)
        return Hit(
            modules=names,
            first_step=0,
            last_step=0,
            evidence={
                "blocks": len(blocks),
                "decades_per_block": plain(slope),
                "rho": plain(rho),
                **measured(timeline, self.name),
            },
            message=(
                f"The residual stack has no normalisation: at step 0 its scale grows by a factor {10**slope:.3g} a block, "
                f"{10 ** (slope * (len(blocks) - 1)):.3g} over {len(blocks)} blocks, though the weights are of the right size "
                f"(rho {rho:.2g})."
            ),
            remedy=_branch_norm(timeline, names),
            severity=gravity(timeline),
            strength=5.0 if suffices(timeline, self.name) else 4.0,
        )

    def _plain(self, timeline: Timeline) -> Iterator[Hit]:
        onset = timeline.onset
        sure = suffices(timeline, self.name)
        blown_up = onset is not None and onset <= self.plain_steps
        if len(timeline.layers) < self.least_plain_layers or not (blown_up or sure):
            return
        growth = init_growth(timeline)
        before = timeline.steps < max(onset if onset is not None and blown_up else 1, 1)
        sizes = step_sizes(timeline)[before]
        sizes = sizes[np.isfinite(sizes)]
        if growth is None or not len(sizes) or not abs(growth.slope) <= self.even_slope or sizes.max() >= self.most_step:
            return
        did = f"blew up at step {onset}" if blown_up else "overshot at their first step"
        yield Hit(
            modules=tuple(layer.module.path for layer in timeline.layers),
            first_step=0,
            last_step=onset if onset is not None and blown_up else 0,
            evidence={
                "layers": len(timeline.layers),
                "update_ratio": plain(float(sizes.max())),
                "onset": onset,
                **measured(timeline, self.name),
            },
            message=(
                f"{len(timeline.layers)} layers without normalisation {did}, though no step before moved the "
                f"median weight matrix by more than {sizes.max():.2g} of its norm: the layers' changes multiply."
            ),
            remedy=_layer_norm(timeline),
            severity=Severity.CRITICAL if blown_up else gravity(timeline),
            strength=5.0 if sure else 3.0,
        )


def _branch_norm(timeline: Timeline, blocks: tuple[str, ...]) -> Remedy:
    widths = {block: width for block in blocks if (width := _taken_in(timeline, block))}
    first = next((layer.weight for layer in timeline.layers if layer.module.path.startswith(f"{blocks[0]}.")), None)
    norm = "LayerNorm" if first is None or len(first.shape) == 2 else "GroupNorm"
    scale = f"{len(blocks) ** -0.5:.2g}"
    text = (
        f"Normalise what each branch takes in, by a {norm} that the sum passes by, and scale what each of the {len(blocks)} "
        f"branches adds by {scale}."
    )
    if len(widths) < len(blocks):
        return Remedy(text)
    arguments = "width" if norm == "LayerNorm" else "1, width"
    return Remedy(
        text,
        "class Normalised(torch.nn.Module):  # around a block that returns x + branch(x)\n"
        "    def __init__(self, block, norm):\n        super().__init__()\n        self.block, self.norm = block, norm\n\n"
        "    def forward(self, x, *more, **named):\n        z = self.norm(x)\n"
        f"        return x + {scale} * (self.block(z, *more, **named) - z)\n\n"
        f"for name, width in {_table(widths)}.items():  # before the optimizer is made\n"
        f"    model.set_submodule(name, Normalised(model.get_submodule(name), torch.nn.{norm}({arguments})))",
    )


def _taken_in(timeline: Timeline, block: str) -> int | None:
    """How many features or channels a block takes in; None where none of its layers is known."""
    return next((x.weight.shape[1] for x in timeline.layers if x.module.path.startswith(f"{block}.")), None)


def _table(widths: Mapping[str, int]) -> str:
    """The widths as Python, given once where they are all the same."""
    first, *others = set(widths.values())
    return str(dict(widths)) if others else f"dict.fromkeys({list(widths)}, {first})"


def _layer_norm(timeline: Timeline) -> Remedy:
    inner = timeline.layers[:-1]
    text = "Put a normalisation between each layer and its activation, or lower the learning rate to an eighth."
    if not all(layer.module.role in ("linear", "conv") for layer in inner):
        return Remedy(text)
    norms = [f"    {layer.module.path!r}: torch.nn.{_norm_after(layer.weight)}," for layer in inner]
    return Remedy(
        text,
        "norms = {\n" + "\n".join(norms) + "\n}\nfor name, norm in norms.items():  # before the optimizer is made\n"
        "    model.set_submodule(name, torch.nn.Sequential(model.get_submodule(name), norm))",
    )


def _norm_after(weight: ParameterInfo) -> str:
    return f"LayerNorm({weight.shape[0]})" if len(weight.shape) == 2 else f"GroupNorm(1, {weight.shape[0]})"
