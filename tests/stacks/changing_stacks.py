"""Models that change while they train: layers frozen and thawed, added, made at the first call, replaced."""

from __future__ import annotations

import torch
from torch import nn

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Models that change"
THAW, FREEZE = 14, 28
MISSED = {"missed": "optimizer-misses-parameters"}


def frozen_and_thawed(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The first layer is frozen, trains for a while, and is frozen again; the optimizer holds all from the start."""
    model = perceptron()
    body = model[0]
    body.requires_grad_(False)
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if step in (THAW, FREEZE):
            body.requires_grad_(step == THAW)
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return state_of(model)


def gradual_unfreezing(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """From the head down, one more layer each time, which the optimizer is given then."""
    model = perceptron()
    model.requires_grad_(False)
    model[4].requires_grad_(True)
    eye.attach(model)
    optimizer = sgd(model[4].parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if step in (THAW, FREEZE):
            layer = model[2] if step == THAW else model[0]
            layer.requires_grad_(True)
            if fault != "missed":
                optimizer.add_param_group({"params": layer.parameters()})
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return state_of(model)


def new_head(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The head is replaced amid the training, as for another task, and the optimizer made anew."""
    model = perceptron()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if step == THAW:
            model[4] = nn.Linear(32, CLASSES)
            if fault != "stale":
                optimizer = sgd(model.parameters(), fault)
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return state_of(model)


def growing(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A layer is put in before the head now and then."""
    model = perceptron()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if step in (THAW, FREEZE):
            grown = nn.Linear(32, 32)
            nn.init.eye_(grown.weight)
            model.insert(len(model) - 1, grown)
            model.insert(len(model) - 1, nn.ReLU())
            optimizer.add_param_group({"params": grown.parameters()})
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return state_of(model)


def lazy(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The layers' sizes show at the first call."""
    model = nn.Sequential(
        nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(CLASSES)
    )
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


STACKS = (
    Stack("frozen-and-thawed", "layers frozen and thawed amid the training", SECTION, frozen_and_thawed, COMMON),
    Stack(
        "gradual-unfreezing",
        "gradual unfreezing with `add_param_group`",
        SECTION,
        gradual_unfreezing,
        {**COMMON, **MISSED},
        steps=60,
    ),
    Stack(
        "new-head",
        "a head that is replaced amid the training",
        SECTION,
        new_head,
        {**COMMON, "stale": "optimizer-misses-parameters"},
    ),
    Stack("growing", "a network that grows", SECTION, growing, COMMON, steps=60),
    Stack("lazy", "lazy modules", SECTION, lazy, COMMON),
)
