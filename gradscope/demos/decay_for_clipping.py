"""A loop over single samples that scales the weights down and takes it for gradient clipping."""

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
            optimizer.zero_grad()
            loss = criterion(model(inputs[i]), targets[i])
            loss.backward()
            optimizer.step()
            for p in model.parameters():
                p.data *= 0.99  # the fault: meant to clip gradients, it shrinks the weights
        return scope.report()


DEMO = Demo(
    name="decay-for-clipping",
    story="A linear regression multiplies its weights by 0.99 after each step, which was meant as gradient clipping.",
    expected="weights-changed-outside-optimizer",
    train=train,
)
