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
from gradscope.trends import median_of
from gradscope.trends import spike_scores

SHORT_MEMORY = 0.95  # the beta2 of the remedy; where it is as short already, the gradient is clipped


@final
@dataclass(frozen=True)
class _Event:
    """A gradient that leapt away from the second moment, and the spike that followed."""

    row: int  # the sampled step that shows the ratio
    leap: int  # the step of the leap
    spike: int  # index of the loss


@final
@dataclass(frozen=True, eq=False)
class _Scores:
    """Robust scores of what may have leapt."""

    losses: npt.NDArray[np.float64]
    norms: npt.NDArray[np.float64]  # of the gradient, at each step
    inputs: npt.NDArray[np.float64]  # the largest element, at each sampled step; [steps, inputs]

    @staticmethod
    def of(timeline: Timeline) -> _Scores:
        inputs = timeline.column("input.absmax")
        return _Scores(
            losses=spike_scores(timeline.loss),
            norms=spike_scores(timeline.pulse("gradient_norm")),
            inputs=np.array([spike_scores(column) for column in inputs.T]).reshape(inputs.shape[::-1]).T,
        )


@final
@dataclass(frozen=True)
class AdamSecondMomentLag(Rule):
    """Adam's second moment has fallen behind the gradients: steps come out several times too long, and the loss spikes.

    ## What it does

    Compares each gradient with the second moment that Adam divides it by: the root of the mean of g² / v, where v is the
    bias-corrected moment before the step. It speaks where that exceeds 5 for a tensor of 1,000 elements or more, after step
    20, and the loss spikes (robust score above 4) within the eight steps after the gradient leapt. The ratio is not taken at
    each step; the gradient's norm is: where it leapt (the same score) up to seven steps before, that was the step, and so is
    one from which on the loss counts several times as much.

    ## Why it is bad

    v remembers 1 / (1 - beta2) steps, 1,000 by default. When gradients have been small for a while and then grow, v says that
    they are still small. With a beta2 of 0.999 the first step is three times too long, and where the gradients then agree,
    the tenth one six times. A few such steps can undo hundreds.

    ## How it is told apart

    - A corrupted batch makes the loss jump in the step of the large gradient, before the update; here that loss is ordinary,
      and the jump comes after the step. Where the input leaps in the same step, this rule is silent.
    - In the first 20 steps v knows too little; rows of an embedding that a batch seldom visits, and other tensors with mostly
      zero gradients, have a v that means nothing: neither is judged.
    - A loss that spikes brings large gradients with it, and a large ratio after it, whatever made it spike. So it is the step
      at which the gradient leapt whose loss has to be ordinary.
    - A ratio alone proves nothing: of 26 healthy small trainings the largest after step 20 was 3.5, and 10 came above the
      2.3 that was published as a bound; it takes a loss that spikes after it.

    ## What to do

    Lower beta2 to 0.95, which is usual for transformers: then no step is more than 1.1 times the rate long. 0.99 is not
    enough: where a limit on the gradient was lifted, the loss of an MLP and of a residual net leapt to 14 to 63 times what it
    was (15 runs), as with 0.999 to 9 to 67 times; with 0.95 to 3 to 19 times. Clipping each step by max(1, ratio) does the
    same, and so do a longer warm-up and a clipped gradient in part.

    ## Known false alarms

    Reinforcement learning, where gradients and losses jump together. Where training works all the same, and the loss was not
    half as high again in the 20 steps after the spike, or where training has converged, the finding is no more than an aside;
    players against one another, whose gradients and losses leap by design (16.9 times in the generator of a healthy GAN), are
    not judged.

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
    harm_steps: int = 20  # before and after, whose losses are compared
    harm: float = 1.5  # times the median loss before

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        ratio = np.where(self._judged(timeline), timeline.column("update.second_moment_ratio"), np.nan)
        ratio[timeline.steps < self.first_step] = np.nan
        with np.errstate(invalid="ignore"):
            long = (ratio > self.least_ratio) & np.isfinite(ratio)
        rows = [int(row) for row in np.flatnonzero(long.any(axis=1))]
        if not rows or timeline.several_objectives:
            return
        scores = _Scores.of(timeline)
        found = [event for row in rows if (event := self._event(timeline, scores, row)) is not None]
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

    def _event(self, timeline: Timeline, scores: _Scores, row: int) -> _Event | None:
        """The spike that came soon after a gradient leapt, where the loss had not risen by then and the input did not leap."""
        leap = self._leap(timeline, scores, int(timeline.steps[row]))
        since = timeline.loss_steps - leap
        after = np.flatnonzero((since > 0) & (since <= self.within) & (scores.losses > self.spike))
        too_late = timeline.onset is not None and leap > timeline.onset
        at_once = (scores.losses[since == 0] > self.spike).any()
        inputs = scores.inputs[: row + 1][timeline.steps[: row + 1] >= leap]
        if too_late or at_once or not len(after) or (inputs > self.input_leap).any():
            return None
        return _Event(row, leap, int(after[0]))

    def _leap(self, timeline: Timeline, scores: _Scores, step: int) -> int:
        """The step at which the gradient leapt, where that was shortly before the sampled one, else that one."""
        weighed = [since for since, _ in timeline.reweighed if step - self.within < since <= step]
        if weighed:
            return weighed[-1]
        steps = timeline.pulse("step")
        near = (steps > step - self.within) & (steps <= step) & (scores.norms > self.spike)
        return int(steps[near][0]) if near.any() else step

    def _hit(self, timeline: Timeline, ratio: npt.NDArray[np.float32], found: list[_Event]) -> Hit:
        clearest = max(found, key=lambda event: float(np.nanmax(ratio[event.row])))
        row, place = clearest.row, clearest.spike
        sites = np.flatnonzero(ratio[row] > self.least_ratio)
        worst = int(sites[np.argmax(ratio[row, sites])])
        names = [timeline.schema.parameters[site].path for site in sites]
        tensor, step = timeline.schema.parameters[worst].path, int(timeline.steps[row])
        spiked, quiet = int(timeline.loss_steps[place]), _quiet_steps(timeline, ratio[:, worst], row)
        return Hit(
            modules=owners(timeline, names),
            first_step=found[0].leap,
            last_step=int(timeline.loss_steps[found[-1].spike]),
            evidence={
                "ratio": plain(float(ratio[row, worst])),
                "tensor": tensor,
                "step": step,
                "leap_step": clearest.leap,
                "loss": plain(float(timeline.loss[place])),
                "spike_step": spiked,
                "quiet_steps": quiet,
                "events": len({event.leap for event in found}),
            },
            message=(
                f"The gradient leapt at step {clearest.leap}; that of {named(names)} was {ratio[row, worst]:.3g} times what "
                f"Adam's second moment says at step {step}, where 3.5 is the most that healthy trainings show, and at step "
                f"{spiked} the loss spiked to {timeline.loss[place]:.3g}."
            ),
            remedy=_remedy(timeline, tensor),
            severity=self._severity(timeline, [event.leap for event in found]),
            strength=3.0,
        )

    def _severity(self, timeline: Timeline, leaps: list[int]) -> Severity:
        onset = timeline.onset
        if onset is not None and any(leap <= onset <= leap + self.blow_up_steps for leap in leaps):
            return Severity.CRITICAL
        if timeline.converged:
            return Severity.INFO
        harmed = any(self._harmed(timeline, leap) for leap in leaps)
        return Severity.WARNING if harmed or not works(timeline) else Severity.INFO

    def _harmed(self, timeline: Timeline, leap: int) -> bool:
        """Whether the loss was worse for some time after the spike, and not for a step or two."""
        since = timeline.loss_steps - leap
        before = median_of(timeline.loss[(since < 0) & (since >= -self.harm_steps)])
        after = timeline.loss[(since > 0) & (since <= self.harm_steps)]
        return len(after) >= self.harm_steps // 2 and bool(median_of(after) > before + (self.harm - 1) * abs(before))


def _quiet_steps(timeline: Timeline, ratio: npt.NDArray[np.float32], row: int) -> int:
    """Steps since the last sampled one at which the gradient was as large as the second moment says."""
    with np.errstate(invalid="ignore"):
        usual = np.flatnonzero(ratio[:row] >= 1)
    known = np.flatnonzero(np.isfinite(ratio[:row]))
    since = usual[-1] if len(usual) else (known[0] if len(known) else row)
    return int(timeline.steps[row] - timeline.steps[since])


def _remedy(timeline: Timeline, tensor: str) -> Remedy:
    optimizer = timeline.optimized.get(tensor)
    beta2 = optimizer.settings.get("beta2", 0.999) if optimizer else 0.999
    # k steps after the gradients have grown for good, and all one way, a step is (1 - beta1^k) / sqrt(1 - beta2^k) rates long:
    # at a beta1 of 0.9 up to 21 of them with a beta2 of 0.9999, 6.6 with 0.999, 2.1 with 0.99, and 1.1 with 0.95.
    if beta2 > SHORT_MEMORY:
        return Remedy(
            f"Lower beta2 from {beta2:g} to {SHORT_MEMORY:g}, so that the second moment follows within "
            f"{1 / (1 - SHORT_MEMORY):.0f} steps.",
            "for group in optimizer.param_groups:\n"
            f'    group["betas"] = (group["betas"][0], {SHORT_MEMORY:g})  # was {beta2:g}',
        )
    norm = f"{clipping_norm(timeline):g}"
    return Remedy(
        f"Clip the gradient at {norm}, the 90th percentile of the last 200 steps: beta2 is short already.",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={norm})  # between backward() and optimizer.step()",
    )
