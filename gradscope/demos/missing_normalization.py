"""A deep residual net with no normalisation: each block adds as much as came in."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.nn import functional

import gradscope
from gradscope.demos import Demo
from gradscope.demos import Progress
from gradscope.demos._computed import CLASSES
from gradscope.demos._computed import FEATURES
from gradscope.demos._computed import cluster_batch
from gradscope.demos._computed import cluster_centres

DEPTH = 24
WIDTH = 64


@final
class Residual(nn.Module):
    """x + f(x), where f has He's initialisation and so keeps the variance; their sum doubles it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        nn.init.kaiming_normal_(self.branch[0].weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.branch[2].weight, nonlinearity="linear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)  # the fault: no norm on what the branch takes in


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    centres = cluster_centres()
    blocks = [Residual() for _ in range(DEPTH)]
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), *blocks, nn.Linear(WIDTH, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.attach(model, logdir) as scope:
        for _ in progress(200):
            points, labels = cluster_batch(centres, 64)
            loss = functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return scope.report()


DEMO = Demo(
    name="missing-normalization",
    story="A net of 24 residual blocks has no normalisation, so its scale doubles with every second block.",
    expected="missing-normalization",
    train=train,
)
