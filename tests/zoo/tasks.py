"""What most programs train for: telling clusters or drawn digits apart, answering as a teacher does, the next character."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.program import Batches
from tests.zoo.program import Loss
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit

Maker: TypeAlias = Callable[..., torch.optim.Optimizer]

sgd: Maker = torch.optim.SGD
momentum: Maker = partial(torch.optim.SGD, momentum=0.9)
adam: Maker = torch.optim.Adam
adamw: Maker = torch.optim.AdamW


def classify(
    watch: Watch,
    model: nn.Module,
    optimizer: Maker,
    *,
    lr: float,
    steps: int = 250,
    size: int = 64,
    loss: Loss = functional.cross_entropy,
    clear: bool = True,
    clip: float | None = None,
) -> Outcome:
    """Ten clusters in 20 dimensions."""
    batches = data.batches(*data.clusters(), size=size, steps=steps)
    return fit(watch, model, batches, loss, optimizer(model.parameters(), lr=lr), clear=clear, clip=clip)


def see(
    watch: Watch,
    model: nn.Module,
    optimizer: Maker,
    *,
    lr: float,
    steps: int = 120,
    size: int = 64,
    raw: bool = False,
    loss: Loss = functional.cross_entropy,
    clear: bool = True,
    clip: float | None = None,
) -> Outcome:
    """Drawn digits of 12 x 12 pixels."""
    x, y = data.digits()
    batches = data.batches(x if raw else data.standardised(x), y, size=size, steps=steps)
    return fit(watch, model, batches, loss, optimizer(model.parameters(), lr=lr), clear=clear, clip=clip)


def read(
    watch: Watch,
    model: nn.Module,
    optimizer: Maker,
    *,
    lr: float,
    steps: int = 120,
    loss: Loss = functional.cross_entropy,
    clear: bool = True,
    clip: float | None = None,
) -> Outcome:
    """Source text, the next character of each."""
    return fit(watch, model, data.characters(steps=steps), loss, optimizer(model.parameters(), lr=lr), clear=clear, clip=clip)


def regress(
    watch: Watch,
    model: nn.Module,
    optimizer: Maker,
    *,
    lr: float,
    steps: int = 300,
    loss: Loss = functional.mse_loss,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Outcome:
    """A tanh net's answers to ten numbers, scaled and shifted."""
    x, y = data.taught()
    batches = data.batches(x, scale * y + offset, steps=steps)
    return fit(watch, model, batches, loss, optimizer(model.parameters(), lr=lr))


def together(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], batches: Batches) -> Outcome:
    """A classifier whose parameters several optimizers share; each steps once a batch."""
    losses = []
    for inputs, labels in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))
