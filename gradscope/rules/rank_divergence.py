"""Ranks that should hold the same weights do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class RankDivergence(Rule):
    """Parameters that are the same on every rank by construction are not.

    ## What it does

    On every sampled step on which the weights are weighed, each rank's exact norm of each parameter that is not sharded is
    compared with the others'. It speaks where norms differ by more than one part in a hundred thousand, and still do when they
    are compared last, and names the first step, the parameters, and the rank whose norm is furthest from the others'.

    ## Why it is bad

    DistributedDataParallel averages gradients, not weights: once two ranks differ, each takes steps with gradients that are
    half of another model's. The differences stay or grow, nothing fails, and the checkpoint of rank 0 is a model that was
    never trained as a whole.

    ## How it is told apart

    - Kernels add up in different orders: equal weights have norms that differ by some parts in ten million.
    - Parameters that are sharded differ by right and are not compared; nor are those that DistributedDataParallel was told to
      ignore, nor buffers: the running statistics of a batch norm that is not synchronised are each rank's own.
    - Trainings that average weights now and then (local SGD) have ranks that differ in between and agree again. Where they
      have agreed again since, it is an aside.

    ## What to do

    Make every rank do the same to the weights: the same initial weights (let DistributedDataParallel broadcast rank 0's), no
    change in place that depends on the rank or on rank-local numbers, the same optimizer steps on all of them.

    ## Known false alarms

    Trainings that let ranks' weights drift apart on purpose and were stopped before the first average.

    ## References

    S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (VLDB 2020), section 3.2: replicas
    stay the same because they start the same and see the same gradients.
    """

    family: ClassVar[str] = "distributed"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight.ranks_apart",)
    explains: ClassVar[tuple[str, ...]] = (
        "rank-outlier", "loss-divergence", "loss-plateau", "oscillating-loss", "exploding-gradients", "gradient-spikes",
        "weights-changed-outside-optimizer", "lr-too-high", "nonfinite-loss", "nonfinite-gradients",
    )  # fmt: skip

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        table = timeline.column("weight.ranks_apart")
        compared = np.flatnonzero(np.isfinite(table).any(axis=1))
        off = np.nan_to_num(table, nan=0.0) > 0
        rows = np.flatnonzero(off.any(axis=1))
        if not len(rows):
            return
        lasting = bool(off[compared[-1]].any())
        row = _begun(off, compared) if lasting else int(rows[0])
        yield self._hit(timeline, row, np.flatnonzero(off[row]), int(rows[-1]), lasting=lasting)

    def _hit(self, timeline: Timeline, row: int, places: Indices, last: int, *, lasting: bool) -> Hit:
        sizes = timeline.column("weight.ranks_apart")[row, places]
        names = [timeline.site_names("weight")[place] for place in places]
        rank = int(np.bincount(timeline.column("weight.ranks_apart_rank")[row, places].astype(int)).argmax())
        step, largest = int(timeline.steps[row]), float(sizes.max())
        again = "" if lasting else "; later they agreed again"
        ranks = timeline.info.ranks
        where, whose, others = (
            (f"all {ranks} ranks", f"rank {rank}'s", " from the others'") if ranks > 2 else ("both ranks", "their", "")
        )
        return Hit(
            modules=owners(timeline, names),
            first_step=step,
            last_step=int(timeline.steps[last]),
            evidence={
                "rank": rank,
                "parameters": names,
                "largest_difference": plain(largest),
                "now": plain(float(np.nan_to_num(timeline.column("weight.ranks_apart")[last], nan=0.0).max())),
            },
            message=(
                f"Expected the same weights on {where}; at step {step} {whose} norms of {named(names)} differed{others} "
                f"by up to {largest:.2g} of their size{again}."
            ),
            remedy=_remedy(),
            severity=Severity.CRITICAL if lasting else Severity.INFO,
            strength=10.0,
        )


def _begun(off: Mask, compared: Indices) -> int:
    """The first row from which on weights differed whenever they were compared."""
    same = [row for row in compared if not off[row].any()]
    after = same[-1] if same else -1
    return int(next(row for row in compared if row > after))


def _remedy() -> Remedy:
    return Remedy(
        "Give every rank rank 0's weights before training, and let nothing change them but the optimizer's steps, which all "
        "ranks make.",
        "for parameter in model.parameters():  # once, on every rank, after the model is made or loaded\n"
        "    torch.distributed.broadcast(parameter.data, src=0)",
    )
