"""Attention logits that outgrow the softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import before_onset
from gradscope.evidence import stalled
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import ParameterInfo
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
    where an attention had logits above 50 in its last two readings, or in the last one above 100 and ten times all before,
    before the training blew up if it did. They count as
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
    too large started above 100, and trained. Where q·k was multiplied by what it was to be divided by, they stood at 187 to
    3,490 from the first step on, and the loss at 0.97 of a constant's after 300: where all readings are above 100 and training
    stands still after 100 steps, they need not grow to be sure.

    ## What to do

    Normalise queries and keys before their product (QK-norm), over their whole width as OLMo 2 does, from the start of a
    run; or lower the rate of their weights. Where logits stand above 100 from the first reading on, look at what q·k is
    divided by: with a temperature of 0.01 in place of √32, QK-norm alone left a loss of 1.56 where √32 has 0.003. A GPT
    whose queries and keys learned at fifty times the rate of the rest came to a loss of 2.55 to 2.69, with QK-norm to 2.07
    to 2.30, with the rate of the rest to 1.97 to 2.06 (three seeds).

    ## Known false alarms

    Attention over few, well separated keys may be sure of itself by design.

    ## References

    M. Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", 2023, section 2 (QK-norm). M. Wortsman et al.,
    "Small-scale proxies for large-scale Transformer training instabilities", 2023. OLMo team, "2 OLMo 2 Furious", 2024,
    section 3 (QK-norm over the whole width).
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
    soaring: float = 10.0  # times the largest reading before, from which a single one counts that is above that
    readings: int = 2  # the last ones

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        logits = timeline.column("attention.logit_max")[before_onset(timeline)].astype(np.float64)
        steps = timeline.steps[before_onset(timeline)]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for site in range(logits.shape[1]):
            rows = np.flatnonzero(np.isfinite(logits[:, site]))
            values = logits[rows, site]
            if len(rows) >= self.readings and ((values[-self.readings :] > self.large).all() or self._soared(values)):
                found[site] = (steps[rows], values)
        if found:
            yield self._hit(timeline, found)

    def _soared(self, values: np.ndarray) -> bool:
        """Whether the last reading alone says it: far above what is large, and many times all before it."""
        return bool(values[-1] > self.alarming and values[-1] > self.soaring * values[:-1].max())

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
            remedy=_SCALED if values.min() > self.alarming else _remedy(timeline, list(dict.fromkeys(names))),
            severity=self._severity(timeline, float(values[-1]), grows),
            strength=3.0 if grows or self._stuck(timeline, values) else 1.0,
        )

    def _stuck(self, timeline: Timeline, values: np.ndarray) -> bool:
        """Whether the logits were alarming in all readings, and training has led nowhere meanwhile."""
        return bool(values.min() > self.alarming) and stalled(timeline) and not works(timeline)

    def _severity(self, timeline: Timeline, logit: float, grows: bool) -> Severity:
        if not works(timeline) and timeline.onset is not None and grows:
            return Severity.CRITICAL
        if works(timeline) or timeline.converged:
            return Severity.WARNING if logit > self.alarming and grows and not timeline.converged else Severity.INFO
        return Severity.WARNING


_SCALED = Remedy(
    "Divide the products of queries and keys by √d, the root of a head's width, and by nothing smaller: the logits were that "
    "large before any step. Where they are, start with smaller weights for queries and keys, or normalise both (QK-norm)."
)


def _remedy(timeline: Timeline, paths: list[str]) -> Remedy:
    """QK-norm, where the projections are known: an RMSNorm over all queries of a token, and one over all its keys.

    Normalised over their width w, their norms are sqrt(w), so |q·k|/√d <= w/√d in each head, whatever the weights grow to.
    """
    text = (
        "Start anew with normalised queries and keys (QK-norm): it bounds their product, which neither a scaling of the "
        "weights nor anything else in the midst of a run does for long; or lower the rate of their weights."
    )
    joined = {path: width for path in paths if (width := _joined_width(timeline, path))}
    apart = {name: rows for path in paths for name, rows in _apart(timeline, path)}
    if joined:
        return Remedy(text, _QK_NORM.format(table=joined))
    return Remedy(text, _NORM_EACH.format(table=apart) if apart else None)


_QK_NORM = """\
class NormalisedQK(torch.nn.Module):  # around a projection to queries, keys and values, in this order
    def __init__(self, projection, width):
        super().__init__()
        self.projection, self.q, self.k = projection, torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)

    def forward(self, x):
        q, k, v = self.projection(x).chunk(3, dim=-1)
        return torch.cat([self.q(q), self.k(k), v], dim=-1)

for name, width in {table}.items():  # before the optimizer is made
    model.set_submodule(name, NormalisedQK(model.get_submodule(name), width))"""
_NORM_EACH = """\
for name, width in {table}.items():  # before the optimizer is made
    model.set_submodule(name, torch.nn.Sequential(model.get_submodule(name), torch.nn.RMSNorm(width)))"""
_KEYS = {"q": "k", "query": "key", "wq": "wk", "q_proj": "k_proj", "to_q": "to_k", "q_lin": "k_lin", "query_proj": "key_proj"}


def _projection(timeline: Timeline, path: str) -> ParameterInfo | None:
    """The weight of a linear layer; None where ``path`` is none, as torch's own attention is none."""
    module = timeline.modules.get(path)
    own = [timeline.parameters[name] for name in module.parameters if name in timeline.parameters] if module else []
    return next((p for p in own if len(p.shape) == 2), None) if module and module.role == "linear" else None


def _joined_width(timeline: Timeline, path: str) -> int | None:
    """How wide the queries are of a projection that makes queries, keys and values; None for any other."""
    weight = _projection(timeline, path)
    return weight.shape[1] if weight is not None and weight.shape[0] == 3 * weight.shape[1] else None


def _apart(timeline: Timeline, path: str) -> Iterator[tuple[str, int]]:
    """The projections of the queries and, by its name beside it, of the keys, with their widths; none where one is missing."""
    parent, dot, name = path.rpartition(".")
    pair = (path, f"{parent}{dot}{_KEYS[name]}") if name in _KEYS else ()
    weights = [_projection(timeline, module) for module in pair]
    if all(weight is not None for weight in weights):
        yield from ((module, weight.shape[0]) for module, weight in zip(pair, weights, strict=True) if weight is not None)
