"""A loop over single samples that never clears the gradients."""

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
    with gradscope.attach(model, logdir) as scope:
        for i in progress(1000):
            loss = criterion(model(inputs[i]), targets[i])
            loss.backward()  # the fault: no optimizer.zero_grad() before it
            optimizer.step()
        return scope.report()


DEMO = Demo(
    name="missing-zero-grad",
    story="A linear regression over single samples never calls optimizer.zero_grad(), so gradients add up for ever.",
    expected="missing-zero-grad",
    train=train,
)
