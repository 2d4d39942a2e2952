"""Single samples to fit a line to."""

from __future__ import annotations

import torch

FEATURES = 10


def linear_samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of a linear function with a little noise: inputs [count, FEATURES] and targets [count, 1]."""
    inputs = torch.randn(count, FEATURES)
    return inputs, inputs @ torch.randn(FEATURES, 1) + 0.1 * torch.randn(count, 1)
