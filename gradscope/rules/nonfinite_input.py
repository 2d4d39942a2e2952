"""NaN or infinity in what the model is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import broken_gradients
from gradscope.evidence import named
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class NonfiniteInput(Rule):
    """An input or a target holds NaN or infinity.

    ## What it does

    Looks at the share of elements that are not finite in each input of the model and in the targets of the loss, on every
    sampled step, and at the place where the run's first NaN was found. It speaks where such a batch came while the weights
    were finite.

    ## Why it is bad

    One NaN in one sample makes the mean of the loss NaN, with it every gradient, and after one step every weight. Missing
    values in tables, images that could not be read and a division by a standard deviation of zero are the usual sources.

    ## How it is told apart

    - Masks of -inf are part of many models: an input that is never finite and harms nothing is left alone.
    - Where the loss and its gradient stay finite, because the model replaces NaN, it is an aside. Of a price over a price of
      zero a GRU's gates make a finite output, and the gradient of its weights is NaN.
    - Inputs that are not finite after the weights were no longer are their consequence (a model fed with its own output).

    ## What to do

    Find the sample and drop or repair it; check features after normalising them.

    ## Known false alarms

    None known. Batches on steps that were not sampled are seen where the training broke on them.

    ## References

    N. Humbatova et al., "Taxonomy of Real Faults in Deep Learning Systems" (ICSE 2020), "training data quality".
    """

    family: ClassVar[str] = "data"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss",)
    explains: ClassVar[tuple[str, ...]] = (
        "nonfinite-origin", "nonfinite-loss", "nonfinite-gradients", "loss-divergence", "gradient-spikes",
        "exploding-gradients", "lr-too-high", "dead-units", "collapsed-output", "weights-not-moving", "outlier-batch",
        "fp16-overflow",
    )  # fmt: skip

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        sound = self._sound(timeline)
        for kind, statistic in (("input", "nonfinite"), ("loss", "target_nonfinite")):
            shares = timeline.column(f"{kind}.{statistic}")
            bad = (shares > 0) & sound[:, None]
            harm = self._harmed(timeline)
            innocent = (bad & ~harm[:, None]).any(axis=0)
            guilty = (bad & harm[:, None]).any(axis=0) & ~innocent & ~self._elsewhere(timeline)
            places = np.flatnonzero(guilty if guilty.any() else innocent & ~_always(shares))
            if len(places):
                yield self._hit(timeline, kind, places, np.flatnonzero(bad[:, places].any(axis=1)), harm)
                return
        origin = timeline.info.origin
        if origin is not None and origin.place == "input":
            yield self._unsampled(timeline, origin.step)

    def _sound(self, timeline: Timeline) -> Mask:
        """Whether the training was sound before each sampled step: finite weights, and no loss before that was not."""
        weights = ~(timeline.held("weight.nonfinite") > 0).any(axis=1)
        broken = timeline.loss_steps[~np.isfinite(timeline.loss)]
        return weights & (timeline.steps <= (broken[0] if len(broken) else np.iinfo(np.int64).max))

    def _harmed(self, timeline: Timeline) -> Mask:
        """Whether the loss of each sampled step, or its gradient, was not finite."""
        return np.isin(timeline.steps, [*timeline.loss_steps[~np.isfinite(timeline.loss)], *broken_gradients(timeline)])

    def _elsewhere(self, timeline: Timeline) -> bool:
        """Whether the run's first NaN is known to stand where all that went in was finite; the way back tells nothing of it."""
        origin = timeline.info.origin
        return origin is not None and origin.place in ("parameter", "forward", "between", "target")

    def _hit(self, timeline: Timeline, kind: str, places: Indices, rows: Indices, harm: Mask) -> Hit:
        table = timeline.column("input.nonfinite" if kind == "input" else "loss.target_nonfinite")[:, places]
        names = [timeline.site_names(kind)[i] for i in places] if kind == "input" else ["targets"]
        row = int(next((row for row in rows if harm[row]), rows[0]))
        share = float(np.max(table[row][np.isfinite(table[row])], initial=0.0))
        step, what = int(timeline.steps[row]), f"the input {named(names)}" if kind == "input" else "the targets"
        effect = _effect(timeline, step) if harm[row] else "the loss was finite all the same"
        return Hit(
            modules=tuple(names) if kind == "input" else (),
            first_step=step if harm[row] else int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={
                "place": kind if kind == "input" else "target",
                "names": names,
                "share": plain(share),
                "steps": len(rows),
            },
            message=f"At step {step} {share:.3%} of {what} was NaN or infinite, with finite weights, and {effect}.",
            remedy=_remedy("x" if kind == "input" else "y"),
            severity=_severity(timeline) if harm[rows].any() else Severity.INFO,
            strength=10.0,
        )

    def _unsampled(self, timeline: Timeline, step: int) -> Hit:
        return Hit(
            modules=(),
            first_step=step,
            last_step=step,
            evidence={"place": "input", "names": [], "share": None, "steps": 1},
            message=f"At step {step} an input was NaN or infinite, with finite weights, and {_effect(timeline, step)}.",
            remedy=_remedy("x"),
            severity=_severity(timeline),
            strength=10.0,
        )


def _effect(timeline: Timeline, step: int) -> str:
    """What broke: a saturated gate makes a finite result of infinity, and its derivative times infinity is NaN."""
    loss = timeline.loss[timeline.loss_steps == step]
    backward = len(loss) > 0 and bool(np.isfinite(loss).all())
    return "the gradient was not finite, though the loss was" if backward else "the loss was not finite"


def _always(shares: np.ndarray) -> Mask:
    """Which columns are never finite where they were captured: masks; of one frame that cannot be told."""
    known = np.isfinite(shares)
    return np.asarray(((shares > 0) | ~known).all(axis=0))


def _severity(timeline: Timeline) -> Severity:
    """Critical where training ended there; a warning where it went on (the step was skipped)."""
    alive = np.isfinite(timeline.last_loss) and not (timeline.held("weight.nonfinite")[-1:] > 0).any()
    return Severity.WARNING if alive else Severity.CRITICAL


def _remedy(name: str) -> Remedy:
    return Remedy(
        "Find the sample that holds it, and repair or drop it.",
        f"finite = torch.isfinite({name}).reshape(len({name}), -1).all(dim=1)  # on each batch, before model(x)\n"
        "x, y = x[finite], y[finite]  # better: find out where the others come from",
    )
