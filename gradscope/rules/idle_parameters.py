"""Parameters of modules that never run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.evidence import PATIENCE
from gradscope.evidence import Mask
from gradscope.evidence import ever
from gradscope.evidence import named
from gradscope.evidence import owners
from gradscope.evidence import parameter_names
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class IdleParameters(Rule):
    """An optimizer holds parameters of modules that never run with gradients, so they stay as they were made.

    ## What it does

    Finds trainable parameters that an optimizer holds, that no loss reached in any of the three or more autograd graphs
    read, that got no gradient in any sampled step of the first 20 steps and after, and whose module was never seen running
    with gradients.

    ## Why it is bad

    Mostly it is not: a head that this task does not use costs memory and nothing else. But a branch that was meant to be
    called and is not, or that runs under `torch.no_grad()`, is missing from what is trained.

    ## How it is told apart

    - A module that ran and whose parameters got no gradient has a cut behind it, and so has one that ran under
      `torch.no_grad()` in front of a module that ran with gradients: `detached-parameters`.
    - Parameters with a gradient that no optimizer holds are `optimizer-misses-parameters`.
    - Frozen parameters (`requires_grad=False`) are idle on purpose, and not meant.
    - Experts that are chosen now and then, and layers dropped at random, run in some sampled step, or a loss reached them.
    - Parameters used without their module's call (a projection inside an attention) are reached by the loss.

    It is for information. It is a warning only where half of the elements that the optimizer holds or more are idle, and
    the training does not work after 100 steps.

    ## What to do

    Call the module in `forward`, or leave its parameters out of the optimizer; take a `torch.no_grad()` from around it.

    ## Known false alarms

    A part of the model whose turn comes later in the training.

    ## References

    PyTorch documentation, `DistributedDataParallel`, `find_unused_parameters`, which meets the same parameters.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("activation.rms", "weight_gradient.norm", "fact.optimizer", "fact.wiring")
    least_steps: ClassVar[int] = 20
    explains: ClassVar[tuple[str, ...]] = ("loss-plateau", "collapsed-output", "labels-unrelated")

    least_graphs: int = 3  # autograd graphs read
    least_samples: int = 10  # sampled steps in which other parameters got a gradient
    large_share: float = 0.5  # of the elements that the optimizer holds

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        wiring = timeline.info.wiring
        if wiring is None or wiring.graphs < self.least_graphs:
            return
        norms = timeline.column("weight_gradient.norm")
        samples = int((norms > 0).any(axis=1).sum())
        idle = timeline.trained & ~ever(norms > 0) & self._never_ran(timeline, set(wiring.reached))
        if samples >= self.least_samples and idle.any():
            yield self._hit(timeline, idle, samples)

    def _never_ran(self, timeline: Timeline, reached: set[str]) -> Mask:
        ran = {site.path for site in timeline.schema.modules}.union(m.path for m in timeline.info.modules if m.ungraded)
        known = [timeline.parameters.get(site.path) for site in timeline.schema.parameters]
        # A container's own run does not show where it hands on its child's tensor, so its own parameters are left out.
        leaves = {module.path for module in timeline.info.modules if module.role != "container"}
        return np.array([bool(p and p.name not in reached and p.module in leaves - ran) for p in known], dtype=bool)

    def _hit(self, timeline: Timeline, idle: Mask, samples: int) -> Hit:
        names = parameter_names(timeline, idle)
        modules = owners(timeline, names)
        size = sum(timeline.parameters[name].size for name in names)
        total = sum(timeline.parameters[name].size for name in parameter_names(timeline, timeline.trained))
        grave = size >= self.large_share * total and timeline.step_count >= PATIENCE and not works(timeline)
        return Hit(
            modules=modules,
            first_step=int(timeline.steps[0]),
            last_step=int(timeline.steps[-1]),
            evidence={"parameters": names, "elements": size, "share": size / total, "sampled_steps": samples},
            message=(
                f"{named(modules)} never ran with gradients in {samples} sampled steps: {len(names)} parameters, "
                f"{size / total:.0%} of the elements that the optimizer holds, stay as they were made."
            ),
            remedy=Remedy(
                f"Call {named(modules)} in forward, outside torch.no_grad(); or freeze what this training does not use.",
                f"for name in {list(modules)!r}:\n    model.get_submodule(name).requires_grad_(False)  # if it has no use",
            ),
            severity=Severity.WARNING if grave else Severity.INFO,
            strength=4.0,
        )
