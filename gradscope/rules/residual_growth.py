"""A residual stream that grows from block to block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.depth import LEAST_BLOCKS
from gradscope.depth import begins_at_zero
from gradscope.depth import decades
from gradscope.depth import has_norm
from gradscope.depth import is_residual
from gradscope.depth import plain
from gradscope.evidence import gravity
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import theil_sen


@final
@dataclass(frozen=True)
class ResidualGrowth(Rule):
    """What runs through the residual blocks grows by a factor in each of them, before any update.

    ## What it does

    At step 0 it compares the size (rms) of the outputs of six residual blocks or more: the residual stream, to which each block
    adds. It speaks where they grow by a tenth of
    a decade a block or more, and more than tenfold over all.

    ## Why it is bad

    The last blocks' outputs drown what the first ones found, and gradients grow by the same factor on their way back: over
    30 blocks without normalisation the stream grew 6,200 times and the gradient 26,000 times.

    ## How it is told apart

    - A stream to which each block adds a normalised branch grows like the square root of the depth: fivefold over 24 blocks,
      and ever less from block to block. The median slope does not see it.
    - Branches that start at zero or scaled down leave the stream as it is.
    - A normalisation after the last block takes the growth out of the output: with any normalisation in the model, and where
      training works, the finding is no more than an aside, unless training blew up or stands still.

    It is a symptom: a missing normalisation or initial weights that are too large bring it about.

    ## What to do

    Normalise the input of each branch, or scale the last layer of each branch by 1 / sqrt(number of blocks).

    ## Known false alarms

    Nets whose blocks widen in stages, and sum over ever more inputs.

    ## References

    S. De and S. Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function", 2020. A. Brock, S. De, S.
    Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", 2021.
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("fact.wiring", "activation.rms")

    least_slope: float = 0.1  # decades a block
    least_total: float = 1.0  # decades over all blocks
    least_blocks: int = LEAST_BLOCKS  # residual blocks

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        blocks = list(timeline.blocks)
        if not begins_at_zero(timeline) or not is_residual(timeline) or len(blocks) < self.least_blocks:
            return
        slope = theil_sen(decades(timeline.column("activation.rms")[0][blocks]))
        total = slope * (len(blocks) - 1)
        if slope >= self.least_slope and total > self.least_total:
            yield self._hit(timeline, [timeline.schema.modules[block].path for block in blocks], slope, total)

    def _hit(self, timeline: Timeline, blocks: list[str], slope: float, total: float) -> Hit:
        severity = gravity(timeline)
        if severity is Severity.WARNING and has_norm(timeline):  # too early to tell, and likely harmless
            severity = Severity.INFO
        return Hit(
            modules=tuple(blocks),
            first_step=0,
            last_step=0,
            evidence={"blocks": len(blocks), "decades_per_block": plain(slope), "decades": plain(total)},
            message=(
                f"At step 0 the residual stream grows by a factor {10**slope:.3g} a block, {10 ** min(total, 300.0):.3g} over "
                f"{len(blocks)} blocks."
            ),
            remedy=_remedy(timeline, blocks),
            severity=severity,
            strength=1.0,
        )


def _remedy(timeline: Timeline, blocks: list[str]) -> Remedy:
    """Scale the last layer of each branch, which is that of its block in execution order."""
    last = {block: x.module.path for block in blocks for x in timeline.layers if x.module.path.startswith(f"{block}.")}
    scale = len(blocks) ** -0.5
    text = f"Normalise what each branch takes in, or scale the last layer of each of the {len(blocks)} branches by {scale:.3g}."
    if not last:
        return Remedy(text)
    return Remedy(
        text,
        f"with torch.no_grad():  # directly after the model is made\n    for name in {list(last.values())!r}:\n"
        f"        model.get_submodule(name).weight.mul_({scale:.3g})  # 1 / sqrt({len(blocks)})",
    )
