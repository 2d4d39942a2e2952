"""Parameters that get a gradient and that no optimizer holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import run_length
from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.records import Stray
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import median_of

TORCH_OPTIMIZERS = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD", "SparseAdam",
)  # fmt: skip

BY_HAND = Remedy(
    text="Move all parameters in each step; freeze those that are meant to stay as they are.",
    code="for parameter in model.parameters():  # in the place of the list that lacks them\n"
    "    parameter.sub_(rate * parameter.grad)",
)


@final
@dataclass(frozen=True)
class OptimizerMissesParameters(Rule):
    """Trainable parameters get a gradient in every step, but no optimizer holds them, so they never change.

    ## What it does

    Finds parameters with `requires_grad` that had a non-zero gradient in ten sampled steps, or in five over 40 steps or more,
    are in no parameter group of any optimizer that steps, and whose norm stayed the same to the last bit. Where the loop
    steps an optimizer that holds not one parameter of the model, it says so after six steps. After ten sampled steps it also
    names layers and parameters that the forward pass uses and that `model.parameters()` does not know, because they stand in
    a plain list, in a plain object, or are made within the forward pass: the autograd graph shows them, and that no optimizer
    holds them or wrote to them.
    Where a loop moves the weights itself and tells of its steps with `scope.step()`, it names parameters that had a gradient
    in as many sampled steps in which others moved, and that stayed the same to the last bit in all of them.

    ## Why it is bad

    These parameters keep their initial values: the rest of the model learns on top of random features, or nothing learns at
    all. The loss often falls a little, so nothing looks broken. The usual ways there: the optimizer was made from a part of
    the model (`model.head.parameters()`), layers were added, replaced or unfrozen after it was made, the model was created
    anew, or a list of layers is no `nn.ModuleList`.

    ## How it is told apart

    Frozen parameters (`requires_grad=False`) get no gradient and are not meant, until they are unfrozen and get one.
    Parameters without a gradient are `detached-parameters`. Parameters that an optimizer holds and that still do not move
    are `weights-not-moving`. A parameter that changes between steps is moved by somebody (another optimizer, a moving average),
    and is left out; but where an optimizer holds tensors that the model no longer has, as after a layer was put in the place of
    another of the same name, what counts is whether it stays the same from some step on. In a loop of steps by hand a gradient
    counts where a step in the same proportion to it as the others' would have moved the parameter by a hundred-thousandth of
    its norm or more, and that reached what was sampled of it.
    Where such a loop moves nothing at all (an input is trained, say) nothing is said.
    Layers in a plain list that an optimizer was given by hand, that are in evaluation mode (a teacher, a net for features
    that is kept out of the checkpoint on purpose), that run without gradients, or that only the loss uses are not meant.

    ## What to do

    Make the optimizer from `model.parameters()` after the last change to the model, or hand it the missing ones with
    `optimizer.add_param_group`. Keep layers in an `nn.ModuleList` or `nn.ModuleDict` and parameters in an
    `nn.ParameterList`, and make them in `__init__`: then they also move with `model.to(...)` and are saved. What is meant to
    stay as it is: set `requires_grad_(False)`, which also saves the gradient.

    ## Known false alarms

    Training only a head while the body is left trainable looks the same, on purpose or not; freeze the body. A generator
    whose optimizer first steps after more than six steps of the discriminator's is told apart only once it has stepped.

    ## References

    Documentation of `torch.optim`, "Constructing it". The stale optimizer is among the silent errors collected for
    TrainCheck (OSDI 2025).
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("weight.norm", "weight_gradient.norm", "fact.steps")
    explains: ClassVar[tuple[str, ...]] = (
        "weights-not-moving", "loss-plateau", "lr-too-low", "vanishing-gradients", "collapsed-output", "exploding-gradients",
        "gradient-spikes", "labels-unrelated",
    )  # fmt: skip

    least_samples: int = 10  # sampled steps with a gradient
    few_samples: int = 5  # the same, where they span many steps: late in a run few are sampled
    far_apart: int = 40  # steps
    foreign_steps: int = 6  # of an optimizer without the model's parameters; a critic may step five times before its actor
    least_ratio: float = 1e-5  # that a step by hand would have had, far above what rounding drops
    critical_share: float = 0.5  # of the trainable elements

    def obstacle(self, timeline: Timeline) -> str | None:
        return None if self._only_foreign(timeline) else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if self._only_foreign(timeline):
            yield self._stale(timeline)
        elif timeline.optimized and len(timeline.frames) >= self.least_samples:
            missed = self._missed(timeline)
            if missed.any():
                yield self._partial(timeline, missed)
            if timeline.info.wiring and timeline.info.wiring.strays:
                yield self._strays(timeline, timeline.info.wiring.strays)
        elif timeline.info.by_hand and len(timeline.frames) >= self.least_samples:
            passed_over = self._passed_over(timeline)
            if passed_over.any():
                yield self._partial(timeline, passed_over)

    def _only_foreign(self, timeline: Timeline) -> bool:
        """Whether steps were made, none by an optimizer of the model, though the loss reaches a model that stands still."""
        foreign = timeline.pulse("foreign") == 1
        reached = timeline.info.wiring.reached if timeline.info.wiring and timeline.info.wiring.graphs else timeline.parameters
        waits = any(timeline.parameters[name].trainable for name in reached if name in timeline.parameters)
        return bool(
            foreign.sum() >= self.foreign_steps and not timeline.optimized and waits and not _still_from(timeline).any()
        )

    def _missed(self, timeline: Timeline) -> Mask:
        known = [timeline.parameters.get(site.path) for site in timeline.schema.parameters]
        outside = np.array([bool(p and not _held(timeline, p.name, p.tied)) for p in known], dtype=bool)
        trainable = np.array([bool(p and p.trainable) for p in known], dtype=bool)
        gradients = timeline.column("weight_gradient.norm") > 0
        thawed = ~gradients[0]  # what was frozen at the start and gets a gradient later
        still = _still_from(timeline)
        fed = self._long_enough(timeline, gradients & (np.arange(len(gradients))[:, None] >= still))
        return np.asarray(outside & (trainable | thawed) & fed & ((still == 0) | _holds_the_replaced(timeline)))

    def _passed_over(self, timeline: Timeline) -> Mask:
        """Which parameters steps by hand leave as they are, though they have gradients as telling as those that move."""
        unchanged, norms = timeline.column("update.unchanged"), timeline.held("weight.norm").astype(np.float64)
        gradients, moves = timeline.column("weight_gradient.norm").astype(np.float64), unchanged < 1
        judged = np.asarray(moves.any(axis=1))[:, None] & np.isfinite(unchanged) & (gradients > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            lengths = timeline.column("update.ratio") * norms / gradients
            expected = median_of(lengths[moves & judged]) * gradients / norms
        telling = judged & (expected >= self.least_ratio) & (expected < np.inf)
        trainable = np.array([bool(p and p.trainable) for p in map(timeline.parameters.get, _paths(timeline))], dtype=bool)
        reached = (timeline.column("weight_gradient.zero") < 1).any(axis=0)
        still = ~moves.any(axis=0) & (_still_from(timeline) == 0)
        return np.asarray(trainable & still & reached & self._long_enough(timeline, telling))

    def _long_enough(self, timeline: Timeline, gradients: Mask) -> Mask:
        """Which parameters had gradients in many sampled steps, or in some that lie far apart; [parameter sites]."""
        counts = gradients.sum(axis=0)
        first, last = np.argmax(gradients, axis=0), len(gradients) - 1 - np.argmax(gradients[::-1], axis=0)
        far = timeline.steps[last] - timeline.steps[first] >= self.far_apart
        return np.asarray((counts >= self.least_samples) | ((counts >= self.few_samples) & far))

    def _partial(self, timeline: Timeline, missed: Mask) -> Hit:
        names = parameter_names(timeline, missed)
        size = sum(timeline.parameters[name].size for name in names)
        total = sum(p.size for p in timeline.info.parameters if p.trainable or p.name in names)
        start = int(_still_from(timeline)[missed].min())
        fed = start + np.flatnonzero((timeline.column("weight_gradient.norm")[start:, missed] > 0).any(axis=1))
        why = "the steps by hand leave them out" if timeline.info.by_hand else "no optimizer holds them"
        moved = f"from step {timeline.steps[start]} on, without changing" if start else "and never changed"
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[fed[0]]),
            last_step=int(timeline.steps[fed[-1]]),
            evidence={"parameters": names, "elements": size, "trainable_elements": total, "share": size / total},
            message=(
                f"{len(names)} trainable parameters ({named(names)}), {size / total:.0%} of the trainable elements, got a "
                f"gradient in {len(fed)} sampled steps {moved}: {why}."
            ),
            remedy=BY_HAND if timeline.info.by_hand else _remedy(next(o for o in timeline.info.optimizers if o.parameters)),
            severity=Severity.CRITICAL if size >= self.critical_share * total else Severity.WARNING,
            strength=10.0,
        )

    def _strays(self, timeline: Timeline, strays: tuple[Stray, ...]) -> Hit:
        first, last = run_length(timeline)
        size = sum(stray.elements for stray in strays)
        total = size + sum(p.size for p in timeline.info.parameters if p.trainable)
        places = [stray.place for stray in strays if stray.place]
        kinds = named(sorted({stray.type for stray in strays}))
        where = (
            f"the forward pass uses: {kinds} in {named(places)}" if places else f"no attribute of the model leads to: {kinds}"
        )
        return Hit(
            modules=(),
            first_step=first,
            last_step=last,
            evidence={"places": places, "types": kinds, "elements": size, "share": size / total},
            message=(
                f"model.parameters() does not know {len(strays)} layers or parameters with {size} elements, {size / total:.0%} "
                f"of all, that {where}. No optimizer holds them and they never change."
            ),
            remedy=_registered(places),
            severity=Severity.CRITICAL if size >= self.critical_share * total else Severity.WARNING,
            strength=10.0,
        )

    def _stale(self, timeline: Timeline) -> Hit:
        first, last = run_length(timeline)
        steps = int((timeline.pulse("foreign") == 1).sum())
        optimizer = next(iter(timeline.info.optimizers), None)
        held = f"The {optimizer.strangers} tensors that {optimizer.type} holds" if optimizer else "The optimizer's tensors"
        return Hit(
            modules=(),
            first_step=first,
            last_step=last,
            evidence={"foreign_steps": steps, "strangers": optimizer.strangers if optimizer else None},
            message=(
                f"{held} are not parameters of the watched model: {steps} optimizer steps left the model as it was. "
                "The model was created anew, or its parameters replaced, after the optimizer was made."
            ),
            remedy=_remedy(optimizer),
            severity=Severity.CRITICAL,
            strength=10.0,
        )


