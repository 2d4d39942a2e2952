"""Models that are called as functions of their parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.func import grad_and_value
from torch.func import stack_module_state
from torch.func import vmap

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Functions of parameters"


def called_as_function(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """``functional_call`` in a usual loop."""
    model = perceptron()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    parameters = dict(model.named_parameters())
    fit(eye, lambda inputs: functional_call(model, parameters, (inputs,)), optimizer, classes(steps), fault)
    return state_of(model)


def gradients_as_values(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """``torch.func.grad_and_value``, and a step of one's own: there is no ``backward()`` and no optimizer."""
    model = perceptron()
    scope = eye.attach(model)
    parameters = dict(model.named_parameters())
    eye.uses("scope.step()")

    def loss_of(values: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return LOSS(functional_call(model, values, (inputs,)), labels)

    for step, (inputs, labels) in enumerate(classes(steps)):
        given = inputs / 0 if fault == "scale" and step == 20 else inputs  # by the spread of a batch that has none
        rate = 0.1 * 1.5**step if fault == "schedule" else 0.1  # a decay with its factor the wrong way round
        gradients, loss = grad_and_value(loss_of)(parameters, given, labels)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.sub_(rate * gradients[name])
        scope.observe(loss=loss)
        scope.step()
        eye.stepped(loss)
    return state_of(model)


class Ensemble(nn.Module):
    """Several networks whose weights are stacked, and called as one."""

    def __init__(self, members: int) -> None:
        super().__init__()
        nets = [perceptron() for _ in range(members)]
        stacked, _ = stack_module_state(nets)
        self.names = tuple(stacked)
        self.stacked = nn.ParameterList(nn.Parameter(value.detach()) for value in stacked.values())
        self.shape = [copy.deepcopy(nets[0]).to("meta")]  # in a list: no part of this one

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        def one(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional_call(self.shape[0], values, (inputs,))

        return vmap(one)(dict(zip(self.names, self.stacked, strict=True)))


def ensemble(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Ensemble(3)
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault, lr=0.3)
    for inputs, labels in classes(steps):
        outputs = model(inputs)
        loss = LOSS(outputs.flatten(0, 1), labels.repeat(len(outputs)))
        advance(eye, optimizer, loss, fault)
    return state_of(model)


def per_sample(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Gradients of each sample with ``vmap`` of ``grad``, clipped and averaged into ``grad`` by hand, as for privacy."""
    model = perceptron()
    scope = eye.attach(model)
    optimizer = sgd((model[4] if fault == "missed" else model).parameters(), fault)
    parameters = dict(model.named_parameters())
    eye.uses("scope.observe(loss=…)")

    def loss_of(values: dict[str, torch.Tensor], sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return LOSS(functional_call(model, values, (sample[None],)), label[None])

    for inputs, labels in classes(steps):
        each = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0))
        gradients, losses = each(parameters, inputs, labels)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].mean(0)
        scope.observe(loss=losses.mean())
        optimizer.step()
        eye.stepped(losses.mean())
    return state_of(model)


STACKS = (
    Stack("functional-call", "`functional_call` in a usual loop", SECTION, called_as_function, COMMON),
    Stack(
        "gradients-as-values",
        "`torch.func.grad_and_value` and steps by hand",
        SECTION,
        gradients_as_values,
        {"schedule": "lr-too-high", "scale": "nonfinite-input"},
    ),
    Stack(
        "per-sample-gradients",
        "gradients of each sample with `vmap`",
        SECTION,
        per_sample,
        {"rate": "lr-too-high", "missed": "optimizer-misses-parameters"},
    ),
    Stack("vmap-ensemble", "an ensemble under `vmap`", SECTION, ensemble, COMMON),
)
