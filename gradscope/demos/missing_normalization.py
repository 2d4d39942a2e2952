"""A deep residual net with no normalisation: each block adds as much as came in."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import nn

import gradscope
from gradscope.demos import Demo
from gradscope.demos import Progress
from gradscope.demos._classifier import CLASSES
from gradscope.demos._classifier import FEATURES
from gradscope.demos._classifier import train_classifier

WIDTH = 64


@final
class Residual(nn.Module):
    """x + f(x), where f has He's initialisation and so keeps the variance: the sum has twice as much."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(WIDTH, WIDTH)
        self.contract = nn.Linear(WIDTH, WIDTH)
        nn.init.kaiming_normal_(self.expand.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.contract.weight, nonlinearity="linear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.contract(torch.relu(self.expand(x)))  # the fault: x is taken in without a norm
        return x + branch


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    blocks = [Residual() for _ in range(24)]
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), *blocks, nn.Linear(WIDTH, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return train_classifier(model, optimizer, logdir, progress, steps=400)


DEMO = Demo(
    name="missing-normalization",
    story="A net of 24 residual blocks has no normalisation, so the variance of its signal doubles from block to block.",
    expected="missing-normalization",
    train=train,
)
