"""The place where the first NaN or infinity stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Mask
from gradscope.evidence import clipping_norm
from gradscope.evidence import growth
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

ANOMALY = "torch.autograd.set_detect_anomaly(True)  # one run with this names the line that made it"


@dataclass(frozen=True)
class _Origin:
    """Where the first value that is not finite stands."""

    place: str
    modules: tuple[str, ...]
    clause: str  # the rest of "At step 40 …"
    remedy: Remedy
    strength: float = 4.0


@final
@dataclass(frozen=True)
class NonfiniteOrigin(Rule):
    """The first NaN or infinity of the run stands here.

    ## What it does

    Takes the first step whose loss, gradient or weights are not finite, and the first sampled step from there on, and goes
    through it in the order in which it was computed: weights before the step, inputs, modules forward, loss, modules
    backward, gradients. The first that is not finite is the origin; all later ones follow from it.

    ## Why it is bad

    Within one step NaN is everywhere, and whatever one looks at first seems to be broken.

    ## How it is told apart

    Where loss, gradient or weights had grown a hundredfold before, the numbers ran out of range: the cause is what made them
    grow, and this finding stands behind it. Modules that hold infinities in healthy steps (attention masks) are left out,
    and so is everything that left loss, gradients and weights finite.

    ## What to do

    Inputs: look for the sample. Norms: raise `eps`. Softmax and attention: rows with nothing but -inf. Loss: log(0), 0/0, a
    batch without targets. Backward: derivatives of sqrt, norm and pow at 0, also behind `torch.where`.

    ## Known false alarms

    Activations are sampled: a few bad elements may be missed in one module and seen in the next.

    ## References

    PyTorch documentation, "Autograd mechanics" and `torch.autograd.set_detect_anomaly`; DeepLocalize (ICSE 2021).
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("activation.nonfinite",)
    explains: ClassVar[tuple[str, ...]] = ("nonfinite-gradients", "nonfinite-loss", "loss-divergence")

    grown: float = 100.0  # times that loss or gradient norm, and the root of it that the weights, grow before it counts

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        broke = _first_bad_step(timeline)
        if broke is None or not (timeline.steps >= broke).any():
            return
        row = int(np.argmax(timeline.steps >= broke))
        origin = (
            _in_weights(timeline, row) or _in_inputs(timeline, row) or _in_forward(timeline, row)
            or _in_loss(timeline, row) or _in_backward(timeline, row) or _in_gradients(timeline, row)
        )  # fmt: skip
        if origin is not None:
            yield self._hit(timeline, origin, row, broke)

    def _hit(self, timeline: Timeline, origin: _Origin, row: int, broke: int) -> Hit:
        step = int(timeline.steps[row])
        name, before, after = self._growth(timeline, row, broke)
        grown = f", after the {name} had gone from {before:.3g} to {after:.3g}" if name else ""
        late = f" (loss or gradient were not finite from step {broke} on)" if broke < step else ""
        alive = np.isfinite(timeline.last_loss) and not (timeline.column("weight.nonfinite")[-1] > 0).any()
        return Hit(
            modules=origin.modules,
            first_step=step,
            last_step=step,
            evidence={"place": origin.place, "first_bad_step": broke, "grown": name}
            | ({"grown_from": before, "grown_to": after} if name else {}),
            message=f"At step {step} {origin.clause}{grown}{late}.",
            remedy=_bounded(timeline, name) if name else origin.remedy,
            severity=Severity.WARNING if alive else Severity.CRITICAL,
            strength=1.0 if name and origin.place != "input" else origin.strength,
        )

    def _growth(self, timeline: Timeline, row: int, broke: int) -> tuple[str, float, float]:
        """What had grown before, from where to where; an empty name where nothing had."""
        past = timeline.pulse("step") <= broke
        weights = np.nan_to_num(timeline.column("weight.norm")[: row + 1].astype(np.float64), posinf=np.nan)
        series = {
            "gradient norm": (timeline.pulse("gradient_norm")[past], self.grown),
            "loss": (np.abs(timeline.loss[timeline.loss_steps <= broke]), self.grown),
            "largest weight norm": (weights.max(axis=1, initial=0.0), self.grown**0.5),
        }
        for name, (values, least) in series.items():
            before, after = growth(values)
            if after >= least * before:
                return name, before, after
        return "", np.nan, np.nan


def _first_bad_step(timeline: Timeline) -> int | None:
    """The first step whose loss, gradient or weights are not finite."""
    frames = (timeline.column("weight.nonfinite") > 0) | ((timeline.column("weight_gradient.nonfinite") > 0) & timeline.trained)
    steps = (
        timeline.loss_steps[~np.isfinite(timeline.loss)],
        timeline.pulse("step")[np.isinf(timeline.pulse("gradient_norm"))],
        timeline.steps[frames.any(axis=1)],
    )
    return min((int(found[0]) for found in steps if len(found)), default=None)


