"""A deep net whose weights start so large that the signal grows from layer to layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import gradscope
from gradscope.demos import Demo
from gradscope.demos import Progress
from gradscope.demos._classifier import CLASSES
from gradscope.demos._classifier import FEATURES
from gradscope.demos._classifier import train_classifier


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    hidden = [layer for _ in range(10) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), *hidden, nn.Linear(128, CLASSES))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)  # the fault: what keeps the scale is sqrt(2 / 128) = 0.125
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return train_classifier(model, optimizer, logdir, progress, steps=400)


DEMO = Demo(
    name="init-too-large",
    story="A ReLU net of twelve layers starts from weights of standard deviation 0.3, 2.4 times what keeps the scale.",
    expected="init-too-large",
    train=train,
)
