"""A deep plain net with the default initialisation, in which signal and gradient die out."""

from __future__ import annotations

from pathlib import Path

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

DEPTH = 20


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    centres = cluster_centres()
    # The fault: nn.Linear starts with a variance of 1 / (3 inputs), a sixth of what keeps the scale before a ReLU.
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), *hidden, nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.attach(model, logdir) as scope:
        for _ in progress(300):
            points, labels = cluster_batch(centres, 64)
            loss = functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return scope.report()


DEMO = Demo(
    name="vanishing",
    story="A plain ReLU net of 22 layers keeps PyTorch's default initialisation, which loses 59 % of the signal a layer.",
    expected="init-too-small",
    train=train,
)
