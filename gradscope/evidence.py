"""What several rules say or ask in the same way: severities, names in a sentence, and values for remedies."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradscope.records import Severity
from gradscope.timeline import Timeline

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

PATIENCE = 100  # steps after which a training that does not progress is called wasted
WARM_UP_LOOK = 10  # steps that are looked back on to see a learning rate rise


def works(timeline: Timeline) -> bool:
    """Whether training demonstrably works: no blow-up, and a loss that fell, below the best constant prediction's if known."""
    if timeline.onset is not None:
        return False
    losses = timeline.info.wiring.losses if timeline.info.wiring else ()
    known = losses[0].baseline if len(losses) == 1 else None
    if known and timeline.last_loss < 0.5 * known:
        return True
    return timeline.learning and not (known and timeline.last_loss > 0.95 * known)


def overshot(timeline: Timeline) -> bool:
    """Whether the loss jumped by more than twice its start in the first ten steps, and training does not work since."""
    early = timeline.loss[:11]
    jumped = len(early) > 0 and not (early <= early[0] + 2 * abs(early[0])).all()
    return jumped and not timeline.several_objectives and not works(timeline)


def gravity(timeline: Timeline) -> Severity:
    """How grave a defect in the structure is: it wastes the training, it is likely to, or training works all the same."""
    if timeline.onset is not None or overshot(timeline):
        return Severity.CRITICAL
    if works(timeline):
        return Severity.INFO
    stalled = timeline.step_count >= PATIENCE and not timeline.progressing and not timeline.several_objectives
    return Severity.CRITICAL if stalled else Severity.WARNING


def unless_works(timeline: Timeline, least: Severity) -> Severity:
    """Critical where the training as it stands is wasted, ``least`` where it works all the same."""
    return least if works(timeline) else Severity.CRITICAL


def named(names: Sequence[str], *, most: int = 3) -> str:
    """Names as part of a sentence: "a", "a and b", "a, b, c and 4 more"."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def owners(timeline: Timeline, parameters: Iterable[str]) -> tuple[str, ...]:
    """The modules that own these parameters, each once, in the order given."""
    known = timeline.parameters
    return tuple(dict.fromkeys(known[name].module for name in parameters if name in known))


def ever(held: Mask) -> Mask:
    """Where it held in any sampled step; [sites]."""
    return np.asarray(held.any(axis=0))


def parameter_names(timeline: Timeline, held: Mask) -> list[str]:
    """Names of the parameter sites where ``held`` is true."""
    return [site.path for site, holds in zip(timeline.schema.parameters, held, strict=True) if holds]


def run_length(timeline: Timeline) -> tuple[int, int]:
    """First and last step of a defect that was there all along."""
    return 0, max(timeline.step_count - 1, 0)


def warming_up(timeline: Timeline) -> bool:
    """Whether the learning rate still rises."""
    rates = timeline.pulse("learning_rate")
    rates = rates[np.isfinite(rates)][-WARM_UP_LOOK - 1 :]
    return bool(len(rates) > 1 and rates[-1] > 1.001 * rates[0])


def growth(series: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where a positive series began (the median of three values) and its last value; NaN where it has none."""
    known = series[np.isfinite(series) & (series > 0)]
    if not len(known):
        return float("nan"), float("nan")
    return float(np.median(known[:3]) if len(known) > 3 else known[0]), float(known[-1])


def clipping_norm(timeline: Timeline) -> float:
    """A gradient norm to clip at: the 90th percentile of the last 200 before the onset, two digits; 1 where none is known."""
    norms = timeline.pulse("gradient_norm")
    calm = timeline.pulse("step") < (np.inf if timeline.onset is None else timeline.onset)
    norms = norms[calm & np.isfinite(norms) & (norms > 0)][-200:]
    return float(f"{np.percentile(norms, 90):.2g}") if len(norms) else 1.0
