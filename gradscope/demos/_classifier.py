"""Clusters of points to classify, and the sound training loop of the demos whose fault lies in the model or its settings."""

# mypy: disallow-untyped-calls=False
# Torch leaves Tensor.backward() without types.

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import gradscope
from gradscope.demos import Progress

FEATURES = 32
CLASSES = 10
BATCH = 256


def train_classifier(
    model: nn.Module, optimizer: torch.optim.Optimizer, logdir: Path, progress: Progress, *, steps: int
) -> gradscope.Report:
    """Train on fresh batches of points of ten classes that overlap little."""
    centres = torch.randn(CLASSES, FEATURES)
    with gradscope.attach(model, logdir) as scope:
        for _ in progress(steps):
            points, labels = _batch(centres, BATCH)
            loss = functional.cross_entropy(model(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return scope.report()


def _batch(centres: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the centres, of unit variance, and the class of each; [size, FEATURES] and [size]."""
    labels = torch.randint(len(centres), (size,))
    return (centres[labels] + torch.randn(size, FEATURES)) / 2**0.5, labels