def _fresh(timeline: Timeline, column: str, row: int) -> Mask:
    """Which sites are not finite in this frame and were in all before it; [sites]."""
    bad = timeline.column(column) > 0
    return np.asarray(bad[row] & ~bad[:row].any(axis=0))


def _in_weights(timeline: Timeline, row: int) -> _Origin | None:
    names = parameter_names(timeline, _fresh(timeline, "weight.nonfinite", row))
    if not names:
        return None
    previous = int(timeline.steps[row - 1]) if row else None
    sure = previous == int(timeline.steps[row]) - 1
    since = f"; at step {previous}, the sampled step before, they were" if previous is not None else ""
    update = f": the update of step {previous} made them so from finite gradients" if sure else since
    clause = f"the weights {named(names)} were not finite before the forward pass{update}"
    remedy = Remedy("Look at the optimizer's learning rate and eps, and at whatever else writes to these weights.")
    return _Origin("weights", owners(timeline, names), clause, remedy, strength=3.0 if sure else 1.0)


def _in_inputs(timeline: Timeline, row: int) -> _Origin | None:
    bad = _fresh(timeline, "input.nonfinite", row)
    if not bad.any():
        return None
    names = [name for name, holds in zip(timeline.site_names("input"), bad, strict=True) if holds]
    share = float(timeline.column("input.nonfinite")[row][bad].max())
    remedy = Remedy(
        text="Find the sample that holds it, and drop or repair it.",
        code='assert torch.isfinite(x).all(), "an input is not finite"  # on each batch, before model(x)',
    )
    return _Origin("input", (), f"the input {named(names)} was not finite ({share:.2%} of its elements)", remedy, strength=10.0)


def _in_forward(timeline: Timeline, row: int) -> _Origin | None:
    bad = _fresh(timeline, "activation.nonfinite", row)
    if not bad.any():
        return None
    site = timeline.schema.modules[int(np.argmax(bad))]
    module = timeline.modules.get(site.path)
    role, kind = (module.role, module.type) if module else ("other", "module")
    clause = f"the output of {site.name} ({kind}) was the first that is not finite, with all before it finite"
    return _Origin("forward", (site.path,), clause, Remedy(_hint(role, kind), ANOMALY))


def _hint(role: str, kind: str) -> str:
    if role == "norm":
        return "Raise the eps of this normalisation: its input has no variance."
    if role == "attention" or "softmax" in kind.lower():
        return "See that no row of the attention mask or of the softmax's input is -inf throughout."
    return "Look in this module for log, sqrt, a division, exp or a power, and bound what goes in."


def _in_loss(timeline: Timeline, row: int) -> _Origin | None:
    if not (~np.isfinite(timeline.loss[timeline.loss_steps == timeline.steps[row]])).any():
        return None
    remedy = Remedy("Look in the loss for log(0), 0/0, and a batch whose targets are all ignored.", ANOMALY)
    return _Origin("loss", (), "the loss was not finite, while the outputs of all modules were", remedy)


def _in_backward(timeline: Timeline, row: int) -> _Origin | None:
    bad = _fresh(timeline, "activation_gradient.nonfinite", row)
    if not bad.any():
        return None
    index = int(np.flatnonzero(bad)[-1])
    behind = np.flatnonzero(np.isfinite(timeline.column("activation_gradient.rms")[row, index + 1 :]))
    site = timeline.schema.modules[index]
    following = timeline.schema.modules[index + 1 + int(behind[0])] if len(behind) else None
    source = following.name if following else "the loss"
    hint = f"Keep sqrt, norm, pow and log away from 0 between {site.name} and {source}, also behind torch.where."
    clause = f"the gradient stopped being finite on its way from {source} back to {site.name}"
    modules = (site.path, following.path) if following else (site.path,)
    return _Origin("backward", modules, clause, Remedy(hint, ANOMALY))


def _in_gradients(timeline: Timeline, row: int) -> _Origin | None:
    names = parameter_names(timeline, _fresh(timeline, "weight_gradient.nonfinite", row) & timeline.trained)
    if not names:
        return None
    clause = f"the gradients of {named(names)} were the first that are not finite"
    remedy = Remedy("Find the operation that makes it.", ANOMALY)
    return _Origin("gradients", owners(timeline, names), clause, remedy, strength=3.0)


def _bounded(timeline: Timeline, name: str) -> Remedy:
    norm = f"{clipping_norm(timeline):g}"
    return Remedy(
        text=f"Treat what made the {name} grow; a bound on the gradient keeps the numbers in range until then.",
        code=f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={norm})  # before optimizer.step()",
    )
