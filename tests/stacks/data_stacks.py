"""Data that worker processes bring, and the plain loop as it is run in a notebook: the same cell twice."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.data import DataLoader

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import classes
from tests.stacks.tasks import descend
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Data and notebooks"
TRIED = 6  # steps of a cell that is stopped and run again


def workers(way: str, eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The worker starts while the model is watched, and with ``fork`` holds all that watches it."""
    model = perceptron()
    eye.attach(model)
    loader = DataLoader(list(classes(steps)), batch_size=None, num_workers=1, multiprocessing_context=way)
    fit(eye, model, sgd(model.parameters(), fault), loader, fault)
    return state_of(model)


def cell_run_twice(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The second time takes the first one's place, model, name and all; the account is that of the second."""
    for count in (TRIED, steps):
        torch.manual_seed(0)
        model = perceptron()
        eye.attach(model, name="net")
        optimizer = sgd(model.parameters(), fault)
        for inputs, labels in classes(count):
            loss = LOSS(model(inputs), labels)
            descend(optimizer, loss, fault)
            if count == steps:
                eye.stepped(loss)
    return state_of(model)


STACKS = (
    Stack("forked-worker", "a `DataLoader` whose worker is forked", SECTION, partial(workers, "fork"), COMMON),
    Stack("spawned-worker", "a `DataLoader` whose worker is spawned", SECTION, partial(workers, "spawn"), COMMON),
    Stack("notebook", "a notebook's cell that is run twice, with one `name`", SECTION, cell_run_twice, COMMON),
)