def _registered(places: list[str]) -> Remedy:
    if not places:
        return Remedy(
            "Make layers and parameters in __init__ as attributes of the module, not in forward() or outside of the model."
        )
    name = places[0].partition("[")[0]
    attribute = name.rpartition(".")[2]
    if "[" not in places[0]:
        return Remedy(f"Make the class of what stands in {name} an nn.Module, so that its parameters are the model's.")
    kind = "ModuleDict" if places[0][len(name) + 1] in "'\"" else "ModuleList"
    return Remedy(
        f"Keep the layers of {name} in an nn.{kind}, or bare parameters in an nn.ParameterList, before the optimizer is made.",
        f"self.{attribute} = torch.nn.{kind}({attribute})  # in __init__, in place of the plain one",
    )


def _held(timeline: Timeline, name: str, tied: tuple[str, ...]) -> bool:
    return any(alias in timeline.optimized for alias in (name, *tied))


def _paths(timeline: Timeline) -> list[str]:
    return [site.path for site in timeline.schema.parameters]


def _still_from(timeline: Timeline) -> Indices:
    """The frame from which on each parameter's norm stays the same, 0 where nobody ever changed it; [parameter sites]."""
    norms = timeline.held("weight.norm")
    changed = np.isfinite(norms[:-1]) & (norms[1:] != norms[:-1])
    rows = np.arange(1, len(norms))[:, None]
    return np.asarray(np.where(changed, rows, 0).max(axis=0, initial=0), dtype=np.int64)


def _holds_the_replaced(timeline: Timeline) -> bool:
    """Whether an optimizer of the model holds tensors that are not the model's, as after a layer was put in another's place."""
    return any(optimizer.parameters and optimizer.strangers for optimizer in timeline.info.optimizers)


def _remedy(optimizer: OptimizerInfo | None) -> Remedy:
    callee, arguments = (_callee(optimizer), _arguments(optimizer)) if optimizer else ("torch.optim.SGD", ", lr=0.01")
    return Remedy(
        text="Make the optimizer from all parameters of the model, after the last change to the model.",
        code=f"optimizer = {callee}(model.parameters(){arguments})  # below the line that makes or changes the model",
    )


def _callee(optimizer: OptimizerInfo) -> str:
    return f"torch.optim.{optimizer.type}" if optimizer.type in TORCH_OPTIMIZERS else optimizer.type


def _arguments(optimizer: OptimizerInfo) -> str:
    given = {"lr": optimizer.learning_rate} | {name: optimizer.settings.get(name, 0.0) for name in ("momentum", "weight_decay")}
    return "".join(f", {name}={value:g}" for name, value in given.items() if value)
