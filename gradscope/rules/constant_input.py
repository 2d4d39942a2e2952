"""Inputs that hold the same numbers for every sample, or at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import PATIENCE
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.objective import given
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

NOISY = ("dropout", "attention", "recurrent")  # roles of what drops out, the last two within themselves
SEEING = ("linear", "conv", "embedding", "recurrent", "attention", "norm")  # roles whose output tells what the model is given


@final
@dataclass(frozen=True)
class ConstantInput(Rule):
    """The model is fed the same numbers for every sample, or the same batch at every step.

    ## What it does

    Looks at the spread over the batch of everything that the model is given, feature by feature. It speaks where that is
    zero, as far as float32 can tell, in nine of ten sampled steps and five at least, and the first layers' outputs do not
    differ between samples either. It also speaks where the inputs of five sampled steps or more are those of the one before,
    bit for bit: that is an aside, unless the targets change while the inputs stay.

    ## Why it is bad

    From inputs that do not differ no model can tell samples apart: it learns the mean of the targets, or how often each
    class occurs, and no more. Typical causes are a feature matrix that was multiplied by zero, a buffer that is never
    filled, or an augmentation that wipes out the picture.

    ## How it is told apart

    - Masks, time steps and other inputs that are constant beside one that is not: all of them have to be.
    - Token ids are no floating-point input; where an embedding's output differs between samples, so does the input. A model
      that is given nothing but tokens is judged by its embeddings: of a vocabulary two samples that differ have two of them.
      What attention and recurrent layers put out does not count there, as they drop out within themselves: of one and the same
      text a transformer's first attention put out a signal of 0.07 of its rms.
    - One batch at every step is how full-batch training and a test on one batch look, and both learn: that is an aside.
    - Large inputs that differ in their last digits only are `unnormalized-input`.

    ## What to do

    Look at two samples of a batch as the model gets them, and go back through the loader to where they become equal.

    ## Known false alarms

    Generators that draw their noise themselves and are fed a constant: their layers differ, and nothing is said unless the
    noise comes after the layers that are seen.

    ## References

    N. Humbatova et al., "Taxonomy of Real Faults in Deep Learning Systems" (ICSE 2020), "training data".
    """

    family: ClassVar[str] = "data"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("input.rms",)
    least_steps: ClassVar[int] = 5
    explains: ClassVar[tuple[str, ...]] = (
        "collapsed-output", "loss-plateau", "dead-units", "vanishing-gradients", "weights-not-moving", "lr-too-low",
        "labels-unrelated", "init-too-small", "adam-epsilon-dominates", "unnormalized-input",
    )  # fmt: skip

    least_spread: float = 1e-6  # over the batch, of the largest magnitude: a few units in float32's last place
    least_signal: float = 1e-4  # of a layer's rms, that float32's rounding cannot make
    least_frames: int = 5  # sampled steps that show it
    least_share: float = 0.9  # of the sampled steps

    def obstacle(self, timeline: Timeline) -> str | None:
        tokens = _takes_tokens(timeline) and timeline.step_count >= self.least_steps
        return timeline.lack("activation.signal") if tokens else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if _takes_tokens(timeline):
            tokens = self._same_tokens(timeline)
            if len(tokens):
                yield self._of_tokens(timeline, tokens)
            return
        same = self._same_samples(timeline)
        if len(same):
            yield self._hit(timeline, same, repeated=False)
            return
        again = self._same_batches(timeline)
        if len(again):
            yield self._hit(timeline, again, repeated=True)

    def _same_samples(self, timeline: Timeline) -> Indices:
        """The sampled steps in which no two samples differed; none where they are not most of those known."""
        signal, largest = timeline.column("input.signal"), timeline.column("input.absmax")
        known = np.isfinite(signal) & np.isfinite(largest)
        equal = known & (signal <= self.least_spread * np.where(known, largest, 0))
        seen = np.asarray(known.any(axis=1))
        return self._most(np.asarray((equal | ~known).all(axis=1)) & seen & ~self._sees_more(timeline), seen)

    def _sees_more(self, timeline: Timeline, *, noisy: tuple[str, ...] = ("dropout",)) -> Mask:
        """Where a layer before the first noisy one told samples apart; where none was seen, that counts as if it did."""
        roles = [_role(timeline, site.path) for site in timeline.schema.modules]
        end = next((i for i, role in enumerate(roles) if role in noisy), len(roles))
        places = [i for i, role in enumerate(roles[:end]) if role in SEEING]
        signal, rms = (timeline.column(f"activation.{name}")[:, places] for name in ("signal", "rms"))
        known = np.isfinite(signal) & np.isfinite(rms)
        differs = known & (signal > self.least_signal * np.where(known, rms, 0))
        return np.asarray(differs.any(axis=1) | ~known.any(axis=1))

    def _same_tokens(self, timeline: Timeline) -> Indices:
        """The sampled steps in which all samples had the same embeddings, and the layers after these took them for the same."""
        places = [i for i, site in enumerate(timeline.schema.modules) if _role(timeline, site.path) == "embedding"]
        signal, rms = (timeline.column(f"activation.{name}")[:, places] for name in ("signal", "rms"))
        known = np.isfinite(signal) & np.isfinite(rms)
        equal = known & (signal <= self.least_spread * np.where(known, rms, 0))
        seen = np.asarray(known.any(axis=1))
        more = self._sees_more(timeline, noisy=NOISY if _embeds_all(timeline) else NOISY[:1])
        return self._most(np.asarray((equal | ~known).all(axis=1)) & seen & ~more, seen)

    def _same_batches(self, timeline: Timeline) -> Indices:
        """The sampled steps whose inputs were those of the one before; none where tokens may have come with them."""
        if any(module.role == "embedding" for module in timeline.info.modules) or timeline.several_objectives:
            return np.zeros(0, dtype=np.intp)
        repeated = timeline.column("input.repeated")
        known = np.isfinite(repeated)
        later = known.any(axis=1) & (np.arange(len(repeated)) > 0)
        return self._most(np.asarray(((repeated > 0) | ~known).all(axis=1)) & later, later)

    def _most(self, held: Mask, known: Mask) -> Indices:
        rows = np.flatnonzero(held)
        return rows if len(rows) >= max(self.least_frames, self.least_share * known.sum()) else rows[:0]

    def _of_tokens(self, timeline: Timeline, rows: Indices) -> Hit:
        names = [module.path for module in timeline.info.modules if module.role == "embedding"]
        return Hit(
            modules=tuple(names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"inputs": names, "steps": len(rows), "repeated": False, "targets_change": False},
            message=(
                f"In {len(rows)} sampled steps all samples of a batch were the same tokens: what {named(names)} makes of them "
                "does not vary over the batch."
            ),
            remedy=Remedy(
                "Decode two samples of a batch as the model gets them, and look for where they become equal: padding that is "
                "kept in place of the text, a text cut at the wrong end, an id for unknown words.",
            ),
            severity=self._severity(timeline, repeated=False, changing=False),
            strength=5.0,
        )

    def _hit(self, timeline: Timeline, rows: Indices, *, repeated: bool) -> Hit:
        names = timeline.site_names("input")
        rms = median_of(timeline.column("input.rms")[rows])
        changing = repeated and _targets_change(timeline, rows)
        return Hit(
            modules=tuple(names),
            first_step=int(timeline.steps[rows[0]]),
            last_step=int(timeline.steps[rows[-1]]),
            evidence={"inputs": names, "steps": len(rows), "rms": plain(rms), "repeated": repeated, "targets_change": changing},
            message=_message(timeline, named(names), len(rows), rms, repeated=repeated, changing=changing),
            remedy=_remedy(repeated=repeated, changing=changing),
            severity=self._severity(timeline, repeated=repeated, changing=changing),
            strength=5.0 if changing or not repeated else 1.0,
        )

    def _severity(self, timeline: Timeline, *, repeated: bool, changing: bool) -> Severity:
        found = gravity(timeline)
        if repeated and (not changing or timeline.step_count < PATIENCE):
            return Severity.INFO
        return found


def _role(timeline: Timeline, path: str) -> str:
    module = timeline.modules.get(path)
    return module.role if module else "other"


def _takes_tokens(timeline: Timeline) -> bool:
    """Whether the model has embeddings and is given no numbers but theirs."""
    embeds = any(module.role == "embedding" for module in timeline.info.modules)
    return embeds and timeline.lack("input.rms") is not None and len(timeline.frames) > 0


def _embeds_all(timeline: Timeline) -> bool:
    """Whether tokens reach the model by its embeddings alone: no matrix stands by itself that they could pick rows of."""
    roles = {path: module.role for path, module in timeline.modules.items()}
    matrices = [p for p in timeline.info.parameters if len(p.shape) >= 2 and p.shape[0] > 1]
    return all(roles.get(p.module) in SEEING for p in matrices)


def _targets_change(timeline: Timeline, rows: Indices) -> bool:
    """Whether the targets of these steps differ, as their mean or the entropy of their labels tells."""
    series = (given(timeline, name)[rows] for name in ("target_mean", "target_rms", "label_entropy"))
    seen = [values[np.isfinite(values)] for values in series]
    return any(len(values) > 1 and bool(np.mean(values[1:] != values[:-1]) > 0.5) for values in seen)


def _message(timeline: Timeline, name: str, count: int, rms: float, *, repeated: bool, changing: bool) -> str:
    if changing:
        return f"The input {name} was the same, bit for bit, in {count} sampled steps, while the targets changed."
    if repeated:
        compared = np.count_nonzero(np.isfinite(timeline.column("input.repeated")[1:]).any(axis=1))
        return (
            f"The input {name} was the same as before, bit for bit, in {count} of the {compared} sampled steps that were "
            "compared: right for full-batch training or a test on one batch, and otherwise a loader that hands out one batch "
            "only."
        )
    value = f" (its root mean square is {rms:.3g})" if math.isfinite(rms) else ""
    return f"All samples of a batch are equal in {count} sampled steps: the input {name} does not vary over the batch{value}."


def _remedy(*, repeated: bool, changing: bool) -> Remedy:
    if changing:
        return Remedy(
            "Find out why the loader gives new targets with old inputs, a buffer that is not filled again for example."
        )
    if repeated:
        return Remedy("See that the loop draws a new batch at each step, unless it is meant to see one only.")
    return Remedy(
        "Go back through the loader to where the samples become equal.",
        'assert (x != x[:1]).any(), "all samples of this batch are equal"  # before model(x)',
    )
