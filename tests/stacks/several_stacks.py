"""Several optimizers for one model, and several trainings in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.decoder(self.encoder(inputs))
        return out


def two_at_once(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Coder()
    eye.attach(model)
    encoder = torch.optim.Adam(model.encoder.parameters(), lr=3e-3)
    decoder = torch.optim.SGD(model.decoder.parameters(), lr=1000.0 if fault == "rate" else 0.1)
    for inputs, _ in classes(steps):
        if fault != "zero_grad":
            encoder.zero_grad()
            decoder.zero_grad()
        loss = functional.mse_loss(model(inputs), inputs)
        loss.backward()
        encoder.step()
        decoder.step()
        eye.stepped(loss)
    return state_of(model)


def in_turns(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Each optimizer has every other step to itself, which is a step of its own."""
    model = Coder()
    eye.attach(model)
    decoder = model.decoder[2] if fault == "parameters" else model.decoder
    optimizers = [torch.optim.Adam(part.parameters(), lr=3e-3) for part in (model.encoder, decoder)]
    for step, (inputs, _) in enumerate(classes(steps)):
        if fault != "zero_grad":
            model.zero_grad()
        loss = functional.mse_loss(model(inputs), inputs)
        loss.backward()
        optimizers[step % 2].step()
        eye.stepped(loss)
    return state_of(model)


def _two_models(eye: Eye, fault: str) -> tuple[tuple[nn.Module, torch.optim.Optimizer], ...]:
    first, second = perceptron(), perceptron(width=24)
    eye.attach(first, name="first")
    eye.attach(second, name="second")
    trained = first[2:] if fault == "parameters" else first
    return (
        (first, torch.optim.SGD(trained.parameters(), lr=0.1)),
        (second, torch.optim.SGD(second.parameters(), lr=0.1)),
    )


def _half(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """One of two micro-batches."""
    loss = functional.cross_entropy(model(inputs), labels) / 2
    loss.backward()
    return float(loss.detach())


def _whole(model: nn.Module, optimizer: torch.optim.Optimizer, fault: str, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    if fault != "zero_grad":
        optimizer.zero_grad()
    loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def interleaved(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two trainings in turns. The first accumulates, and each step of the second falls amid its micro-batches."""
    (first, accumulates), (second, optimizer) = _two_models(eye, fault)
    pieces, batches = classes(2 * steps, seed=1), classes(steps, seed=2)
    for _ in range(steps):
        early = _half(first, *next(pieces))
        eye.stepped(_whole(second, optimizer, fault, *next(batches)), run="second")
        late = _half(first, *next(pieces))
        accumulates.step()
        accumulates.zero_grad()
        eye.stepped((early + late) / 2, run="first")
    return state_of(first, second)


def in_threads(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two trainings, each in a thread of its own, with no order between their steps."""
    (first, accumulates), (second, optimizer) = _two_models(eye, fault)

    def train_first() -> None:
        pieces = classes(2 * steps, seed=1)
        for _ in range(steps):
            losses = [_half(first, *next(pieces)) for _ in range(2)]
            accumulates.step()
            accumulates.zero_grad()
            eye.stepped(sum(losses) / 2, run="first")

    def train_second() -> None:
        for batch in classes(steps, seed=2):
            eye.stepped(_whole(second, optimizer, fault, *batch), run="second")

    _together(train_first, train_second)
    return state_of(first, second)


def _together(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SECTION = "Loop shapes"

STACKS = (
    Stack(
        name="two-optimizers",
        title="two optimizers in one step",
        section=SECTION,
        train=two_at_once,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="optimizers-in-turns",
        title="two optimizers that take turns",
        section=SECTION,
        train=in_turns,
        faults={"zero_grad": "missing-zero-grad", "parameters": "optimizer-misses-parameters"},
        steps=60,
    ),
    Stack(
        name="interleaved",
        title="two trainings interleaved in one process",
        section=SECTION,
        train=interleaved,
        faults={"zero_grad": "missing-zero-grad", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="threads",
        title="two trainings in two threads",
        section=SECTION,
        train=in_threads,
        faults={"zero_grad": "missing-zero-grad", "parameters": "optimizer-misses-parameters"},
    ),
)
