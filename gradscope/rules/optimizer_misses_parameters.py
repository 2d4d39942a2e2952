"""Parameters that get a gradient and that no optimizer holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

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

TORCH_OPTIMIZERS = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD", "SparseAdam",
)  # fmt: skip


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

    ## Why it is bad

    These parameters keep their initial values: the rest of the model learns on top of random features, or nothing learns at
    all. The loss often falls a little, so nothing looks broken. The usual ways there: the optimizer was made from a part of
    the model (`model.head.parameters()`), layers were added, replaced or unfrozen after it was made, the model was created
    anew, or a list of layers is no `nn.ModuleList`.

    ## How it is told apart

    Frozen parameters (`requires_grad=False`) get no gradient and are not meant, until they are unfrozen and get one.
    Parameters without a gradient are `detached-parameters`. Parameters that an optimizer holds and that still do not move
    are `weights-not-moving`. A parameter that changes between steps is moved by somebody (another optimizer, a moving
    average), and is left out.
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
    needs: ClassVar[tuple[str, ...]] = ("weight.norm", "weight_gradient.norm", "fact.optimizer")
    explains: ClassVar[tuple[str, ...]] = (
        "weights-not-moving", "loss-plateau", "lr-too-low", "vanishing-gradients", "collapsed-output", "exploding-gradients",
        "gradient-spikes", "labels-unrelated",
    )  # fmt: skip

    least_samples: int = 10  # sampled steps with a gradient
    few_samples: int = 5  # the same, where they span many steps: late in a run few are sampled
    far_apart: int = 40  # steps
    foreign_steps: int = 6  # of an optimizer without the model's parameters; a critic may step five times before its actor
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

    def _only_foreign(self, timeline: Timeline) -> bool:
        """Whether steps were made, none by an optimizer of the model, though the loss reaches a model that stands still."""
        foreign = timeline.pulse("foreign") == 1
        reached = timeline.info.wiring.reached if timeline.info.wiring and timeline.info.wiring.graphs else timeline.parameters
        waits = any(timeline.parameters[name].trainable for name in reached if name in timeline.parameters)
        return bool(foreign.sum() >= self.foreign_steps and not timeline.optimized and waits and not _moved(timeline).any())

    def _missed(self, timeline: Timeline) -> Mask:
        known = [timeline.parameters.get(site.path) for site in timeline.schema.parameters]
        outside = np.array([bool(p and not _held(timeline, p.name, p.tied)) for p in known], dtype=bool)
        trainable = np.array([bool(p and p.trainable) for p in known], dtype=bool)
        gradients = timeline.column("weight_gradient.norm") > 0
        thawed = ~gradients[0]  # what was frozen at the start and gets a gradient later
        fed = self._long_enough(timeline, gradients)
        return np.asarray(outside & (trainable | thawed) & fed & ~_moved(timeline))

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
        fed = np.flatnonzero((timeline.column("weight_gradient.norm")[:, missed] > 0).any(axis=1))
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[fed[0]]),
            last_step=int(timeline.steps[fed[-1]]),
            evidence={"parameters": names, "elements": size, "trainable_elements": total, "share": size / total},
            message=(
                f"{len(names)} trainable parameters ({named(names)}), {size / total:.0%} of the trainable elements, got a "
                f"gradient in {len(fed)} sampled steps and never changed: no optimizer holds them."
            ),
            remedy=_remedy(next(o for o in timeline.info.optimizers if o.parameters)),
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


def _moved(timeline: Timeline) -> Mask:
    """Which parameters' norms changed between sampled steps, by whomever; [parameter sites]."""
    norms = timeline.column("weight.norm")
    lowest, highest = (np.where(np.isnan(norms), fill, norms) for fill in (np.inf, -np.inf))
    return np.asarray(lowest.min(axis=0, initial=np.inf) < highest.max(axis=0, initial=-np.inf))


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
