"""A whole training step, remembered so that the loss of its batch can be worked out anywhere along the step that was made."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.probe.forward_again import Forward
from gradscope.capture.probe.loss_again import Made
from gradscope.capture.probe.loss_again import Term
from gradscope.capture.probe.room import Needs
from gradscope.capture.probe.room import obstacle
from gradscope.capture.probe.step_again import StepAgain
from gradscope.capture.probe.step_again import can_step_again
from gradscope.capture.pulses import is_loss_scale

SMALL = 4 << 20  # bytes of weights and state, below which copies take less time than telling whether they are needed

Weights = Mapping[int, torch.Tensor]  # by the id of the parameter that each stands for
Change = Callable[[Any], Any]  # of the arguments of a forward pass


@dataclass(frozen=True)
class Seen:
    """A forward pass and the loss that came of it."""

    forward: Forward
    term: Term  # the loss as a function of outputs and weights
    loss: torch.Tensor  # as backward() was called on it
    scale: torch.Tensor | None  # what it was multiplied with last, should that be a GradScaler's doing


@final
class Replay:
    """One step: its forward pass, its loss, and the weights and the optimizer's state from before it.

    Holds copies of what the optimizer holds: one of the parameters, and one of its state where it is to make its step
    ``again``.
    """

    def __init__(self, seen: Seen, optimizer: Optimizer, *, again: bool) -> None:
        self.forward = seen.forward
        self._seen = seen
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = {id(p): p for p in held}
        self.before: Weights = {key: p.detach().clone() for key, p in self.parameters.items()}
        self._stepper = StepAgain(optimizer) if again and can_step_again(optimizer) else None

    @property
    def steps_again(self) -> bool:
        """Whether the optimizer's step can be made again with another gradient."""
        return self._stepper is not None

    @property
    def after(self) -> Weights:
        """The weights as the step has left them: the model's own, not to be written to."""
        return {key: parameter.detach() for key, parameter in self.parameters.items()}

    @cached_property
    def _scale(self) -> float:
        factor = 1.0 if self._seen.scale is None else float(self._seen.scale)
        return factor if is_loss_scale(factor) else 1.0

    @property
    def seen(self) -> float:
        """The loss as the training saw it. Waits for the device."""
        return float(self._seen.loss) / self._scale

    def loss(self, weights: Weights, *, change: Change | None = None, factor: float = 1.0) -> float:
        """The loss of the step's batch with these weights, times ``factor``. Waits for the device."""
        with torch.no_grad():
            return factor * float(self._seen.term(Made(self.forward.again(weights, change=change), weights))) / self._scale

    def gradient(self, weights: Weights, *, change: Change | None = None, factor: float = 1.0) -> dict[int, torch.Tensor]:
        """The gradient of that loss; parameters that it does not reach are left out."""
        with torch.enable_grad():
            leaves = {key: weight.detach().requires_grad_() for key, weight in weights.items()}
            loss = (factor / self._scale) * self._seen.term(Made(self.forward.again(leaves, change=change), leaves))
            wanted = {key: leaf for key, leaf in leaves.items() if self.parameters[key].requires_grad}
            found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return {key: gradient for key, gradient in zip(wanted, found, strict=True) if gradient is not None}

    def step(self, weights: Weights, gradients: dict[int, torch.Tensor]) -> Weights:
        """Where the optimizer would have gone from these weights with these gradients, which are used up."""
        if self._stepper is None:
            raise RuntimeError("this optimizer's step cannot be made again")
        return self._stepper.step(weights, gradients)


def along(before: Weights, after: Weights, length: float) -> Weights:
    """The weights at ``before + length · (after - before)``; the very tensors at 0 and at 1."""
    if length in (0.0, 1.0):
        return after if length else before
    starts = list(before.values())
    with torch.no_grad():
        return dict(zip(before, torch._foreach_lerp(starts, [after[key] for key in before], length), strict=True))


def slope(replay: Replay) -> float:
    """The gradient that the optimizer used times the step that it made. Waits for the device."""
    total = 0.0
    with torch.no_grad():
        for key, parameter in replay.parameters.items():
            if parameter.grad is not None and parameter.grad.layout is torch.strided:
                moved = parameter.detach() - replay.before[key]
                total += float((parameter.grad.detach() * moved).sum(dtype=torch.float32))
    return total


def is_small(optimizer: Optimizer) -> bool:
    """Whether copies of all that this optimizer holds are hardly worth a thought."""
    return sum(need.weights + need.state for need in _needs(optimizer, again=True).values()) <= SMALL


def lacks_memory(optimizer: Optimizer, *, again: bool) -> str | None:
    """Why a step of this optimizer cannot be remembered, as a clause; None where there is room for the copies."""
    again = again and can_step_again(optimizer)
    return obstacle(_needs(optimizer, again=again), again=again)


def _needs(optimizer: Optimizer, *, again: bool) -> dict[torch.device, Needs]:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [value for state in optimizer.state.values() for value in state.values()] if again else []
    state = [value for value in kept if isinstance(value, torch.Tensor)]
    devices = dict.fromkeys(tensor.device for tensor in (*held, *state))
    return {device: Needs(_bytes(held, device), _bytes(state, device)) for device in devices}


def _bytes(tensors: Sequence[torch.Tensor], device: torch.device) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor.device == device)
