"""Training a model that was left in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import batch_norms
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class EvalModeTraining(Rule):
    """The model is trained in evaluation mode: dropout does nothing, and batch norm uses statistics that nobody updates.

    ## What it does

    Counts, in the forward passes with gradients, which dropout and batch-norm modules ran in evaluation mode. It speaks where
    95 % or more of them did in the last ten sampled steps or more, and tells three cases apart: batch norms that still have
    the running statistics they were made with (mean 0, variance 1); a model that was in training mode at first and never came
    back from it; and a model that was in evaluation mode from the start, with statistics from an earlier training.

    ## Why it is bad

    A batch norm with its initial statistics normalises nothing, so the net behaves as if it had none, and its running
    statistics are wrong for ever after. Dropout that is off does not regularise. The usual way there: `model.eval()` before
    the validation and no `model.train()` after it, or a `from_pretrained` that hands out the model in evaluation mode.

    ## How it is told apart

    - Batch norm is often frozen on purpose when a trained model is tuned: then its running statistics are not those of the
      start, and the finding is for information; where its weights are frozen as well, nothing is said of it.
    - Statistics of other data are none of these: where a batch norm's output, on the first sampled step, is twice or more what
      its weight and bias make of normalised numbers, nothing is normalised, and the finding is as grave as what becomes of the
      training. Frozen norms whose data had stayed what it was had 0.85 to 1.05 times that; on recordings four times as loud
      as those before it was 3.5 to 5.2 (four seeds), and a training whose twin came to 0.02 ended at ln 4, all units dead.
    - Only some of the modules in evaluation mode (a frozen body under a new head) is less than 95 %, and not meant.
    - Batch norm is sometimes frozen for the last part of a training: until the model has been in evaluation mode for as many
      steps as in training mode before, the switch is for information.
    - Validation itself runs without gradients and is not counted.

    Such a training need not fail: one that was in evaluation mode all along came to 1.1 % of its first loss.

    ## What to do

    Call `model.train()` at the start of each epoch, after every `model.eval()`.

    ## Known false alarms

    Batch norm that is frozen on purpose before the middle of a training that began without.

    ## References

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, section 3.1. PyTorch documentation, `torch.nn.Module.eval`.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("step.evaluating",)
    least_steps: ClassVar[int] = 10
    explains: ClassVar[tuple[str, ...]] = (
        "lr-too-high", "lr-too-low", "loss-plateau", "loss-divergence", "oscillating-loss", "exploding-gradients",
        "vanishing-gradients", "gradient-spikes", "dead-units", "saturated-units", "activation-growth", "residual-growth",
        "collapsed-output", "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "labels-unrelated",
    )  # fmt: skip

    least_share: float = 0.95  # of the dropout and batch-norm modules
    least_samples: int = 10  # sampled steps in a row, up to the last
    training_share: float = 0.5  # below it the model counts as in training mode
    least_off: float = 2.0  # times that a norm's output is what it makes of normalised data, for its statistics to be others'
    training_samples: int = 2  # sampled steps in training mode that make it a switch

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        shares = timeline.column("step.evaluating")[:, 0]
        known = np.flatnonzero(np.isfinite(shares))
        off = shares[known] < self.least_share
        since = int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0
        if len(known) - since < self.least_samples:
            return
        switched = int((shares[known[:since]] < self.training_share).sum()) >= self.training_samples
        first, last = int(timeline.steps[known[since]]), int(timeline.steps[known[-1]])
        untouched = timeline.column("step.untouched_statistics")[known[since:], 0]
        if not switched and (untouched == 1).sum() >= self.least_samples and not (untouched == 0).any():
            yield self._untouched(timeline, first, last)
        elif switched:
            yield self._switched(timeline, first, last)
        elif _dropouts(timeline) or not _frozen(timeline):
            yield self._along(timeline, first, last)

    def _untouched(self, timeline: Timeline, first: int, last: int) -> Hit:
        norms = named([norm.path for norm in batch_norms(timeline)])
        text = f"and {norms or 'its batch norms'} still have the statistics that they were made with"
        severity = Severity.INFO if _frozen(timeline) else max(gravity(timeline), Severity.WARNING)
        return self._hit(timeline, first, last, "untouched statistics", f"from the start, {text}", severity, 10.0)

    def _along(self, timeline: Timeline, first: int, last: int) -> Hit:
        """Statistics from an earlier training: frozen on purpose, perhaps, unless they are those of other data."""
        off = 0.0 if _frozen(timeline) else _off_scale(timeline)
        if off < self.least_off:
            return self._hit(timeline, first, last, "all along", "from the start", Severity.INFO, 4.0)
        text = f"from the start, and a batch norm puts out {off:.2g} times what its weight and bias make of normalised data"
        return self._hit(timeline, first, last, "statistics of other data", text, gravity(timeline), 4.0)

    def _switched(self, timeline: Timeline, first: int, last: int) -> Hit:
        for_long = last - first >= first and not (_frozen(timeline) and not _dropouts(timeline))
        severity = Severity.WARNING if for_long else Severity.INFO
        text = f"from step {first} on, after a start in training mode, and never came back"
        return self._hit(timeline, first, last, "never back in training mode", text, severity, 4.0)

    def _hit(self, timeline: Timeline, first: int, last: int, case: str, text: str, severity: Severity, strength: float) -> Hit:
        modules = tuple(m.path for m in timeline.info.modules if m in batch_norms(timeline) or m.role == "dropout")
        share = float(np.nanmin(timeline.column("step.evaluating")[timeline.steps >= first, 0]))
        return Hit(
            modules=modules,
            first_step=first,
            last_step=last,
            evidence={"case": case, "share": share, "batch_norms": len(batch_norms(timeline)), "dropouts": _dropouts(timeline)},
            message=f"{share:.0%} of the dropout and batch-norm modules were trained in evaluation mode {text}.",
            remedy=Remedy(
                "Call model.train() at the start of each epoch, so that it follows every model.eval().",
                "model.train()  # at the start of each epoch, and after each validation",
            ),
            severity=severity,
            strength=strength,
        )


def _dropouts(timeline: Timeline) -> int:
    return sum(module.role == "dropout" for module in timeline.info.modules)


def _off_scale(timeline: Timeline) -> float:
    """How many times what its weight and bias make of normalised data a batch norm puts out, at most; 0 where not known.

    On the first sampled step, when the optimizer has not yet done what the statistics are blamed for.
    """
    first = {site.path: i for i, site in enumerate(timeline.schema.modules) if site.call == 0}
    places = {site.path: i for i, site in enumerate(timeline.schema.parameters)}
    outputs, norms = (timeline.column(name)[:1].astype(np.float64) for name in ("activation.rms", "weight.norm"))
    found = [0.0]
    for norm in batch_norms(timeline):
        own = [timeline.parameters[name] for name in norm.parameters if name in timeline.parameters and name in places]
        if norm.path not in first or not own:
            continue
        usual = math.hypot(*(norms[0, places[p.name]] / math.sqrt(p.size) for p in own))
        found.append(float(outputs[0, first[norm.path]]) / usual if usual > 0 else 0.0)
    return max((off for off in found if math.isfinite(off)), default=0.0)


def _frozen(timeline: Timeline) -> bool:
    """Whether no optimizer trains the weights of any batch norm that has some."""
    names = [name for norm in batch_norms(timeline) for name in norm.parameters]
    known = [timeline.parameters[name] for name in names if name in timeline.parameters]
    return bool(known) and not any(p.trainable and p.name in timeline.optimized for p in known)
