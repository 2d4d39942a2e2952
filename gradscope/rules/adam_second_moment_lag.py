"""A second moment that has fallen behind the gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import plain
from gradscope.evidence import clipping_norm
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import spike_scores

SHORT_MEMORY = 0.95  # a beta2 down to which the remedy is a shorter memory


@final
@dataclass(frozen=True)
class AdamSecondMomentLag(Rule):
    """Adam's second moment has fallen behind the gradients: steps come out several times too long, and the loss spikes.

    ## What it does

    Compares each gradient with the second moment that Adam divides it by: the root of the mean of g² / v, where v is the
    bias-corrected moment before the step. It speaks where that exceeds 5 for a tensor of 1,000 elements or more, after step
    20, and the loss spikes (robust score above 4) within the eight steps after it.

    ## Why it is bad

    v remembers 1 / (1 - beta2) steps, 1,000 by default. When gradients have been small for a while and then grow, v says that
    they are still small, and the step is as many times too long as the ratio says. One such step can undo hundreds.

    ## How it is told apart

    - A corrupted batch makes the loss jump in the step of the large gradient, before the update; here that loss is ordinary,
      and the jump comes after the step. Where the input leaps in the same step, this rule is silent.
    - In the first 20 steps v knows too little; rows of an embedding that a batch seldom visits, and other tensors with mostly
      zero gradients, have a v that means nothing: neither is judged.
    - A ratio alone proves nothing: of 26 healthy small trainings the largest after step 20 was 3.5, and 10 came above the
      2.3 that was published as a bound; it takes a loss that spikes after it.

    ## What to do

    Lower beta2 so that its memory is no longer than the quiet phase before the spike; 0.95 is usual for transformers.
    Clipping each step by max(1, ratio) does the same, and so do a longer warm-up and a clipped gradient in part.

    ## Known false alarms

    Reinforcement learning, where gradients and losses jump together. Where training works all the same the finding is no more
    than an aside; players against one another, whose gradients and losses leap by design (16.9 times in the generator of a
    healthy GAN), are not judged.

    ## References

    M. Wortsman and others, "Stable and low-precision training for large-scale vision-language models" (StableAdamW), 2023:
    loss spikes follow 1 to 8 steps after v has fallen behind. N. Shazeer and M. Stern, "Adafactor", 2018, for clipping the
    step.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.second_moment_ratio", "pulse.loss")
    least_steps: ClassVar[int] = 21
    explains: ClassVar[tuple[str, ...]] = (
        "gradient-spikes", "loss-divergence", "exploding-gradients", "oscillating-loss", "nonfinite-origin",
        "nonfinite-gradients", "nonfinite-loss", "dead-units", "saturated-units",
    )  # fmt: skip

    least_ratio: float = 5.0  # root of the mean of g²/v
    least_elements: int = 1000  # of a tensor
    first_step: int = 21  # from which v knows enough
    most_zero: float = 0.5  # of the gradient's elements, above which a tensor is sparse
    spike: float = 4.0  # robust score of the loss
    within: int = 8  # steps after the long one
    input_leap: float = 8.0  # robust score of the largest input, from which the data is at fault
    blow_up_steps: int = 50  # within which a blow-up is laid to it

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        ratio = np.where(self._judged(timeline), timeline.column("update.second_moment_ratio"), np.nan)
        ratio[timeline.steps < self.first_step] = np.nan
        with np.errstate(invalid="ignore"):
            long = (ratio > self.least_ratio) & np.isfinite(ratio)
        rows = np.flatnonzero(long.any(axis=1))
        if timeline.onset is not None:
            rows = rows[timeline.steps[rows] <= timeline.onset]
        if not len(rows) or timeline.several_objectives:
            return
        scores = spike_scores(timeline.loss)
        found = [(int(row), spike) for row in rows if (spike := self._spike_after(timeline, scores, int(row))) is not None]
        if found:
            yield self._hit(timeline, ratio, found)

    def _judged(self, timeline: Timeline) -> npt.NDArray[np.bool_]:
        """Tensors large enough and no embeddings, where most of the gradient is not zero; [steps, parameters]."""
        large = np.array([self._is_large(timeline, site.path) for site in timeline.schema.parameters], dtype=bool)
        with np.errstate(invalid="ignore"):
            return large & ~(timeline.column("weight_gradient.zero") > self.most_zero)

    def _is_large(self, timeline: Timeline, name: str) -> bool:
        known = timeline.parameters.get(name)
        if known is None or known.size < self.least_elements:
            return False
        module = timeline.modules.get(known.module)
        return module is None or module.role != "embedding"

    def _spike_after(self, timeline: Timeline, scores: npt.NDArray[np.float64], row: int) -> int | None:
        """Index of the loss that spiked soon after a step, where it had not by then and the input did not leap."""
        behind = timeline.loss_steps - timeline.steps[row]
        if (scores[behind == 0] > self.spike).any():
            return None
        after = np.flatnonzero((behind > 0) & (behind <= self.within) & (scores > self.spike))
        largest = timeline.column("input.absmax")[: row + 1]
        leapt = any(spike_scores(column)[-1] > self.input_leap for column in largest.T)
        return int(after[0]) if len(after) and not leapt else None

    def _hit(self, timeline: Timeline, ratio: npt.NDArray[np.float32], found: list[tuple[int, int]]) -> Hit:
        row, place = max(found, key=lambda pair: float(np.nanmax(ratio[pair[0]])))
        sites = np.flatnonzero(ratio[row] > self.least_ratio)
        worst = int(sites[np.argmax(ratio[row, sites])])
        names = [timeline.schema.parameters[site].path for site in sites]
        tensor, step = timeline.schema.parameters[worst].path, int(timeline.steps[row])
        spiked, quiet = int(timeline.loss_steps[place]), _quiet_steps(timeline, ratio[:, worst], row)
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[found[0][0]]),
            last_step=int(timeline.loss_steps[found[-1][1]]),
            evidence={
                "ratio": plain(float(ratio[row, worst])),
                "tensor": tensor,
                "step": step,
                "loss": plain(float(timeline.loss[place])),
                "spike_step": spiked,
                "quiet_steps": quiet,
                "events": len(found),
            },
            message=(
                f"At step {step} the gradient of {named(names)} was {ratio[row, worst]:.3g} times what Adam's second moment "
                f"says, where 3.5 is the most that healthy trainings show, and at step {spiked} the loss spiked to "
                f"{timeline.loss[place]:.3g}."
            ),
            remedy=_remedy(timeline, tensor, quiet),
            severity=self._severity(timeline, [int(timeline.steps[row]) for row, _ in found]),
            strength=3.0,
        )

    def _severity(self, timeline: Timeline, steps: list[int]) -> Severity:
        onset = timeline.onset
        if onset is not None and any(step <= onset <= step + self.blow_up_steps for step in steps):
            return Severity.CRITICAL
        return Severity.INFO if works(timeline) or timeline.converged else Severity.WARNING


