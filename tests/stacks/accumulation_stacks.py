"""Several backward passes for one step: micro-batches, several losses, sequences cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

PIECES = 4  # micro-batches of a full round


def accumulated(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Each epoch ends with a round of three micro-batches instead of four, stepped all the same."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    batches = classes(steps * PIECES)
    for step in range(steps):
        pieces = PIECES - 1 if step % 10 == 9 else PIECES
        losses = []
        for _ in range(pieces):
            inputs, labels = next(batches)
            loss = functional.cross_entropy(model(inputs), labels) / PIECES
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
        if fault != "zero_grad":
            optimizer.zero_grad()
        eye.stepped(sum(losses) / pieces)
    return state_of(model)


class Synchronised(nn.Module):
    """Stands for a wrapper that exchanges gradients in each backward pass, but not within ``no_sync``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.synchronising = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.module(inputs)
        if self.synchronising:
            out.register_hook(lambda gradient: gradient * 1.0)
        return out

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.synchronising = False
        try:
            yield
        finally:
            self.synchronising = True


def unsynchronised(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Synchronised(perceptron())
    eye.attach(model)
    trained = model.module[2:] if fault == "parameters" else model
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1.0 if fault == "rate" else 3e-3)
    batches = classes(steps * 2)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        losses = []
        inputs, labels = next(batches)
        with model.no_sync():
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            losses.append(float(loss.detach()))
        inputs, labels = next(batches)
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        losses.append(float(loss.detach()))
        for parameter in model.parameters():
            parameter.grad /= 2
        optimizer.step()
        eye.stepped(sum(losses) / 2)
    return state_of(model)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.label, self.copy = nn.Linear(32, 4), nn.Linear(32, 16)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(inputs)
        return self.label(features), self.copy(features)


def two_losses(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two losses on one graph, each with a backward call of its own."""
    model = TwoHeads()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        label, copy = model(inputs)
        first, second = functional.cross_entropy(label, labels), functional.mse_loss(copy, inputs)
        first.backward(retain_graph=True)
        second.backward()
        optimizer.step()
        eye.stepped((first + second) / 2)
    return state_of(model)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 24), nn.Linear(24, 4)

    def forward(self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        outs = []
        for piece in inputs:
            state = self.cell(piece, state)
            outs.append(self.head(state[0]))
        return torch.stack(outs), state


def _sequences(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Which of four signs stood first, to be told at each of six places."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        labels = torch.randint(4, (32,), generator=generator)
        inputs = 0.1 * torch.randn(6, 32, 8, generator=generator)
        inputs[:, torch.arange(32), labels] += 1
        yield inputs, labels.expand(6, 32)


def truncated(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Back-propagation through time in pieces: the state goes on, its graph does not."""
    model = Reader()
    eye.attach(model)
    trained = model.head if fault == "parameters" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=3.0 if fault == "rate" else 0.01)
    state = (torch.zeros(32, 24), torch.zeros(32, 24))
    for inputs, labels in _sequences(steps):
        optimizer.zero_grad()
        state = (state[0].detach(), state[1].detach())
        outputs, state = model(inputs, state)
        loss = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def overlapping(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A backward call from each place of a sequence, all on one graph that is kept, before the step."""
    model = Reader()
    eye.attach(model)
    trained = model.head if fault == "parameters" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    for inputs, labels in _sequences(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        outputs, _ = model(inputs, (torch.zeros(32, 24), torch.zeros(32, 24)))
        losses = [functional.cross_entropy(out, label) for out, label in zip(outputs, labels, strict=True)]
        for loss in losses:
            loss.backward(retain_graph=True)
        optimizer.step()
        eye.stepped(sum(float(loss.detach()) for loss in losses) / len(losses))
    return state_of(model)


SECTION = "Loop shapes"

STACKS = (
    Stack(
        name="accumulation",
        title="gradient accumulation, with a last round that is incomplete",
        section=SECTION,
        train=accumulated,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="no-sync",
        title="accumulation within `no_sync`, gradients averaged by hand",
        section=SECTION,
        train=unsynchronised,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="two-losses",
        title="several losses, each with its own `backward(retain_graph=True)`",
        section=SECTION,
        train=two_losses,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="truncated-bptt",
        title="truncated back-propagation through time, the state detached",
        section=SECTION,
        train=truncated,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="overlapping-bptt",
        title="a backward call from each time step, the graph retained",
        section=SECTION,
        train=overlapping,
        faults={"parameters": "optimizer-misses-parameters", "zero_grad": "missing-zero-grad"},
    ),
)
