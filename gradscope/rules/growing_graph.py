"""An autograd graph that reaches further back with every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

MOST_NODES = 20_000  # of a larger graph no more are counted


@final
@dataclass(frozen=True)
class GrowingGraph(Rule):
    """The autograd graph grows from step to step, because something of the steps before is still attached to it.

    ## What it does

    Counts the nodes of the graph under the loss on the steps whose graph is read. It speaks where the count rises from each
    of them to the next, along a straight line over the steps, to twice its start or more; over four readings, or over three
    where the time that a step takes has doubled as well.

    ## Why it is bad

    Each step walks back through all steps before it: time and memory grow until there is no more of either, and the gradient
    holds terms of steps long past. The usual ways there: a recurrent state that is carried on without `detach()`, made to
    work by `retain_graph=True`; or losses that are summed up as tensors.

    ## How it is told apart

    - Batches of varying length make graphs of varying size: they go up and down, and do not follow a line.
    - A curriculum, or layers that are added, make steps, not a line from the first steps on.
    - Step times alone prove nothing: machines slow down, and loaders do.

    In 31 of 32 healthy small trainings the last graph that was read was as large as the first, and with a mixture of experts
    1.16 times as large. A recurrent state that was carried on made it 81 times as large, a running mean of losses 136 times.

    ## What to do

    Detach what is carried from step to step, and sum up losses as numbers (`loss.item()`, or `loss.detach()`).

    ## Known false alarms

    Sequences that get longer by the same number with every step.

    ## References

    PyTorch documentation, "Frequently Asked Questions", "My model reports cuda runtime error: out of memory". R. J. Williams
    and J. Peng, 1990, on truncated back-propagation through time.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("step.graph_nodes",)
    least_steps: ClassVar[int] = 3
    explains: ClassVar[tuple[str, ...]] = (
        "recurrent-explosion", "recurrent-vanishing", "exploding-gradients", "gradient-spikes", "lr-too-high",
        "loss-divergence", "oscillating-loss", "loss-plateau", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss",
    )  # fmt: skip

    least_growth: float = 2.0  # times the first reading
    readings: int = 4  # graphs that were read, each larger than the one before
    timed_readings: int = 3  # the same, where a step takes twice as long as well
    stray: float = 0.1  # of the growth, by which readings may lie off the line

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        nodes = timeline.column("step.graph_nodes")[:, 0].astype(np.float64)
        rows = np.flatnonzero(np.isfinite(nodes))
        full = np.flatnonzero(nodes[rows] >= MOST_NODES)
        rows = rows[: full[0] + 1] if len(full) else rows  # from there on the count stands still
        if len(rows) < self.timed_readings or not self._grows(timeline.steps[rows], nodes[rows]):
            return
        slower = self._slower(timeline)
        if len(rows) >= self.readings or slower >= self.least_growth:
            yield self._hit(timeline, rows, nodes[rows], slower)

    def _grows(self, steps: npt.NDArray[np.int64], nodes: npt.NDArray[np.float64]) -> bool:
        grown = nodes[-1] - nodes[0]
        if not (np.diff(nodes) > 0).all() or nodes[-1] < self.least_growth * nodes[0]:
            return False
        if nodes[-1] >= MOST_NODES:  # the last reading lies somewhere above
            steps, nodes = steps[:-1], nodes[:-1]
        line = nodes[0] + (steps - steps[0]) * (nodes[-1] - nodes[0]) / max(float(steps[-1] - steps[0]), 1.0)
        return len(nodes) >= self.timed_readings and bool(np.abs(nodes - line).max() <= self.stray * grown)

    def _slower(self, timeline: Timeline) -> float:
        """How many times as long a step takes at the end as at the start; NaN where that is not known."""
        seconds = timeline.pulse("seconds") - np.nan_to_num(timeline.pulse("own_seconds"))
        tenth = max(len(seconds) // 10, 5)
        before = median_of(seconds[1 : tenth + 1])
        return median_of(seconds[-tenth:]) / before if len(seconds) > 2 * tenth and before > 0 else float("nan")

    def _hit(self, timeline: Timeline, rows: npt.NDArray[np.intp], nodes: npt.NDArray[np.float64], slower: float) -> Hit:
        steps = timeline.steps[rows]
        a_step = (nodes[-1] - nodes[0]) / max(float(steps[-1] - steps[0]), 1.0)
        duration = f", and a step takes {slower:.1f} times as long as at the start" if slower > 1.5 else ""
        return Hit(
            modules=tuple(module.path for module in timeline.info.modules if module.role == "recurrent"),
            first_step=int(steps[0]),
            last_step=int(steps[-1]),
            evidence={"first_nodes": int(nodes[0]), "last_nodes": int(nodes[-1]), "nodes_a_step": float(f"{a_step:.4g}")}
            | ({"times_slower": float(f"{slower:.3g}")} if np.isfinite(slower) else {}),
            message=(
                f"The loss's graph grew from {nodes[0]:.0f} nodes at step {steps[0]} to {nodes[-1]:.0f} at step {steps[-1]}, "
                f"by {a_step:.0f} in every step{duration}: something of the steps before is still attached."
            ),
            remedy=Remedy(
                "Detach what is carried from one step to the next (a recurrent state, a running loss), and do without "
                "retain_graph=True.",
                "state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()  # before each step",
            ),
            severity=Severity.WARNING,
            strength=4.0,
        )