def _quiet_steps(timeline: Timeline, ratio: npt.NDArray[np.float32], row: int) -> int:
    """Steps since the last sampled one at which the gradient was as large as the second moment says."""
    with np.errstate(invalid="ignore"):
        usual = np.flatnonzero(ratio[:row] >= 1)
    known = np.flatnonzero(np.isfinite(ratio[:row]))
    since = usual[-1] if len(usual) else (known[0] if len(known) else row)
    return int(timeline.steps[row] - timeline.steps[since])


def _remedy(timeline: Timeline, tensor: str, quiet: int) -> Remedy:
    optimizer = timeline.optimized.get(tensor)
    beta2 = optimizer.settings.get("beta2", 0.999) if optimizer else 0.999
    if beta2 > SHORT_MEMORY:
        better = round(min(max(1 - 1 / max(quiet, 1), SHORT_MEMORY), 0.99, 2 * beta2 - 1), 3)
        return Remedy(
            f"Lower beta2 from {beta2:g} to {better:g}, so that the second moment follows within {1 / (1 - better):.0f} steps.",
            f'for group in optimizer.param_groups:\n    group["betas"] = (group["betas"][0], {better:g})  # was {beta2:g}',
        )
    norm = f"{clipping_norm(timeline):g}"
    return Remedy(
        f"Clip the gradient at {norm}, the 90th percentile of the last 200 steps: beta2 is short already.",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={norm})  # between backward() and optimizer.step()",
    )
