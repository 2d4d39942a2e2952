"""A learning rate at which every step overshoots."""

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
    hidden = [layer for _ in range(3) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), *hidden, nn.Linear(128, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)  # the fault: 0.05 trains well
    return train_classifier(model, optimizer, logdir, progress, steps=400)


DEMO = Demo(
    name="lr-too-high",
    story="A classifier of five layers is trained with SGD and momentum at lr=2, forty times too high.",
    expected="lr-too-high",
    train=train,
)
