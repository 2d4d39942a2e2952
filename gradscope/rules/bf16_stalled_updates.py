"""Updates that rounding to a 16-bit format takes away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import peak_rate
from gradscope.evidence import usual_rate
from gradscope.evidence import warming_up
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import row_medians

ROUNDS = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")  # to the nearest number
SPACING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half the spacing of numbers, over the number, at most


@final
@dataclass(frozen=True)
class Bf16StalledUpdates(Rule):
    """Weights kept in bfloat16 or float16 stay as they are, because a step is smaller than what rounding drops.

    ## What it does

    Compares the elements of 16-bit weights before and after a step. It speaks where in the median sampled step more than half
    of the elements that had a gradient stayed the same to the last bit, in the median weight matrix.

    ## Why it is bad

    bfloat16 has eight significant bits: a change of less than 0.2 to 0.4 % of a weight is rounded away, and a usual step
    changes weights by 0.1 %. The small steps do not add up; they are lost, and training stands still where float32 goes on.

    ## How it is told apart

    - Elements without gradient (an embedding's rows that the batch does not use, dead units) do not move in any format; they
      are not counted.
    - In a warm-up, and at the end of a decay, steps are small on purpose.
    - Mixed precision keeps the weights in float32 and casts them for the forward pass: such weights are in float32 here.
    - Up to 70 % the others are enough to learn with: the finding is for information.
    - Where training works or progresses it is, too. It is a warning there after 100 steps where the loss is still above three
      quarters of the best constant prediction's, or above a quarter with more than 90 % that stay the same, and the optimizer
      is one of torch's own, which round to the nearest number: stochastic rounding and Kahan summation lose nothing on average.

    Of 26 healthy small trainings in float32 no step left more than 0.3 % unchanged. In bfloat16, SGD with a rate of 0.0001
    left 99 % (nothing was learned), Adam with 0.0001 88 % (slow), Adam with 0.001 67 % (learns). In 300 steps on two tasks:

    | | unchanged | loss over a constant's | in float32 |
    | --- | --- | --- | --- |
    | SGD 0.01 | 86 %, 90 % | 0.83, 0.84 | 0.72, 0.54 |
    | Adam 0.0001 | 81 %, 76 % | 0.86, 0.80 | 0.60, 0.26 |
    | SGD 0.1, Adam 0.0003 and 0.001 | 64 % at most | 0.01 to 0.40 | 0.00 to 0.28 |

    ## What to do

    Keep the weights in float32 and run the forward pass under `torch.autocast`; or round stochastically, or with Kahan's
    correction; or take steps larger than 0.4 % of a weight.

    ## Known false alarms

    A fine-tuning that is meant to change next to nothing.

    ## References

    P. Zamirai, J. Zhang, C. R. Aberger, C. De Sa, "Revisiting BFloat16 Training", 2020.
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.unchanged", "weight_gradient.norm", "fact.optimizer")
    least_steps: ClassVar[int] = 20
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-low", "weights-not-moving", "loss-plateau", "collapsed-output", "labels-unrelated",
    )  # fmt: skip

    stalled: float = 0.5  # of the elements that had a gradient, in the median matrix
    least_samples: int = 5  # sampled steps with a gradient
    most_harmless: float = 0.7  # of these elements, up to which the others are enough to learn with
    nearly_all: float = 0.9  # of these elements, which is a warning though the loss falls
    well: float = 0.25  # of the best constant prediction's loss, below which a training learns well
    badly: float = 0.75  # of the same, above which a training has hardly learned
    patience: int = 50  # steps, before which the finding is for information
    least_of_peak: float = 0.05  # of the learning rate; below it a schedule has ended

    def obstacle(self, timeline: Timeline) -> str | None:
        if _judged(timeline).any():
            return Rule.obstacle(self, timeline)
        return "no trained weight matrix is in bfloat16 or float16"

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        places = np.flatnonzero(_judged(timeline))
        if not len(places) or timeline.converged or warming_up(timeline):
            return
        shares = self._shares(timeline, places)
        known = np.isfinite(shares)
        stalled = row_medians(shares.T)
        counted = stalled[known.sum(axis=0) >= self.least_samples]
        if len(counted) and middles.median(counted) > self.stalled:
            rows = np.flatnonzero(row_medians(shares) > self.stalled)
            held = np.zeros(len(timeline.schema.parameters), dtype=bool)
            held[places[(stalled > self.stalled) & (known.sum(axis=0) >= self.least_samples)]] = True
            yield self._hit(timeline, parameter_names(timeline, held), rows, middles.median(counted))

    def _shares(self, timeline: Timeline, places: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Share of the elements with a gradient that stayed the same, on steps with a rate as it mostly is; NaN elsewhere."""
        unchanged = timeline.column("update.unchanged")[:, places].astype(np.float64)
        zero = timeline.held("weight_gradient.zero")[:, places].astype(np.float64)
        norms = timeline.column("weight_gradient.norm")[:, places]
        judged = np.isfinite(unchanged) & (zero < 1) & (norms > 0) & np.isfinite(norms) & self._full_rate(timeline)[:, None]
        zero = np.where(judged, zero, 0.0)
        return np.where(judged, (np.where(judged, unchanged, 0.0) - zero) / (1 - zero), np.nan)

    def _full_rate(self, timeline: Timeline) -> npt.NDArray[np.bool_]:
        rates, known = timeline.pulse("learning_rate"), timeline.pulse("step")
        peak = peak_rate(timeline)
        low = known[~(rates >= self.least_of_peak * peak) | (rates == 0)]
        return ~np.isin(timeline.steps, low)

    def _hit(self, timeline: Timeline, names: list[str], rows: npt.NDArray[np.intp], share: float) -> Hit:
        dtype = timeline.parameters[names[0]].dtype
        modules = owners(timeline, names)
        return Hit(
            modules=modules,
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={
                "unchanged": plain(share),
                "healthy_unchanged": 0.003,
                "dtype": dtype,
                "rounded_away": SPACING[dtype],
                "learning_rate": plain(usual_rate(timeline)),
                "parameters": names,
            },
            message=(
                f"{100 * share:.0f} % of the elements of {named(modules)} that have a gradient stay the same in a step: the "
                f"weights are in {dtype}, which drops changes below {100 * SPACING[dtype]:.2g} % of a weight."
            ),
            remedy=_remedy(timeline, dtype),
            severity=self._severity(timeline, share),
            strength=4.0,
        )

    def _severity(self, timeline: Timeline, share: float) -> Severity:
        if timeline.step_count < self.patience or timeline.converged or share <= self.most_harmless:
            return Severity.INFO
        if not works(timeline) and not timeline.progressing:
            return gravity(timeline)
        plain_steps = all(optimizer.type in ROUNDS for optimizer in timeline.info.optimizers)
        limit = (self.well if share > self.nearly_all else self.badly) * timeline.baseline
        slow = plain_steps and timeline.step_count >= PATIENCE and not timeline.last_loss < limit
        return Severity.WARNING if slow else Severity.INFO


def _judged(timeline: Timeline) -> npt.NDArray[np.bool_]:
    """Trained matrices in a 16-bit format; [parameter sites]."""
    known = [timeline.parameters.get(site.path) for site in timeline.schema.parameters]
    return np.array([bool(p and p.dtype in SPACING and len(p.shape) > 1) for p in known], dtype=bool) & timeline.trained


def _remedy(timeline: Timeline, dtype: str) -> Remedy:
    device = timeline.info.device.partition(":")[0]
    return Remedy(
        f"Keep the weights in float32, and run only the forward pass in {dtype}, under torch.autocast.",
        "model.float()  # before the optimizer is made\n# and in the forward pass:\n"
        f'with torch.autocast("{device}", dtype=torch.{dtype}):\n'
        "    output = model(x.float() if x.is_floating_point() else x)",
    )
