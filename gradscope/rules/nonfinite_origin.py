"""The place where the first NaN or infinity stands."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Mask
from gradscope.evidence import broken_gradients
from gradscope.evidence import calm_clipping
from gradscope.evidence import growth
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.records import Hit
from gradscope.records import Origin
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
    evidence: Mapping[str, str | float | None] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class NonfiniteOrigin(Rule):
    """Here is where the first NaN or infinity of the run came from.

    ## What it does

    On the CPU the loss is known as `backward()` is called, on every step: where it is not finite, the graph is still there,
    and is gone down to the first operation whose result is not finite while what went into it is. Elsewhere the rule takes
    the first step whose loss, gradient or weights are not finite, and the first sampled step from there on, and goes through
    it in the order in which it was computed: weights before the step, inputs, modules forward, loss, modules backward,
    gradients. The first that is not finite is the origin; all later ones follow from it.

    ## Why it is bad

    Within one step NaN is everywhere, and whatever one looks at first seems to be broken.

    ## How it is told apart

    Where loss, gradient or weights had grown a hundredfold before, the numbers ran out of range: the cause is what made them
    grow, and this finding stands behind it. Modules that hold infinities in healthy steps (attention masks) are left out,
    and so is everything that left loss, gradients and weights finite. What a module took that is not finite, while the whole
    input of the model is, the model has made itself before: a logarithm of its input, or a division by its deviation.

    ## What to do

    Inputs: look for the sample. Norms: raise `eps`. Softmax and attention: rows with nothing but -inf. Loss: log(0), 0/0, a
    batch without targets. A probability of zero has no slope either: where relu(o) / sum was put into a logarithm, a bound
    kept the loss finite and did not bring it where a cross entropy of the logits came in as many steps. Backward: derivatives
    of sqrt, norm and pow at 0, also behind `torch.where`.

    ## Known false alarms

    Activations are sampled: a few bad elements may be missed in one module and seen in the next. The graph knows only what its
    operations keep: after one that keeps nothing (a sum), the one that takes the result may be named.

    ## References

    PyTorch documentation, "Autograd mechanics" and `torch.autograd.set_detect_anomaly`; DeepLocalize (ICSE 2021).
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("activation.nonfinite",)
    explains: ClassVar[tuple[str, ...]] = ("nonfinite-gradients", "nonfinite-loss", "loss-divergence")

    grown: float = 100.0  # times that loss or gradient norm, and the root of it that the weights, grow before it counts

    def obstacle(self, timeline: Timeline) -> str | None:
        return None if timeline.info.origin is not None else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        told = timeline.info.origin
        if told is not None and told.step <= timeline.step_count:  # a training may die of it within the step
            row = int(np.searchsorted(timeline.steps, told.step, side="right")) - 1
            yield self._hit(timeline, _as_told(timeline, told), row, told.step, told.step)
            return
        broke = _first_bad_step(timeline)
        if broke is None or not (timeline.steps >= broke).any():
            return
        row = int(np.argmax(timeline.steps >= broke))
        origin = (
            _in_weights(timeline, row) or _in_inputs(timeline, row) or _in_forward(timeline, row)
            or _in_loss(timeline, row) or _in_backward(timeline, row) or _in_gradients(timeline, row)
        )  # fmt: skip
        if origin is not None:
            yield self._hit(timeline, origin, row, int(timeline.steps[row]), broke)

    def _hit(self, timeline: Timeline, origin: _Origin, row: int, step: int, broke: int) -> Hit:
        name, before, after = self._growth(timeline, row, broke)
        grown = f", after the {name} had gone from {before:.3g} to {after:.3g}" if name else ""
        late = f" (loss or gradient were not finite from step {broke} on)" if broke < step else ""
        alive = np.isfinite(timeline.last_loss) and not (timeline.held("weight.nonfinite")[-1:] > 0).any()
        return Hit(
            modules=origin.modules,
            first_step=step,
            last_step=step,
            evidence={
                "place": origin.place,
                "first_bad_step": broke,
                "grown": name,
                **origin.evidence,
                **({"grown_from": before, "grown_to": after} if name else {}),
            },
            message=f"At step {step} {origin.clause}{grown}{late}.",
            remedy=_bounded(timeline, name) if name else origin.remedy,
            severity=Severity.WARNING if alive else Severity.CRITICAL,
            strength=1.0 if name and origin.place != "input" else origin.strength,
        )

    def _growth(self, timeline: Timeline, row: int, broke: int) -> tuple[str, float, float]:
        """What had grown before, from where to where; an empty name where nothing had."""
        past = timeline.pulse("step") <= broke
        weights = np.nan_to_num(timeline.held("weight.norm")[: row + 1].astype(np.float64), posinf=np.nan)
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


