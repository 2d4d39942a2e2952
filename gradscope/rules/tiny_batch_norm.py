"""Batch norms that see too few values to know their mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.evidence import PATIENCE
from gradscope.evidence import batch_norms
from gradscope.evidence import named
from gradscope.evidence import overshot
from gradscope.evidence import run_length
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

ENOUGH = 32  # values of a channel that a larger batch is to give


@final
@dataclass(frozen=True)
class TinyBatchNorm(Rule):
    """A batch norm takes its mean and variance over so few values that they are mostly chance.

    ## What it does

    Counts over how many values a batch norm in training mode takes the statistics of a channel: the batch size times the
    positions. It names those with fewer than 16. That is a warning where training shows it after 100 steps: with four
    values or fewer, where the loss is still above a quarter of the best constant prediction's; with more, where the training
    does not work and makes no progress either.

    ## Why it is bad

    The mean of n values is off by 1/sqrt(n) of their spread, and each sample is normalised by that of its batch: noise as
    large as the signal. Over two values all that is left of a number is which of the two is larger. The running statistics
    of the evaluation mode differ from what training saw. A convolutional net that learned to 0.2 % of its first loss with a
    batch of 64 came to 52 % with a batch of 2.

    ## How it is told apart

    - Convolutions average over positions too: a batch of 2 with 8 x 8 positions has 128 values, and is not meant.
    - A batch norm in evaluation mode takes no statistics.
    - Noise slows a training down and does not blow it up: where it blows up, or the loss jumps at the start, the finding is
      for information. A rate that only looks too high because two values normalise each other is explained by this.
    - A training that learns well all the same is left with a finding for information.

    ## What to do

    Use `GroupNorm` or `LayerNorm`, which do not look at the batch; or a larger batch, which is all that helps where the
    channels of a sample lie close together: over three globally pooled images GroupNorm brought the loss from between 1.8
    and 2.2 to between 1.1 and 1.6, no normalisation to between 1.3 and 1.5, and a batch of 64 to 0.1 (three seeds).
    Accumulating gradients does not help, for the statistics are still those of a micro-batch; across devices
    `SyncBatchNorm` does.

    ## Known false alarms

    A task so hard that nothing is learned in 100 steps, with a batch norm over fewer than 16 values that is not to blame.

    ## References

    Y. Wu and K. He, "Group Normalization", 2018, figure 1. S. Ioffe, "Batch Renormalization", 2017.
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ()
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "oscillating-loss", "gradient-spikes", "exploding-gradients", "loss-plateau", "dead-units",
        "labels-unrelated",
    )  # fmt: skip

    least_values: int = 16  # of a channel
    few_values: int = 4  # of which hardly anything is left
    well: float = 0.25  # of the best constant prediction's loss, below which a training learns well

    def obstacle(self, timeline: Timeline) -> str | None:
        if any(norm.samples is not None for norm in batch_norms(timeline)):
            return Rule.obstacle(self, timeline)
        return "no batch norm was seen in training mode"

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        counts = {norm.path: norm.samples for norm in batch_norms(timeline) if norm.samples is not None}
        tiny = {path: count for path, count in counts.items() if count < self.least_values}
        if tiny and len(timeline.frames):
            yield self._hit(timeline, tiny)

    def _hit(self, timeline: Timeline, tiny: dict[str, int]) -> Hit:
        first, last = run_length(timeline)
        fewest = min(tiny.values())
        worst = [path for path, count in tiny.items() if count == fewest]
        return Hit(
            modules=tuple(tiny),
            first_step=first,
            last_step=last,
            evidence={
                "values": fewest,
                "least_values": self.least_values,
                "batch_norms": len(tiny),
                "loss": timeline.last_loss,
            },
            message=(
                f"{named(worst)} normalise{'s' * (len(worst) == 1)} by the mean and variance of {fewest} values a channel, "
                f"which are off by {100 / max(fewest, 1) ** 0.5:.0f} % of the spread by chance."
            ),
            remedy=_remedy(timeline, [module for module in batch_norms(timeline) if module.path in tiny], fewest),
            severity=self._severity(timeline, fewest),
            strength=4.0,
        )

    def _severity(self, timeline: Timeline, fewest: int) -> Severity:
        if timeline.step_count < PATIENCE or timeline.several_objectives or timeline.onset is not None:
            return Severity.INFO
        if fewest <= self.few_values:
            return Severity.INFO if timeline.last_loss < self.well * timeline.baseline else Severity.WARNING
        fine = works(timeline) or timeline.progressing or overshot(timeline)
        return Severity.INFO if fine else Severity.WARNING


def _larger_batch(timeline: Timeline, fewest: int) -> Remedy:
    """A batch of which each channel gets 32 values: its mean is then off by 18 % of the spread, 1 / sqrt(32)."""
    shape = next((loss.input_shape for loss in timeline.info.wiring.losses), None) if timeline.info.wiring else None
    size = shape[0] if shape else fewest
    better = size * math.ceil(ENOUGH / max(fewest, 1))
    return Remedy(
        f"Use a batch of {better} or more in place of {size}: of pooled features GroupNorm makes up for a part only.",
        f"loader = torch.utils.data.DataLoader(loader.dataset, batch_size={better}, shuffle=True)  # was {size}",
    )


def _pooled(timeline: Timeline, norms: list[ModuleInfo]) -> bool:
    """Whether these are batch norms over what convolutions put out, pooled."""
    return all(norm.type == "BatchNorm1d" for norm in norms) and any(x.role == "conv" for x in timeline.info.modules)


def _remedy(timeline: Timeline, norms: list[ModuleInfo], fewest: int) -> Remedy:
    if _pooled(timeline, norms):
        return _larger_batch(timeline, fewest)
    groups = "1" if all(norm.type == "BatchNorm1d" for norm in norms) else "math.gcd(8, features)"
    return Remedy(
        "Replace these batch norms by GroupNorm, which does not look at the batch, or use a larger batch.",
        "import math\n\n"
        f"for name in {[norm.path for norm in norms]!r}:  # before the optimizer is made\n"
        "    features = model.get_submodule(name).num_features\n"
        f"    model.set_submodule(name, torch.nn.GroupNorm({groups}, features))",
    )
