"""Copies of a model beside it while it trains: moving averages, snapshots, stochastic weight averaging."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import nn
from torch.optim.swa_utils import SWALR
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.optim.swa_utils import update_bn

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Copies and averages"


def normalised() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(INPUTS, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


def moving_average(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """An average of the weights goes along, and is evaluated between steps."""
    model = normalised()
    eye.attach(model)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = sgd(model.parameters(), fault)
    held_out = next(classes(1, seed=2))[0]
    for inputs, labels in classes(steps):
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
        averaged.update_parameters(model)
        averaged.eval()
        with torch.no_grad():
            averaged(held_out)
    return state_of(model, averaged)


def teacher(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A moving average of the student, made with ``deepcopy`` while the student is watched, is what it learns from, too."""
    model = perceptron()
    eye.attach(model)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        outputs = model(inputs)
        with torch.no_grad():
            wanted = average(inputs)
        loss = LOSS(outputs, labels) + 0.1 * nn.functional.mse_loss(outputs, wanted)
        advance(eye, optimizer, loss, fault)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
    return state_of(model, average)


def weight_averaging(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The last third is averaged, and the average's batch norms are set at the end."""
    model = normalised()
    eye.attach(model)
    averaged = AveragedModel(model)
    optimizer = sgd(model.parameters(), fault)
    swa = SWALR(optimizer, swa_lr=30.0 if fault == "rate" else 0.05, anneal_epochs=4)
    for step, (inputs, labels) in enumerate(classes(steps)):
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
        if step > 2 * steps // 3:
            averaged.update_parameters(model)
            swa.step()
    update_bn(classes(4), averaged)
    return state_of(model, averaged)


def snapshots(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Copied, pickled and saved while it is watched, and set back to an earlier state once."""
    model = perceptron()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    copies = [copy.deepcopy(model)]
    for step, (inputs, labels) in enumerate(classes(steps)):
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
        if step % 10 == 5:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copies += [pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
            copies[-1](inputs).sum().backward()
        if step == steps // 2:
            model.load_state_dict(copies[-1].state_dict())
    return state_of(model, *copies)


STACKS = (
    Stack(
        "moving-average",
        "a moving average with `AveragedModel`",
        SECTION,
        moving_average,
        COMMON,
    ),
    Stack("teacher", "a teacher that is a moving average, by `deepcopy`", SECTION, teacher, COMMON),
    Stack("weight-averaging", "stochastic weight averaging with `update_bn`", SECTION, weight_averaging, COMMON),
    Stack("snapshots", "copies, pickles and `torch.save` amid the training", SECTION, snapshots, COMMON),
)
