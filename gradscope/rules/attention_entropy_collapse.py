"""Attention that has come to look at a single key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import named
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class AttentionEntropyCollapse(Rule):
    """An attention gives nearly all its weight to one key, for most queries and over many steps.

    ## What it does

    Looks at the mean entropy of the attention weights, over the logarithm of the number of keys: 1 where all keys weigh the
    same, 0 where one has all. Only rows with eight keys or more count, of a few heads. It speaks where it is below 0.1 in
    the last three readings or more, over 100 steps or more.

    ## Why it is bad

    A softmax that is sure passes no gradient to queries and keys, so the attention stays as it is; and the loss tends to
    become unstable where it falls off fast.

    ## How it is told apart

    - Single heads that attend to the token before, or to one match, are healthy: it is the mean over the attention's heads.
    - Where training works, or has converged, the finding is for information. Queries and keys eight times too large had an
      entropy of 0.08 from the start, and trained as well as others.
    - It is a symptom: `attention-logit-growth` or a learning rate that is too high stands behind it.

    Healthy small trainings had 0.78 to 0.88; faults had 0.08 and 0.09.

    ## What to do

    Warm the learning rate up over the first hundreds of steps, to a lower peak, and normalise queries and keys before their
    product (QK-norm: a LayerNorm or RMSNorm over each head).

    ## Known false alarms

    Attention that looks up single entries by design.

    ## References

    S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023.
    """

    family: ClassVar[str] = "transformer"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("attention.entropy",)
    least_steps: ClassVar[int] = 100

    least_entropy: float = 0.1  # over the logarithm of the number of keys
    readings: int = 3  # the last ones, all of which are that low
    lasting_steps: int = 100  # that they span

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        entropy = timeline.column("attention.entropy").astype(np.float64)
        since: dict[int, int] = {}  # site -> the first step of those up to the last at which it was low
        for site in range(entropy.shape[1]):
            rows = np.flatnonzero(np.isfinite(entropy[:, site]))
            high = np.flatnonzero(~(entropy[rows, site] < self.least_entropy))
            low = rows[high[-1] + 1 :] if len(high) else rows
            if len(low) >= self.readings and timeline.steps[low[-1]] - timeline.steps[low[0]] >= self.lasting_steps - 1:
                since[site] = int(timeline.steps[low[0]])
        if since:
            yield self._hit(timeline, entropy, since)

    def _hit(self, timeline: Timeline, entropy: np.ndarray, since: dict[int, int]) -> Hit:
        last = {site: int(np.flatnonzero(np.isfinite(entropy[:, site]))[-1]) for site in since}
        worst = min(since, key=lambda site: float(entropy[last[site], site]))
        value = float(entropy[last[worst], worst])
        names = tuple(dict.fromkeys(timeline.schema.attentions[site].path for site in since))
        of_all = f"{len(since)} of {len(timeline.schema.attentions)} attentions"
        return Hit(
            modules=names,
            first_step=min(since.values()),
            last_step=int(timeline.steps[max(last.values())]),
            evidence={"entropy": plain(value), "healthy_entropy": 0.8, "attentions": len(since)},
            message=(
                f"{of_all} ({named(names)}) give nearly all weight to one key since step {min(since.values())}: the entropy of "
                f"the weights is {value:.2g} of what it can be, where healthy trainings have 0.8."
            ),
            remedy=Remedy("Lower the learning rate, or warm it up, and normalise queries and keys before their product."),
            severity=Severity.INFO if works(timeline) or timeline.converged else Severity.WARNING,
            strength=1.0,
        )
