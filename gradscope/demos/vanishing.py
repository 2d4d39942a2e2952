"""A deep plain net with the default initialisation, in which signal and gradient die out."""

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


def network() -> nn.Sequential:
    # The fault: nn.Linear starts with a variance of 1 / (3 inputs), a sixth of what keeps the scale before a ReLU.
    hidden = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), *hidden, nn.Linear(64, CLASSES))


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return train_classifier(model, optimizer, logdir, progress, steps=400)


DEMO = Demo(
    name="vanishing",
    story="A plain ReLU net of 22 layers keeps PyTorch's default initialisation, which loses 59 % of the signal a layer.",
    expected="init-too-small",
    train=train,
)
