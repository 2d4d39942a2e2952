"""Activations that grow from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import decades
from gradscope.depth import largest
from gradscope.depth import last_site
from gradscope.depth import plain
from gradscope.evidence import usual_rate
from gradscope.evidence import warming_up
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import row_medians

HALF = "float16"
HALF_LIMIT = 65504.0


@final
@dataclass(frozen=True)
class ActivationGrowth(Rule):
    """Activations grow from step to step and have become large, which ends in an overflow or in a softmax that is stuck.

    ## What it does

    Follows the size (rms) of each layer's output over the second half of the sampled steps. It speaks where it grows by more
    than ten times in 1,000 steps, and by half at least in what was seen, over 100 steps or more, and the largest element is
    above 1,000 (6,000 in half precision, whose numbers end at 65,504).

    ## Why it is bad

    What grows by a factor in every thousand steps overflows in the end; long before, its gradients are those of a few
    elements. In half precision the overflow is a few hundred steps away.

    ## How it is told apart

    - Activations that are large and stay as large are a matter of scale; see unnormalized-input and init-too-large.
    - Growth in the first half of a run is how weights find their size; only what goes on counts.
    - While the learning rate rises all things grow; a warm-up is left alone. What grows after a blow-up is its consequence,
      and the model's output may grow with its certainty: neither is judged.
    - Where training works, growth in single precision is no more than an aside; in half precision it is a warning.

    Of 32 healthy small trainings the fastest layer grew by 1.3 decades in 1,000 steps (transformers),
    and no layer's largest element was above 22 at the end: it takes both.

    ## What to do

    Put a normalisation where the growth begins, add weight decay on the layers named, or lower the learning rate.

    ## Known false alarms

    Regression of large numbers, whose last hidden layers have to become large.

    ## References

    M. Wortsman and others, "Small-scale proxies for large-scale Transformer training instabilities", 2023: growth is seen, and
    can be extrapolated, long before the instability.
    """

    family: ClassVar[str] = "normalisation"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("activation.rms", "activation.absmax")
    least_steps: ClassVar[int] = 100

    least_rate: float = 1.0  # decades in 1,000 steps
    least_factor: float = 1.5  # over the steps that are looked at
    least_largest: float = 1e3  # the largest element at the end
    least_largest_half: float = 6e3  # the same, in half precision
    least_frames: int = 10  # in the second half
    least_span: int = 100  # steps between the first and the last of them
    good_ratio: float = 5e-3  # update ratio at which decay and gradient balance, for the remedy

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        rows = np.flatnonzero(timeline.steps < (np.inf if timeline.onset is None else timeline.onset))
        rows = rows[len(rows) // 2 :]
        sites = self._sites(timeline)
        if len(rows) < self.least_frames or not len(sites) or warming_up(timeline) or timeline.several_objectives:
            return
        span = timeline.steps[rows[-1]] - timeline.steps[rows[0]]
        if span < self.least_span:
            return
        rates = 1000 * _slopes(decades(timeline.column("activation.rms")[np.ix_(rows, sites)]), timeline.steps[rows])
        peaks = timeline.column("activation.absmax")[np.ix_(rows[-3:], sites)]
        held = (
            (rates > self.least_rate)
            & (rates * span / 1000 > np.log10(self.least_factor))
            & self._large(timeline, sites, peaks)
        )
        if held.any():
            yield self._hit(timeline, rows, sites[held], rates[held])

    def _sites(self, timeline: Timeline) -> npt.NDArray[np.intp]:
        """All module sites before the last layer: what is the model's output is not among them."""
        return np.arange(min(last_site(timeline), len(timeline.schema.modules)), dtype=np.intp)

    def _large(self, timeline: Timeline, sites: npt.NDArray[np.intp], peaks: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        limits = [self.least_largest_half if _is_half(timeline, int(site)) else self.least_largest for site in sites]
        peaks = np.where(np.isfinite(peaks), peaks, 0)
        return np.asarray(peaks.max(axis=0, initial=0) > np.array(limits))

    def _hit(
        self, timeline: Timeline, rows: npt.NDArray[np.intp], sites: npt.NDArray[np.intp], rates: npt.NDArray[np.float64]
    ) -> Hit:
        place = int(np.argmax(rates))
        site, rate = int(sites[place]), float(rates[place])
        module = timeline.schema.modules[site].path
        peak = float(np.nanmax(timeline.column("activation.absmax")[rows[-3:], site]))
        first, last = (int(timeline.steps[row]) for row in rows[[0, -1]])
        half = any(_is_half(timeline, int(i)) for i in sites)
        return Hit(
            modules=largest(rates, [timeline.schema.modules[i].path for i in sites]),
            first_step=first,
            last_step=last,
            evidence={"decades_per_1000_steps": plain(rate), "largest": plain(peak), "layers": len(sites), "half": half},
            message=(
                f"From step {first} to {last} the output of {module or 'the model'} grew at a rate of "
                f"{10 ** min(rate, 300.0):.3g} times in 1,000 steps, and its largest element is {peak:.3g}"
                + (f", where half precision ends at {HALF_LIMIT:g}." if half else ".")
            ),
            remedy=self._remedy(timeline),
            severity=Severity.INFO if works(timeline) and not half else Severity.WARNING,
            strength=1.0,
        )

    def _remedy(self, timeline: Timeline) -> Remedy:
        text = "Put a normalisation where the growth begins, or lower the learning rate"
        rate = usual_rate(timeline)
        if not rate > 0:
            return Remedy(f"{text}.")
        decay = float(f"{self.good_ratio**2 / (2 * rate):.2g}")
        # No code: decay takes 1 / (lr * decay) steps to bound anything, and where the growth begins the model's author knows.
        return Remedy(f"{text}; a weight decay of {decay:g} bounds the weights in the long run.")


def _slopes(table: npt.NDArray[np.float64], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Decades a step for each column: the median over the pairs (i, i + n/2), as in depth.slopes; [sites]."""
    half = (len(table) + 1) // 2
    rise = (table[half:] - table[:-half]) / (steps[half:] - steps[:-half])[:, None]
    return row_medians(rise.T)


def _is_half(timeline: Timeline, site: int) -> bool:
    known = timeline.modules.get(timeline.schema.modules[site].path)
    return known is not None and known.dtype == HALF
