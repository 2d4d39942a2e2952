"""A model created anew, while the optimizer still holds the parameters of the old one."""

# mypy: disallow-untyped-calls=False
# Torch leaves Tensor.backward() without types.

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import gradscope
from gradscope.demos import Demo
from gradscope.demos import Progress
from gradscope.demos._samples import linear_samples


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    inputs, targets = linear_samples(1000)
    model = nn.Linear(10, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model = nn.Linear(10, 1)  # the fault: a fresh start for the model, of which the optimizer knows nothing
    with gradscope.attach(model, logdir) as scope:
        for i in progress(1000):
            optimizer.zero_grad()
            loss = criterion(model(inputs[i]), targets[i])
            loss.backward()
            optimizer.step()
        return scope.report()


DEMO = Demo(
    name="stale-optimizer",
    story="A linear regression creates its model anew after the optimizer, which goes on training the old one.",
    expected="optimizer-misses-parameters",
    train=train,
)
