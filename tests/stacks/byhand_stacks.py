"""Loops that move the weights themselves, with no optimizer."""

from __future__ import annotations

import torch

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

SECTION = "Functions of parameters"


def steps_by_hand(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """``backward()``, and an update of one's own that clears the gradients too, as in an introduction to the matter."""
    model = perceptron()
    scope = eye.attach(model)
    eye.uses("scope.step()")
    rate = 30.0 if fault == "rate" else 0.1
    moved = [*model[0].parameters(), *model[4].parameters()] if fault == "left_out" else list(model.parameters())
    for inputs, labels in classes(steps):
        loss = LOSS(model(inputs), labels)
        loss.backward()
        with torch.no_grad():
            for parameter in moved:
                parameter -= rate * parameter.grad
                if fault != "zero_grad":
                    parameter.grad = None
        scope.step()
        eye.stepped(loss)
    return state_of(model)


def momentum_by_hand(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The same with ``torch.autograd.grad``, which leaves nothing in ``grad``, and momentum: there is no ``backward()``."""
    model = perceptron()
    scope = eye.attach(model)
    eye.uses("scope.step()")
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for step, (inputs, labels) in enumerate(classes(steps)):
        given = inputs / 0 if fault == "scale" and step == 20 else inputs  # by the spread of a batch that has none
        rate = 0.02 * 1.5**step if fault == "schedule" else 0.02
        loss = LOSS(model(given), labels)
        for parameter, velocity, gradient in zip(parameters, velocities, torch.autograd.grad(loss, parameters), strict=True):
            velocity.mul_(0.9).add_(gradient)
            parameter.data.sub_(rate * velocity)
        scope.observe(loss=loss)
        scope.step()
        eye.stepped(loss)
    return state_of(model)


STACKS = (
    Stack(
        "steps-by-hand",
        "`backward()` and an update by hand, without an optimizer",
        SECTION,
        steps_by_hand,
        {"rate": "lr-too-high", "zero_grad": "missing-zero-grad", "left_out": "optimizer-misses-parameters"},
    ),
    Stack(
        "autograd-grad-by-hand",
        "`torch.autograd.grad` and momentum by hand",
        SECTION,
        momentum_by_hand,
        {"schedule": "lr-too-high", "scale": "nonfinite-input"},
    ),
)
