"""Parameters in front of a cut in the graph: the loss never reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import Mask
from gradscope.evidence import ever
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import run_length
from gradscope.evidence import trains_others
from gradscope.evidence import unless_works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

_UNREACHED = Remedy(
    "Call backward() on a loss worked out from the model's output itself, without torch.no_grad(), .item(), .data, .detach(), "
    "numpy, torch.tensor(…) or argmax on the way; a loss that has to be told requires_grad = True has lost its graph."
)

_ADDED_AS_A_NUMBER = Remedy(
    "Add the loss of what they put out as a tensor, without .item(), float() or .detach(); or freeze what has no use."
)


@final
@dataclass(frozen=True)
class DetachedParameters(Rule):
    """Modules take part in the forward pass, but the graph is cut behind them, so the loss gives them no gradient.

    ## What it does

    Finds trainable parameters that the optimizer holds, whose modules ran in the forward pass, and that got no gradient in
    any of at least ten sampled steps, while others did. The autograd graph has to agree: no loss reaches them. The message
    names the modules on both sides of the cut. A module that ran under `torch.no_grad()` counts where the next module with
    gradients took what it put out.

    Modules that ran, with nothing behind them that a loss is worked out from, and trained ones in front of them, are told of
    as an aside: a head whose loss was added as a number, `loss + second.item()`, or one that this training has no use for.

    Where no parameter at all had a gradient in five sampled steps, no step moved anything, and no graph of a loss led to the
    model, it says so at once: the loss is a new tensor, or `backward()` was not called on it.

    ## Why it is bad

    Everything in front of the cut keeps its initial values, and the optimizer does not complain: it skips what has no
    gradient. The part behind learns on random features.

    ## How it is told apart

    A parameter that a loss reaches and whose gradient is exactly zero is not detached: units up- or downstream are dead
    (`dead-units`). Modules that never ran are idle, and so are those that ran under `torch.no_grad()` in a validation or
    for a target: no module with gradients takes what they put out. Frozen parameters and those that no optimizer holds are
    not meant. A module that ran and whose output nothing uses (the pooler of many encoders) looks like a head whose loss
    was made a number: what stands in front of both does get gradient. So without a cut seen in the graph, parameters count
    only where nothing but detached ones stand in front; the others are an aside.
    Where the graph of a loss does lead to the model and no gradient is left at the step, somebody cleared it in between, and
    where an optimizer also holds tensors of others, these may be all that is trained for now: neither is meant.
    One gradient in any sampled step clears a parameter: stop-gradients of BYOL, VQ codes, and a discriminator's step on
    detached samples reach their parameters by another way, or in another step.

    ## What to do

    Between the two modules named, look for `.detach()`, `.data`, `.item()`, a way through numpy, `torch.tensor(x)`,
    `torch.no_grad()`, `argmax`, or a cast to integers, and pass the tensor itself.

    ## Known false alarms

    A head trained on purpose on detached features, or on those of a body under `torch.no_grad()`, with the body in the
    optimizer all the same: give the optimizer the body when its phase begins, or freeze it until then.

    ## References

    PyTorch documentation, "Autograd mechanics"; AutoTrainer and DeepDiagnosis (ICSE 2021, 2022) meet the same fault as
    "unchanged weight".
    """

    family: ClassVar[str] = "gradient flow"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("activation.rms", "weight_gradient.norm", "fact.optimizer", "fact.wiring")
    least_steps: ClassVar[int] = 10
    explains: ClassVar[tuple[str, ...]] = (
        "loss-plateau", "vanishing-gradients", "collapsed-output", "lr-too-low", "idle-parameters", "labels-unrelated",
    )  # fmt: skip

    least_samples: int = 10  # sampled steps, none of them with a gradient
    least_idle: int = 5  # the same, where no parameter at all has one and nothing moves

    def obstacle(self, timeline: Timeline) -> str | None:
        return None if self._all_idle(timeline) else Rule.obstacle(self, timeline)

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if self._all_idle(timeline):
            yield _nothing_reached(timeline)
            return
        if len(timeline.frames) < self.least_samples:
            return
        norms = timeline.column("weight_gradient.norm")
        fed = ever(norms > 0)
        samples = int((norms > 0).any(axis=1).sum())  # a step in which nothing got gradient says nothing
        without = timeline.trained & ~fed & self._ran(timeline) & self._unreached(timeline)
        cut = self._cut(timeline, parameter_names(timeline, without))
        detached = without if cut else without & self._in_front(timeline, fed)
        if samples < self.least_samples:
            return
        if detached.any():
            yield self._hit(timeline, detached, samples, cut)
        elif without.any():
            yield self._unused(timeline, without, samples)

    def _all_idle(self, timeline: Timeline) -> bool:
        """Whether the optimizer steps, but no loss has led to any parameter so far, and none has moved."""
        wiring, trained = timeline.info.wiring, timeline.trained
        reached = wiring is not None and bool(wiring.reached)
        if not trained.any() or reached or trains_others(timeline):
            return False
        ratio, norms = timeline.column("update.ratio")[:, trained], timeline.column("weight_gradient.norm")
        still = (ratio == 0).any(axis=1).sum() >= self.least_idle and not (ratio > 0).any()
        return bool(still and np.isnan(norms).all() and np.isnan(timeline.gradient_norms).all())

    def _ran(self, timeline: Timeline) -> Mask:
        """Whether the module that owns a parameter ran in the forward pass; [parameter sites]."""
        seen = ever(np.isfinite(timeline.column("activation.rms")))
        paths = {site.path for site, ran in zip(timeline.schema.modules, seen, strict=True) if ran}
        paths |= {module.path for module in timeline.info.modules if module.ungraded}
        known = [timeline.parameters.get(site.path) for site in timeline.schema.parameters]
        return np.array([bool(p and p.module in paths) for p in known], dtype=bool)

    def _unreached(self, timeline: Timeline) -> Mask:
        wiring = timeline.info.wiring
        reached = set(wiring.reached) if wiring and wiring.graphs else {site.path for site in timeline.schema.parameters}
        return np.array([site.path not in reached for site in timeline.schema.parameters], dtype=bool)

    def _cut(self, timeline: Timeline, names: list[str]) -> tuple[str, str] | None:
        """The cut in the graph that stands behind these parameters, if one was seen."""
        modules, order = owners(timeline, names), list(dict.fromkeys(site.path for site in timeline.schema.modules))
        trained = set(owners(timeline, parameter_names(timeline, timeline.trained)))
        for cut in timeline.info.wiring.cuts if timeline.info.wiring else ():
            if cut[0] in modules:
                return cut
            before = order[: order.index(cut[0]) + 1] if cut[0] in order else []
            if next((path for path in reversed(before) if path in trained), None) in modules:
                return cut
        return None

    def _in_front(self, timeline: Timeline, fed: Mask) -> Mask:
        """Parameters with no trained parameter that gets gradient in front of them."""
        return np.asarray(np.cumsum(fed & timeline.trained) == 0)

    def _hit(self, timeline: Timeline, detached: Mask, samples: int, cut: tuple[str, str] | None) -> Hit:
        names = parameter_names(timeline, detached)
        others = parameter_names(timeline, ever(timeline.column("weight_gradient.norm") > 0))
        share, modules = _share(timeline, names), owners(timeline, names)
        where = f" The graph is cut between {cut[0]} and {cut[1]}." if cut else ""
        ungraded = [path for path in modules if timeline.modules[path].ungraded]
        where += f" Without gradients, as under torch.no_grad(), ran: {named(ungraded)}." if ungraded else ""
        return Hit(
            modules=modules,
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1]),
            evidence={"parameters": names, "share": share, "sampled_steps": samples, "cut": list(cut) if cut else None},
            message=(
                f"{len(names)} parameters ({named(names)}), {share:.0%} of the elements that the optimizer holds, got "
                f"no gradient in {samples} sampled steps, while {named(others, most=1)} did: no loss reaches them.{where}"
            ),
            remedy=_remedy(cut),
            severity=unless_works(timeline, Severity.WARNING),
            strength=10.0,
        )

    def _unused(self, timeline: Timeline, unused: Mask, samples: int) -> Hit:
        names = parameter_names(timeline, unused)
        share = _share(timeline, names)
        return Hit(
            modules=owners(timeline, names),
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1]),
            evidence={"parameters": names, "share": share, "sampled_steps": samples, "cut": None},
            message=(
                f"The modules of {len(names)} parameters ({named(names)}), {share:.0%} of the elements that the "
                f"optimizer holds, ran, and no gradient came to them in {samples} sampled steps: no loss uses their output."
            ),
            remedy=_ADDED_AS_A_NUMBER,
            severity=Severity.INFO,
            strength=4.0,
        )


def _share(timeline: Timeline, names: list[str]) -> float:
    """Of all elements that the optimizer holds, those of these parameters."""
    own, held = (
        sum(timeline.parameters[name].size for name in some) for some in (names, parameter_names(timeline, timeline.trained))
    )
    return own / held


def _nothing_reached(timeline: Timeline) -> Hit:
    first, last = run_length(timeline)
    names, samples = parameter_names(timeline, timeline.trained), len(timeline.frames)
    called = bool((timeline.pulse("backwards") > 0).any())
    why = (
        "backward() was called, but no graph leads from the loss to the model"
        if called
        else "no backward() of a loss that leads there was seen"
    )
    return Hit(
        modules=owners(timeline, names),
        first_step=first,
        last_step=last,
        evidence={"parameters": names, "share": 1.0, "sampled_steps": samples, "cut": None},
        message=(
            f"None of the {len(names)} parameters that the optimizer holds had a gradient in {samples} sampled steps, and no "
            f"step moved any: {why}."
        ),
        remedy=_UNREACHED,
        severity=Severity.CRITICAL,
        strength=10.0,
    )


def _remedy(cut: tuple[str, str] | None) -> Remedy:
    place = f"between {cut[0]} and {cut[1]}" if cut else "behind the last of these modules"
    culprits = ".detach(), .data, numpy round trip, torch.no_grad() or integer cast"
    return Remedy(f"Take out the {culprits} {place}, and pass the tensor itself.")
