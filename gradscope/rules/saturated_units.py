"""Tanh and sigmoid units that are driven to their flat ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import last_site
from gradscope.depth import plain
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting

BOUNDED = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Hardtanh": "hardtanh", "Hardsigmoid": "hardsigmoid", "Softsign": "softsign"}
GAINS = {"tanh": 5 / 3}  # torch.nn.init.calculate_gain


@final
@dataclass(frozen=True)
class SaturatedUnits(Rule):
    """Most units of a tanh or sigmoid layer sit at the flat ends of the curve, where the gradient is nearly zero.

    ## What it does

    Measures the share of elements at which the activation's derivative is under 5 % of its largest (|x| above 2.18 for
    tanh, 4.36 for sigmoid). It speaks where that is more than half, in five of five sampled steps.

    ## Why it is bad

    A saturated unit passes a twentieth of the gradient or less, and layers multiply: what stands before learns very
    slowly.

    ## How it is told apart

    - Gates (in LSTM, GRU and attention) saturate because that is their function; recurrent modules are not judged.
    - The model's output may saturate when it is sure of its answer; the last layer and what follows it are not judged.
    - A training that has converged is left alone, and where training works the finding is no more than an aside.
    - It is a symptom: too large initial weights or inputs that are not normalised show it at step 0, a learning rate that
      is too high later.

    Of 26 healthy small trainings the largest share was 3 %; a tanh net whose weights have a standard deviation of 1
    showed 84 %.

    ## What to do

    Make the layer's input smaller: initialise by Xavier's rule, standardise the input, or put a normalisation before it.

    ## Known false alarms

    Gates that a model builds from sigmoid modules itself cannot be told from other layers.

    ## References

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("activation.saturated",)
    least_steps: ClassVar[int] = 5

    most_share: float = 0.5  # of the elements
    window: int = 5  # sampled steps, all of which must show it

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        sites = self._sites(timeline)
        if not sites or timeline.converged:
            return
        shares = timeline.column("activation.saturated")[:, sites]
        held = lasting((shares > self.most_share) & (shares <= 1), least=self.window, window=self.window)
        places = np.flatnonzero(held.any(axis=0))
        if len(places):
            yield self._hit(timeline, [sites[place] for place in places], held[:, places])

    def _sites(self, timeline: Timeline) -> list[int]:
        """Layers that a bounded activation follows, and such activations that follow no layer; all before the last layer."""
        layers = [x.site for x in timeline.layers if x.module.activation in BOUNDED.values()]
        alone = [
            index
            for index, site in enumerate(timeline.schema.modules)
            if (module := timeline.modules.get(site.path)) and module.type in BOUNDED and index - 1 not in layers
        ]
        return sorted(site for site in [*layers, *alone] if site < last_site(timeline))

    def _hit(self, timeline: Timeline, sites: list[int], held: np.ndarray) -> Hit:
        names = tuple(dict.fromkeys(timeline.schema.modules[site].path for site in sites))
        rows = np.flatnonzero(held.any(axis=1))
        first, last = int(rows[0]) - self.window + 1, int(rows[-1])
        shares = timeline.column("activation.saturated")[last, sites]
        worst = float(np.max(shares[np.isfinite(shares)], initial=0.0))
        return Hit(
            modules=names,
            first_step=int(timeline.steps[first]),
            last_step=int(timeline.steps[last]),
            evidence={"share": plain(worst), "layers": len(names)},
            message=(
                f"{100 * worst:.0f} % of the activations of {named(names)} are saturated at step {timeline.steps[last]}, "
                "where 3 % is the most that healthy trainings show."
            ),
            remedy=_remedy(timeline, names),
            severity=gravity(timeline),
            strength=1.0,
        )


def _remedy(timeline: Timeline, names: tuple[str, ...]) -> Remedy:
    layers = {x.module.path: x.module.activation for x in timeline.layers if x.module.path in names}
    text = f"Make what goes into {named(names)} smaller: Xavier's initialisation, a standardised input, or a LayerNorm before."
    if not layers:
        return Remedy(text, None)
    gain = GAINS.get(next(iter(layers.values())) or "", 1.0)
    return Remedy(
        text,
        f"for name in {list(layers)!r}:\n    torch.nn.init.xavier_normal_(model.get_submodule(name).weight, gain={gain:.4g})",
    )
