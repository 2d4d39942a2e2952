"""One rank's numbers stand apart from all the others'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import Mask
from gradscope.evidence import named
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

_WHAT = {"input": "what it is given", "activation": "its activations", "activation_gradient": "its gradients of activations"}


@dataclass(frozen=True)
class _Apart:
    """A rank that stood apart for some sampled steps in a row."""

    rank: int
    first: int  # row of the frames
    last: int
    kind: str
    places: tuple[int, ...]
    decades: float  # signed, the median over steps and places


@final
@dataclass(frozen=True)
class RankOutlier(Rule):
    """One rank's inputs, activations or gradients are of another size than every other's, or it alone has NaN.

    ## What it does

    For each input and each layer the ranks' root mean squares are compared on a logarithmic scale: the rank that is furthest
    from the mean of all the others, measured by the spread of these others. It speaks where one and the same rank stands three
    times as far from the others as they are large (half a decade) and eight times as far as they spread, on at least three
    sampled steps in a row: in an input, or in most layers. Of fewer than eight ranks, whose spread says little, ten times as
    far is asked for; of two only that, and which of them is at fault is not told.
    It also speaks where one rank alone had NaN or infinity in what it was given or in its activations, as a note on the side of
    what these bring about.

    ## Why it is bad

    The average gradient is that rank's as much as any other's: a shard that is read wrongly, or not normalised, or a device
    that computes wrongly, spoils the training of all, and the mean loss hides it.

    ## How it is told apart

    - Shards differ. Of two ranks with 32 samples each of one classification task the inputs and activations differed by 0.01
      to 0.02 decades, at most by 0.14; by 0.01 to 0.04, at most 0.21, where each rank had two of the four classes to itself
      (a perceptron of three layers, 60 steps, five seeds). A whole decade is asked for there.
    - The rank that stands apart is left out of the mean and the spread that it is measured by.
    - Small layers and rare branches (experts, dead units) differ between ranks: most layers have to.
    - A batch that is out of the ordinary on one rank is one step, and `outlier-batch`'s.

    ## What to do

    Look at the batches of the rank that is named, as the model gets them; if they are like all others, at its device.

    ## Known false alarms

    Ranks that are given data of different scale on purpose.

    ## References

    A. Grattafiori et al., "The Llama 3 Herd of Models" (2024), section 3.3.4: faulty devices among thousands. The mean and the
    spread of all but one follow from sums, as in jackknife estimates.
    """

    family: ClassVar[str] = "distributed"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("step.loss_apart",)
    explains: ClassVar[tuple[str, ...]] = (
        "unnormalized-input", "outlier-batch", "exploding-gradients", "gradient-spikes", "loss-divergence", "loss-plateau",
        "oscillating-loss", "initial-loss-off", "lr-too-high", "activation-growth", "dead-units", "saturated-units",
        "missing-normalization", "init-too-large", "collapsed-output", "weights-not-moving", "constant-input",
    )  # fmt: skip

    decades: float = 0.5
    decades_of_few: float = 1.0
    enough_ranks: int = 8
    spreads: float = 8.0
    in_a_row: int = 3
    most_layers: float = 0.5

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        for kind in ("input", "activation", "activation_gradient"):
            found = self._apart(timeline, kind)
            if found is not None:
                yield self._hit(timeline, found)
                return
        yield from self._broken(timeline)

    def _apart(self, timeline: Timeline, kind: str) -> _Apart | None:
        distance = timeline.column(f"{kind}.apart").astype(np.float64)
        ranks = timeline.column(f"{kind}.apart_rank")
        far = self._is_far(timeline, kind, distance)
        known = np.isfinite(distance).sum(axis=1)
        wanted = 1 if kind == "input" else np.maximum(1, np.ceil(self.most_layers * known))
        for rank in np.unique(ranks[far]):
            his = far & (ranks == rank)
            rows = _longest_run((his.sum(axis=1) >= wanted) & (known > 0))
            if rows is not None and rows[1] - rows[0] + 1 >= self.in_a_row:
                first, last = rows
                places = np.flatnonzero(his[first])
                size = median_of(distance[first : last + 1][his[first : last + 1]])
                return _Apart(int(rank), first, last, kind, tuple(places.tolist()), size)
        return None

    def _is_far(self, timeline: Timeline, kind: str, distance: np.ndarray) -> Mask:
        spread = timeline.column(f"{kind}.apart_spread").astype(np.float64)
        least = self.decades if timeline.info.ranks >= self.enough_ranks else self.decades_of_few
        with np.errstate(invalid="ignore"):
            told = np.isnan(spread) | (np.abs(distance) >= self.spreads * spread)
            return np.asarray((np.abs(distance) >= least) & told)

    def _hit(self, timeline: Timeline, found: _Apart) -> Hit:
        names = [timeline.site_names(found.kind)[place] for place in found.places]
        first, last = int(timeline.steps[found.first]), int(timeline.steps[found.last])
        times = 10.0 ** abs(found.decades)
        compared = f"{times:.3g} times as {'large' if found.decades > 0 else 'small'} as"
        others = "the other ranks'" if timeline.info.ranks > 2 else "rank 0's (which of the two is at fault this cannot tell)"
        return Hit(
            modules=tuple(name for name in names if found.kind != "input" and name != "(model)"),
            first_step=first,
            last_step=last,
            evidence={
                "rank": found.rank,
                "ranks": timeline.info.ranks,
                "kind": found.kind,
                "names": names,
                "times": plain(times if found.decades > 0 else 1 / times),
            },
            message=(
                f"From step {first} to {last} rank {found.rank} stood apart: {_WHAT[found.kind]} ({named(names)}) was "
                f"{compared} {others}."
            ),
            remedy=_remedy(found.rank),
            severity=Severity.WARNING,
            strength=10.0,
        )

    def _broken(self, timeline: Timeline) -> Iterator[Hit]:
        """Where the first numbers that are not finite were one rank's alone."""
        for kind in ("input", "activation"):
            counts = timeline.column(f"{kind}.broken_ranks")
            rows = np.flatnonzero((counts > 0).any(axis=1))
            if len(rows) and bool((counts[rows[0]][counts[rows[0]] > 0] == 1).all()) and timeline.info.ranks > 1:
                yield self._broken_hit(timeline, kind, int(rows[0]))
                return

    def _broken_hit(self, timeline: Timeline, kind: str, row: int) -> Hit:
        place = int(np.flatnonzero(timeline.column(f"{kind}.broken_ranks")[row] > 0)[0])
        rank = int(timeline.column(f"{kind}.broken_rank")[row, place])
        name, step = timeline.site_names(kind)[place], int(timeline.steps[row])
        where = f"in the input {name}" if kind == "input" else f"in what came out of {name}"
        return Hit(
            modules=(name,) if kind == "activation" and name != "(model)" else (),
            first_step=step,
            last_step=step,
            evidence={"rank": rank, "ranks": timeline.info.ranks, "kind": kind, "names": [name], "times": None},
            message=f"At step {step} rank {rank} alone of {timeline.info.ranks} had NaN or infinity {where}.",
            remedy=_remedy(rank),
            severity=Severity.WARNING,
            strength=4.0,
        )


def _longest_run(rows: Mask) -> tuple[int, int] | None:
    """First and last of the longest run of rows that hold."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    begin, end = runs[int(np.argmax(runs[:, 1] - runs[:, 0]))]
    return int(begin), int(end) - 1


def _remedy(rank: int) -> Remedy:
    return Remedy(
        f"Look at the batches that rank {rank} gives the model: are they read and normalised as on the others? If so, "
        "suspect its device.",
        f"if torch.distributed.get_rank() == {rank}:  # in the loop, on each batch\n"
        "    print(x.dtype, x.shape, x.float().mean(), x.float().std())",
    )
