"""Small tasks that several stacks train on: learnable, computed, the same for every run. And the parts that loops share."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

import torch
from torch import nn

from tests.stacks.stack import Eye

torch.set_num_threads(1)  # on models this small, threads only wait for one another

INPUTS, CLASSES, BATCH = 16, 4, 32
COMMON = {"rate": "lr-too-high", "zero_grad": "missing-zero-grad"}  # the two mistakes that any loop can make
LOSS = nn.CrossEntropyLoss()
Batch = tuple[torch.Tensor, torch.Tensor]


def perceptron(*, width: int = 32) -> nn.Sequential:
    """A network of three layers that learns ``classes`` in a few dozen steps."""
    return nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


def classes(steps: int, *, batch: int = BATCH, seed: int = 1) -> Iterator[Batch]:
    """Batches of inputs and labels; the labels are those of a fixed linear map."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(7))
    for _ in range(steps):
        inputs = torch.randn(batch, INPUTS, generator=generator)
        yield inputs, (inputs @ rule).argmax(1)


def sgd(parameters: Iterable[nn.Parameter], fault: str, *, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=30.0 if fault == "rate" else lr)


def fit(
    eye: Eye,
    call: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    fault: str,
) -> None:
    """The plain loop; ``call`` gives a batch's logits."""
    for inputs, labels in batches:
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = LOSS(call(inputs), labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)


def advance(eye: Eye, optimizer: torch.optim.Optimizer, loss: torch.Tensor, fault: str) -> None:
    """From the loss to the end of the step, in a loop that works out its loss itself."""
    descend(optimizer, loss, fault)
    eye.stepped(loss)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, fault: str) -> None:
    if fault != "zero_grad":
        optimizer.zero_grad()
    loss.backward()
    optimizer.step()
