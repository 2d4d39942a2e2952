"""Unusual ways back: forward passes that run again, gradients by hand, losses of other shapes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.checkpoint import checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd


def _selective() -> Any:
    """Keeps what the matrix products made, works out the rest again."""
    policy = {torch.ops.aten.addmm.default: CheckpointPolicy.MUST_SAVE}
    return create_selective_checkpoint_contexts(lambda _, op, *__, **___: policy.get(op, CheckpointPolicy.PREFER_RECOMPUTE))


class Checkpointed(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.first, self.norm, self.last = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)
        self.middle = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.norm(self.first(inputs)))
        again: Tensor = checkpoint(self.middle, hidden, **self.how)
        out: Tensor = self.last(functional.relu(again))
        return out


def checkpointed(eye: Eye, fault: str, steps: int, **how: Any) -> dict[str, Tensor]:
    model = Checkpointed(**how)
    eye.attach(model)
    if fault == "evaluation":
        model.eval()
    fit(eye, model, sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


def wholly_checkpointed(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    model = perceptron()
    eye.attach(model)
    fit(eye, partial(checkpoint, model, use_reentrant=False), sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


def by_hand(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """``torch.autograd.grad`` gives the gradients, the program hands them to the parameters."""
    model = perceptron()
    scope = eye.attach(model)
    eye.uses("scope.observe(loss=…)")
    trained = list(model.parameters())
    optimizer = torch.optim.SGD(trained[2:] if fault == "parameters" else trained, lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        loss = functional.cross_entropy(model(inputs), labels)
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.grad = gradient
        scope.observe(loss=loss)
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def by_vector(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """A loss for each sample, and ``backward`` with the weight of each."""
    model = perceptron()
    scope = eye.attach(model)
    eye.uses("scope.observe(loss=…)")
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        losses = functional.cross_entropy(model(inputs), labels, reduction="none")
        losses.backward(torch.full_like(losses, 1 / len(losses)))
        loss = losses.detach().mean()
        scope.observe(loss=loss)
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def one_element(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """A loss of shape (1,), and the next one of shape (1, 1)."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels).reshape((1,) * (1 + step % 2))
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def functional_backward(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """``torch.autograd.backward`` instead of the tensor's own method, on two losses at once."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        out = model(inputs)
        losses = [functional.cross_entropy(out, labels), 1e-3 * out.square().mean()]
        torch.autograd.backward(losses)
        optimizer.step()
        eye.stepped(sum(losses))
    return state_of(model)


SECTION = "Loop shapes"
_CHECKPOINTED = {"rate": "lr-too-high", "evaluation": "eval-mode-training"}

STACKS = (
    Stack(
        name="checkpoint",
        title="activation checkpointing",
        section=SECTION,
        train=partial(checkpointed, use_reentrant=False),
        faults=_CHECKPOINTED,
    ),
    Stack(
        name="checkpoint-reentrant",
        title="activation checkpointing, reentrant",
        section=SECTION,
        train=partial(checkpointed, use_reentrant=True),
        faults=_CHECKPOINTED,
    ),
    Stack(
        name="checkpoint-selective",
        title="activation checkpointing, selective",
        section=SECTION,
        train=partial(checkpointed, use_reentrant=False, context_fn=_selective),
        faults=_CHECKPOINTED,
    ),
    Stack(
        name="checkpoint-whole",
        title="activation checkpointing of the whole model",
        section=SECTION,
        train=wholly_checkpointed,
        faults=COMMON,
    ),
    Stack(
        name="autograd-grad",
        title="`torch.autograd.grad`, gradients assigned by hand",
        section=SECTION,
        train=by_hand,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(name="backward-vector", title="`backward` with a vector", section=SECTION, train=by_vector, faults=COMMON),
    Stack(name="loss-of-one", title="a loss of shape (1,)", section=SECTION, train=one_element, faults=COMMON),
    Stack(
        name="autograd-backward",
        title="`torch.autograd.backward([…])`",
        section=SECTION,
        train=functional_backward,
        faults=COMMON,
    ),
)
