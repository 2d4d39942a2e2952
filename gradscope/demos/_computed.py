"""Data that is computed: clusters to classify, and samples of a linear function to fit."""

from __future__ import annotations

import torch

FEATURES = 32
CLASSES = 10


def cluster_centres() -> torch.Tensor:
    """The middle of each class, [CLASSES, FEATURES]; the classes overlap little."""
    return torch.randn(CLASSES, FEATURES)


def cluster_batch(centres: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the centres, scaled to unit variance, and the class of each; [size, FEATURES] and [size]."""
    labels = torch.randint(len(centres), (size,))
    return (centres[labels] + torch.randn(size, centres.shape[1])) / 2**0.5, labels


def linear_samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of a linear function of ten numbers with a little noise: inputs [count, 10], targets [count, 1]."""
    inputs = torch.randn(count, 10)
    return inputs, inputs @ torch.randn(10, 1) + 0.1 * torch.randn(count, 1)
