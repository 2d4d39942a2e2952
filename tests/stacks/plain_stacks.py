"""The plain loop, which the others are measured against."""

from __future__ import annotations

import torch

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd


def plain(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    eye.attach(model)
    fit(eye, model, sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


STACKS = (Stack("plain", "the plain loop", "The plain loop", plain, COMMON),)
