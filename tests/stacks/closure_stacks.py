"""Steps that work out the loss themselves, or more than once: closures, and sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


def _smooth() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))


def lbfgs(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """On one batch, as is usual; each step works out the loss up to a dozen times."""
    model = _smooth()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    search = None if fault == "rate" else "strong_wolfe"
    optimizer = torch.optim.LBFGS(trained.parameters(), lr=300.0 if fault == "rate" else 0.3, max_iter=4, line_search_fn=search)
    inputs, labels = next(classes(1, batch=128))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for _ in range(steps):
        eye.stepped(optimizer.step(closure))  # the loss at the weights that the step began with
    return state_of(model)


def closure_for_sgd(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):

        def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            if fault != "zero_grad":
                optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        eye.stepped(optimizer.step(closure))
    return state_of(model)


def sharpness_by_hand(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """Sharpness-aware minimisation: the gradient is taken a little uphill, and applied where the step began."""
    model = perceptron()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
            offsets = [0.05 * p.grad / norm for p in model.parameters()]
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.add_(offset)
        model.zero_grad(set_to_none=False)
        functional.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.sub_(offset)
        optimizer.step()
        model.zero_grad()
        eye.stepped(loss)
    return state_of(model)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it goes about: an optimizer around another."""

    def __init__(self, parameters: Iterable[Tensor], base: Callable[..., torch.optim.Optimizer], *, rho: float, **kwargs: Any):
        super().__init__(parameters, {"rho": rho, **kwargs})
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm() + 1e-12
        for parameter in held:
            self.state[parameter]["before"] = parameter.data.clone()
            parameter.add_(parameter.grad * (self.param_groups[0]["rho"] / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = self.state[parameter]["before"]
        self.base.step()
        self.zero_grad()

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


def sharpness_in_two(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    model = perceptron()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = SAM(trained.parameters(), torch.optim.SGD, rho=0.05, lr=30.0 if fault == "rate" else 0.1, momentum=0.0)
    for inputs, labels in classes(steps):
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.first_step()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.second_step()
        eye.stepped(loss)
    return state_of(model)


def sharpness_wrapped(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """One call of the wrapper's ``step``, which calls the inner optimizer's."""
    model = perceptron()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = SAM(trained.parameters(), torch.optim.SGD, rho=0.05, lr=30.0 if fault == "rate" else 0.1, momentum=0.0)
    for inputs, labels in classes(steps):

        def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        loss = closure()
        optimizer.step(closure)
        eye.stepped(loss)
    return state_of(model)


SECTION = "Loop shapes"
_OF_SAM = {"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"}

STACKS = (
    Stack(
        name="lbfgs",
        title="LBFGS with a line search, in a closure",
        section=SECTION,
        train=lbfgs,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
        steps=30,
    ),
    Stack(
        name="closure",
        title="a closure for SGD",
        section=SECTION,
        train=closure_for_sgd,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="sam-by-hand",
        title="sharpness-aware minimisation, weights moved by hand",
        section=SECTION,
        train=sharpness_by_hand,
        faults=_OF_SAM,
    ),
    Stack(
        name="sam-two-steps",
        title="sharpness-aware minimisation, `first_step` and `second_step`",
        section=SECTION,
        train=sharpness_in_two,
        faults=_OF_SAM,
    ),
    Stack(
        name="sam-wrapper",
        title="sharpness-aware minimisation, one `step(closure)` around another optimizer's",
        section=SECTION,
        train=sharpness_wrapped,
        faults=_OF_SAM,
    ),
)
