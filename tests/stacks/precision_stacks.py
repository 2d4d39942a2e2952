"""Formats of numbers, without a GradScaler: autocast, all of a model in 16 bits, a scale by hand, float64, complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron

SECTION = "Mixed precision"
SCALE = 1024.0


def autocast_bfloat16(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def autocast_float16(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Without a GradScaler, which works as long as gradients are large; the fault is a loss with a small weight."""
    weight = 1e-6 if fault == "underflow" else 1.0
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=(30.0 if fault == "rate" else 0.1) / weight)
    for inputs, labels in classes(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(inputs)
        loss = weight * functional.cross_entropy(output.float(), labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


class Partly(nn.Module):
    """Only the layers in the middle run in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(INPUTS, 32), perceptron(), nn.Linear(CLASSES, CLASSES)
        self.back = nn.Linear(32, INPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.back(functional.gelu(self.first(x)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.middle(x)
        return self.last(functional.gelu(x.float()))


def partly_bfloat16(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Partly()
    eye.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0 if fault == "rate" else 3e-3)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


def whole(
    dtype: torch.dtype, make: Callable[[nn.Module, str], torch.optim.Optimizer]
) -> Callable[[Eye, str, int], dict[str, torch.Tensor]]:
    """Parameters and inputs in one format, the loss in float32 where that has less."""

    def train(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
        model = perceptron().to(dtype)
        eye.attach(model)
        of_loss = torch.float64 if dtype is torch.float64 else torch.float32
        fit(eye, lambda inputs: model(inputs.to(dtype)).to(of_loss), make(model, fault), classes(steps), fault)
        return state_of(model)

    return train


def _sgd(model: nn.Module, fault: str) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr={"rate": 30.0, "stalled": 2e-4}.get(fault, 0.1), momentum=0.9)


def _adamw(model: nn.Module, fault: str) -> torch.optim.Optimizer:
    rate = {"rate": 1.0, "stalled": 1e-5}.get(fault, 3e-3)
    return torch.optim.AdamW(model.parameters(), lr=rate)


def _adam(model: nn.Module, fault: str) -> torch.optim.Optimizer:
    rate = 1.0 if fault == "rate" else 3e-3
    return torch.optim.Adam(model.parameters(), lr=rate, eps=1e-8 if fault == "eps" else 1e-4)


def scaled_by_hand(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Autocast to float16 with a fixed scale of the program's own."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1, momentum=0.9)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = functional.cross_entropy(model(inputs), labels)
        (loss * SCALE).backward()
        for parameter in model.parameters():
            parameter.grad /= SCALE
        optimizer.step()
        eye.stepped(loss * SCALE)  # what backward() was called on: no scaler says that this is not the loss
    return state_of(model)


class Waves(nn.Module):
    """Complex weights between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUTS, 32, dtype=torch.complex64)
        self.outer = nn.Linear(32, 32, dtype=torch.complex64)
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.inner(x.to(torch.complex64)))
        return self.last(self.outer(x).abs())


def complex_weights(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Waves()
    eye.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0 if fault == "rate" else 1e-2)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


def _stack(name: str, title: str, train: Callable[[Eye, str, int], dict[str, torch.Tensor]], *second: str) -> Stack:
    rules = {
        "zero_grad": "missing-zero-grad",
        "underflow": "fp16-underflow",
        "eps": "fp16-underflow",
        "stalled": "bf16-stalled-updates",
    }
    faults = {"rate": "lr-too-high", **{fault: rules[fault] for fault in second}}
    return Stack(name=name, title=title, section=SECTION, train=train, faults=faults, steps=60)


STACKS = (
    _stack("autocast-bf16", "autocast to bfloat16", autocast_bfloat16, "zero_grad"),
    _stack("autocast-bf16-partly", "autocast to bfloat16 in part of the model", partly_bfloat16, "zero_grad"),
    _stack("autocast-fp16", "autocast to float16, no `GradScaler`", autocast_float16, "underflow"),
    _stack("bf16-sgd", "all of the model in bfloat16, SGD", whole(torch.bfloat16, _sgd), "stalled"),
    _stack("bf16-adamw", "all of the model in bfloat16, AdamW", whole(torch.bfloat16, _adamw), "stalled"),
    _stack("fp16-weights", "all of the model in float16", whole(torch.float16, _adam), "eps"),
    _stack("fp16-scale-by-hand", "float16 with a loss scale by hand", scaled_by_hand, "zero_grad"),
    _stack("float64", "all of the model in float64", whole(torch.float64, _sgd), "zero_grad"),
    _stack("complex", "complex weights", complex_weights, "zero_grad"),
)
