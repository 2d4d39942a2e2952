"""Attention logits that outgrow the softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import before_onset
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class AttentionLogitGrowth(Rule):
    """The logits of an attention, q·k/√d, grow so large that its softmax picks one key and passes no gradient.

    ## What it does

    Looks at the largest logit of a few heads and queries, masked keys left out, on the steps whose graph is read. It speaks
    where an attention had logits above 50 in its last two readings, before the training blew up if it did. They count as
    growing where the last reading is twice the smallest before it.

    ## Why it is bad

    A softmax over logits that lie 50 apart is 1 at one key and 0 at all others to the last bit. Its gradient is zero, so
    nothing brings the logits down again, while the weights of queries and keys can push each other up: each one's gradient
    is as large as the other. Large models have diverged with logits of 1,000 to 10,000.

    ## How it is told apart

    - Where steps are too long all weights grow at once, within a few steps; `lr-too-high` then explains this.
    - Heads that attend sharply do so with logits of 10 to 30.
    - Where training works, logits above 50 are for information; it takes 100 and growth to make them a warning.

    Healthy small trainings had logits of 5.7 to 7.8 at most; faults had 110 to 190. Queries and keys initialised eight times
    too large started above 100, and trained.

    ## What to do

    Normalise queries and keys before their product (QK-norm), or scale their weights down, and lower the learning rate.

    ## Known false alarms

    Attention over few, well separated keys may be sure of itself by design.

    ## References

    M. Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", 2023, section 2 (QK-norm). M. Wortsman et al.,
    "Small-scale proxies for large-scale Transformer training instabilities", 2023.
    """

    family: ClassVar[str] = "transformer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("attention.logit_max",)
    least_steps: ClassVar[int] = 3
    explains: ClassVar[tuple[str, ...]] = (
        "attention-entropy-collapse", "gradient-spikes", "exploding-gradients", "vanishing-gradients", "loss-divergence",
        "loss-plateau", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss",
    )  # fmt: skip

    large: float = 50.0  # logit; QK-clip and soft caps stand at 50 to 100
    alarming: float = 100.0  # above which a training that works gets a warning, where they grow
    growing: float = 2.0  # times the smallest reading
    readings: int = 2  # the last ones

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        logits = timeline.column("attention.logit_max")[before_onset(timeline)].astype(np.float64)
        steps = timeline.steps[before_onset(timeline)]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for site in range(logits.shape[1]):
            rows = np.flatnonzero(np.isfinite(logits[:, site]))
            values = logits[rows, site]
            if len(rows) >= self.readings and (values[-self.readings :] > self.large).all():
                found[site] = (steps[rows], values)
        if found:
            yield self._hit(timeline, found)

    def _hit(self, timeline: Timeline, found: dict[int, tuple[np.ndarray, np.ndarray]]) -> Hit:
        names = [timeline.schema.attentions[site].path for site in found]
        worst = max(found, key=lambda site: float(found[site][1][-1]))
        steps, values = found[worst]
        grows = any(v[-1] >= self.growing * v.min() for _, v in found.values())
        first = min(int(s[np.flatnonzero(v > self.large)[0]]) for s, v in found.values())
        name = timeline.schema.attentions[worst].name
        return Hit(
            modules=tuple(dict.fromkeys(names)),
            first_step=first,
            last_step=int(steps[-1]),
            evidence={
                "logit": plain(values[-1]),
                "first_logit": plain(values[0]),
                "grows": bool(grows),
                "attentions": len(names),
            },
            message=(
                f"The largest attention logit at {name} is {values[-1]:.3g} at step {steps[-1]}, after {values[0]:.3g} at step "
                f"{steps[0]}; healthy small trainings stay below 8, and above {self.large:g} the softmax picks a single key."
            ),
            remedy=_remedy(timeline, {timeline.schema.attentions[s].path: float(v[-1]) for s, (_, v) in found.items()}),
            severity=self._severity(timeline, float(values[-1]), grows),
            strength=3.0 if grows else 1.0,
        )

    def _severity(self, timeline: Timeline, logit: float, grows: bool) -> Severity:
        if not works(timeline) and timeline.onset is not None and grows:
            return Severity.CRITICAL
        if works(timeline) or timeline.converged:
            return Severity.WARNING if logit > self.alarming and grows and not timeline.converged else Severity.INFO
        return Severity.WARNING


def _remedy(timeline: Timeline, logits: dict[str, float]) -> Remedy:
    """Scale queries and keys by sqrt(50 / logit) each, or queries alone by 50 / logit, where their weights are known."""
    scaled = [rows for path, logit in logits.items() for rows in _scaled(timeline, path, AttentionLogitGrowth.large / logit)]
    table = "".join(f"    ({name!r}, {rows}, {factor:.3g}),\n" for name, rows, factor in scaled)
    code = (
        f"scaled = [  # name, rows of queries and keys, factor\n{table}]\nwith torch.no_grad():\n"
        "    for name, rows, factor in scaled:\n        model.get_parameter(name)[:rows].mul_(factor)"
    )
    return Remedy(
        "Normalise queries and keys before their product (a LayerNorm or RMSNorm over each head), or scale their weights down.",
        code if scaled else None,
    )


def _scaled(timeline: Timeline, path: str, factor: float) -> Iterator[tuple[str, int, float]]:
    """The parameters that make the queries: their names, how many rows make queries and keys, and by what to scale these."""
    module = timeline.modules.get(path)
    own = [timeline.parameters[name] for name in module.parameters if name in timeline.parameters] if module else []
    weight = next((p for p in own if len(p.shape) == 2), None)
    if weight is None:
        return
    rows, columns = weight.shape
    joined = rows == 3 * columns  # queries, keys and values in one projection
    for parameter in own:
        if parameter.shape[0] == rows:
            yield parameter.name, 2 * columns if joined else rows, math.sqrt(factor) if joined else factor
