"""Gradients that die on their way back through time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import plain
from gradscope.evidence import TimeGrowth
from gradscope.evidence import captured
from gradscope.evidence import no_recurrence
from gradscope.evidence import stuck
from gradscope.evidence import time_growth
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import lasting
from gradscope.trends import row_medians

GATED = ("LSTM", "GRU", "LSTMCell", "GRUCell")  # whose second quarter or third of bias_hh holds the gate that keeps the state


@final
@dataclass(frozen=True)
class RecurrentVanishing(Rule):
    """The gradient of a recurrent layer dies before it comes back to the first time steps, so these are not learned from.

    ## What it does

    Measures how the gradient of a recurrent layer shrinks from the last time step back to the first; of a recurrence that is
    written by hand, over the uses of its matrix in the autograd graph. It speaks after 100 steps of a training that does not
    work, where the gradient shrinks to less than a millionth in five sampled steps in a row (in all, three at least, where it
    was seen on fewer) and in half of all. It is an aside; a warning where the loss stood at the best constant prediction's for
    200 steps, while the gradient still shrinks to less than a thousandth: then a ten-thousandth is enough in those steps.

    ## Why it is bad

    What the first inputs would have to change in the weights is a millionth of what the last ones do, below the noise of any
    batch: whatever the answer has to do with them is not learned.

    ## How it is told apart

    - Most recurrent layers forget, and learn all the same: PyTorch's default GRU and LSTM keep 0.63 and 0.67 of the gradient a
      time step at the start, a millionth of a millionth over 60, and train. So nothing is said at the start, nor where the
      loss comes down.
    - Where every time step has a loss of its own, each has a gradient of its own, and none of them vanishes.
    - Adam's steps are as long where the gradient is noise, and let a small matrix grow: in a recurrence with a gain of 0.5 over
      25 time steps the gradient shrank by 7.3 decades at the start, and by 4.1 to 7 after 100 to 300 steps, nothing learned.
    - PyTorch's default RNN over 25 time steps lost 4.6 to 6.2 decades and stood at a constant's loss for 300 steps, while one
      with an orthogonal matrix learned to tell the first input. Clipped noise let its matrix grow in the end, to a loss of 3.7
      to 5.8 decades in the last five sampled steps (three seeds). A GRU that stood there for its weight decay lost 2.5.
    - A loss that stands still for another reason (rate, labels, wiring) is that reason's; this one is weak evidence beside it.

    ## What to do

    Open the forget gates at the start (a bias of ln T for T time steps; with +3 an LSTM came to 1.04 a step), begin a plain
    recurrence with an orthogonal matrix, cut the sequence shorter, or give the early inputs a shorter way: attention, or a
    skip over time.

    ## Known false alarms

    A task that the last inputs decide, and that is not learned for another reason.

    ## References

    S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991. C. Tallec and Y. Ollivier, "Can recurrent neural
    networks warp time?", 2018, for the bias.
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)
    least_steps: ClassVar[int] = 100
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "collapsed-output", "vanishing-gradients", "adam-epsilon-dominates", "labels-unrelated",
    )  # fmt: skip

    most_total: float = -6.0  # decades over all time steps
    window: int = 5  # sampled steps in a row, all of which must show it,
    least_rows: int = 3  # or so many, where it was captured on no more: graphs are read on few steps
    least_share: float = 0.5  # of all sampled steps
    still_total: float = -4.0  # the same while the loss is stuck
    now_total: float = -3.0  # in the median of the last five sampled steps, then: noise lets the matrix grow
    stuck_steps: int = 200  # with the loss at the best constant prediction's, from which it is a warning

    def obstacle(self, timeline: Timeline) -> str | None:
        return Rule.obstacle(self, timeline) or no_recurrence(timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if works(timeline) or timeline.converged or timeline.several_objectives or timeline.onset is not None:
            return
        through = time_growth(timeline)
        growth = through.decades
        rows = captured(growth)
        stands = stuck(timeline, self.stuck_steps)
        with np.errstate(invalid="ignore"):
            shrunk = growth[rows] < (self.still_total if stands else self.most_total)
        window = min(self.window, max(len(rows), self.least_rows))
        lasted = lasting(shrunk, least=window, window=window)
        sites = np.flatnonzero(lasted.any(axis=0) & (shrunk.sum(axis=0) >= self.least_share * len(rows)))
        if len(sites):
            now = row_medians(growth[rows][-self.window :, sites].T)
            still = bool((now < self.now_total).any()) and stands
            yield self._hit(timeline, through, rows[shrunk[:, sites].any(axis=1)], sites, still)

    def _hit(
        self,
        timeline: Timeline,
        through: TimeGrowth,
        rows: npt.NDArray[np.intp],
        sites: npt.NDArray[np.intp],
        still: bool,
    ) -> Hit:
        row = int(rows[-1])
        site = int(sites[np.nanargmin(through.decades[row, sites])])
        module, total, steps = through.modules[site], float(through.decades[row, site]), int(through.steps[row, site])
        where = f"stands at {timeline.last_loss:.4g}, that of a constant" if still else f"is {timeline.last_loss:.4g}"
        return Hit(
            modules=tuple(dict.fromkeys(through.modules[i] for i in sites)),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[row]),
            evidence={"factor": plain(10 ** (total / (steps - 1))), "decades": plain(total), "time_steps": steps},
            message=(
                f"Over {steps} time steps the gradient of {module or 'the model'} shrinks to {10 ** max(total, -300.0):.2g} of "
                f"what it was at the last, and the loss {where} after {timeline.step_count} steps."
            ),
            remedy=_remedy(timeline, module, through.matrices[site], steps),
            severity=Severity.WARNING if still else Severity.INFO,
            strength=2.5,
        )


def _remedy(timeline: Timeline, module: str, names: list[str], steps: int) -> Remedy:
    known = timeline.modules.get(module)
    name = module or "the model"
    if known is not None and known.type in GATED:
        bias = float(f"{math.log(steps):.2g}")
        return Remedy(
            f"Start with the gates of {name} open that keep the state: a bias of ln {steps} = {bias:g}.",
            f"layer = model.get_submodule({module!r})\nwith torch.no_grad():  # directly after the model is made\n"
            '    for name, bias in layer.named_parameters():\n        if name.startswith("bias_hh"):\n'
            f"            bias[layer.hidden_size : 2 * layer.hidden_size] = {bias:g}  # the forget or update gate's",
        )
    return Remedy(
        f"Start the recurrent matrix of {name} as an orthogonal one, or put an LSTM or GRU in its place.",
        f"for name in {names!r}:  # directly after the model is made\n    torch.nn.init.orthogonal_(model.get_parameter(name))",
    )