# -- as the graph told it at the step itself


def _as_told(timeline: Timeline, told: Origin) -> _Origin:
    evidence = {"node": told.node, "dtype": told.dtype, "largest": told.largest, "module": told.module, "before": told.before}
    modules = tuple(path for path in ((told.before,) if told.place == "between" else ()) + (told.module,) if path is not None)
    place, strength, remedy = told.place, 4.0, _told_remedy(timeline, told)
    if told.place == "parameter":
        norm = timeline.pulse("gradient_norm")[timeline.pulse("step") == told.step - 1]
        sure = len(norm) > 0 and bool(np.isfinite(norm[-1]))
        made = f"the update of step {told.step - 1} made them so from finite gradients" if sure else "an update made them so"
        clause = f"the weights of {_shown(told.module)} were not finite before the forward pass: {made}"
        place, strength = "weights", 3.0 if sure else 1.0
    elif told.place == "input":
        clause, strength = f"an input of the model was not finite, as {_shown(told.module)} took it", 10.0
    elif told.place == "target":
        after = f"after {_shown(told.before)}, " if told.before else ""
        clause = f"a target or weight of the loss was not finite, as {told.node or 'an operation'} took it {after}in the loss"
    elif told.place == "backward":
        source = f"while that of {told.before} was finite" if told.before else "on its way from the loss"
        clause = f"the gradient of the weights of {_shown(told.module)} was not finite, {source}"
    else:
        clause = f"{_operation(told)} was the first whose result is not finite{_inputs(told)}"
    return _Origin(place, modules, clause, remedy, strength, evidence)


def _operation(told: Origin) -> str:
    """ "LogBackward0 (float32) between first and second"."""
    name = f"{told.node or 'an operation'}{f' ({told.dtype})' if told.dtype else ''}"
    if told.place == "forward":
        return f"{name} in {_shown(told.module)}"
    if told.place == "between":
        return f"{name} {f'between {told.before} and' if told.before else 'before'} {_shown(told.module)}"
    return f"{name} {f'after {told.before}, ' if told.before else ''}in the loss"


def _inputs(told: Origin) -> str:
    return f"; what went into it was finite, {told.largest:.3g} at most" if told.largest is not None else ""


def _shown(path: str | None) -> str:
    return path or "the model"


def _told_remedy(timeline: Timeline, told: Origin) -> Remedy:
    if told.place == "parameter":
        return Remedy("Look at the optimizer's learning rate and eps, and at whatever else writes to these weights.")
    if told.place == "input":
        return _INPUT_REMEDY
    if told.place == "target":
        return _TARGET_REMEDY
    if told.place == "backward":
        hint = f"Keep sqrt, norm, pow and log away from 0 after {_shown(told.module)}, also behind torch.where."
        return Remedy(hint, ANOMALY)
    if told.dtype == "float16":
        return Remedy("Work this operation out in float32, or in bfloat16, whose range is as wide: float16 ends at 65,504.")
    if told.place == "between" and told.before is None and told.node is None:
        return Remedy(
            f"Look in forward(), before {_shown(told.module)}, for a logarithm, a root, a power or a division, and keep its "
            "operand where it has a result: log1p takes nothing below -1, and the deviation of a single row is NaN."
        )
    if told.place == "loss" and (told.node or "").startswith("LogBackward"):
        return _from_logits(timeline)
    for name, text, code in _BY_NODE:
        if (told.node or "").startswith(name):
            return Remedy(text, code)
    module = timeline.modules.get(told.module or "")
    if told.place == "forward" and module is not None:
        return Remedy(_hint(module.role, module.type), ANOMALY)
    return Remedy("Look there for log, sqrt, a division, exp or a power, and bound what goes in.", ANOMALY)


