"""A learning rate at which every step overshoots."""

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


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    centres = cluster_centres()
    widths = [FEATURES, 128, 128, 128, 128]
    hidden = [layer for pair in zip(widths, widths[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(128, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0, momentum=0.9)  # too high: 0.05 trains well
    with gradscope.attach(model, logdir) as scope:
        for _ in progress(300):
            points, labels = cluster_batch(centres, 64)
            loss = functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return scope.report()


DEMO = Demo(
    name="lr-too-high",
    story="A classifier of five layers is trained with SGD at lr=5, a hundred times too high.",
    expected="lr-too-high",
    train=train,
)