def _from_logits(timeline: Timeline) -> Remedy:
    """A bound keeps the logarithm of a probability finite, and its slope is zero where it bounds: nothing is learned there."""
    several = not timeline.layers or timeline.layers[-1].weight.shape[0] > 1
    function = "cross_entropy" if several else "binary_cross_entropy_with_logits"
    return Remedy(
        f"Work the logarithm of a probability out from the logits: {function} takes what the last layer puts out. A bound "
        "alone (x.clamp_min(1e-8)) keeps it finite, but from where it bounds no gradient comes.",
        f"loss = torch.nn.functional.{function}(output, y)  # output: the last layer's, no softmax, sigmoid or ReLU on it\n"
        "# where it is no probability: x = torch.log(x.clamp_min(1e-8))",
    )


_INPUT_REMEDY = Remedy(
    text="Find the sample that holds it, and drop or repair it.",
    code='assert torch.isfinite(x).all(), "an input is not finite"  # on each batch, before model(x)',
)
_TARGET_REMEDY = Remedy(
    text="Find where the target or weight comes from: often a division by the standard deviation of a single sample, 0 / 0.",
    code='assert torch.isfinite(y).all(), "a target is not finite"  # likewise for what the loss is multiplied with',
)
_SKIP_IGNORED = (
    "# and in place of backward() and step():\nif (y != -100).any():  # the loss's ignore_index\n    optimizer.zero_grad()\n"
    "    loss.backward()\n    optimizer.step()"
)
_BY_NODE = (
    ("Log1p", "Bound the logarithm's argument from below.", "x = torch.log1p(x.clamp_min(-1 + 1e-6))"),
    ("LogSoftmax", "Bound the logits: they are out of the range of their type.", None),
    ("Log", "Bound the logarithm's argument from below.", "x = torch.log(x.clamp_min(1e-8))"),
    ("Div", "Keep the divisor away from zero.", "x = x / (divisor + 1e-8)  # of a divisor that is never negative"),
    ("Reciprocal", "Keep the divisor away from zero.", "x = 1 / (divisor + 1e-8)  # of a divisor that is never negative"),
    ("Sqrt", "Bound the root's argument from below: at zero its derivative is infinite.", "x = torch.sqrt(x.clamp_min(1e-8))"),
    ("Rsqrt", "Bound the root's argument from below.", "x = torch.rsqrt(x.clamp_min(1e-8))"),
    ("Exp", "Bound the exponent from above.", "x = torch.exp(x.clamp_max(80))"),
    ("Pow", "Bound the base away from zero, and the power within the range of its type.", None),
    ("Softmax", "See that no row of what goes into the softmax is -inf throughout, as a mask may make it.", None),
    ("NllLoss", "Leave out batches in which every target is ignored: the mean over none is NaN.",
     _SKIP_IGNORED),
)  # fmt: skip


# -- as the frames show it


def _first_bad_step(timeline: Timeline) -> int | None:
    """The first step whose loss, gradient or weights are not finite."""
    frames = (timeline.column("weight.nonfinite") > 0) | ((timeline.column("weight_gradient.nonfinite") > 0) & timeline.trained)
    steps = (
        timeline.loss_steps[~np.isfinite(timeline.loss)],
        broken_gradients(timeline),
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
    clause = f"the input {named(names)} was not finite ({share:.2%} of its elements)"
    return _Origin("input", (), clause, _INPUT_REMEDY, strength=10.0)


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
    clip = calm_clipping(timeline)
    treat = f"Treat what made the {name} grow."
    return Remedy(treat) if clip is None else Remedy(f"{treat} {clip.text}", clip.code)
