"""Autocast to float16 with a GradScaler: one optimizer and several, with and without clipping, one loss and several."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

SECTION = "Mixed precision"
LARGE = 1e5  # beyond float16, which ends at 65,504
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
Backward = Callable[[torch.amp.GradScaler, nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def half() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.float16)


def rate(fault: str, right: float) -> float:
    return 300 * right if fault == "rate" else right


def batches(steps: int, fault: str) -> Batches:
    """From the twelfth on, every second one holds numbers that only float32 and bfloat16 can hold, where that is the fault."""
    for step, (inputs, labels) in enumerate(classes(steps)):
        yield (inputs * LARGE if fault == "overflow" and step >= 12 and step % 2 else inputs), labels


def normalised() -> nn.Sequential:
    """The norm takes back what large inputs do to the first layer's output, but that is in float16."""
    return nn.Sequential(
        nn.Linear(INPUTS, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    )


def usual(scaler: torch.amp.GradScaler, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with half():
        loss = functional.cross_entropy(model(inputs), labels)
    scaler.scale(loss).backward()
    return loss


def updated(scaler: torch.amp.GradScaler) -> bool:
    """Update the scale; whether the step was made, and not skipped."""
    before = scaler.get_scale()
    scaler.update()
    return scaler.get_scale() >= before


def scaled(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = normalised()
    eye.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate(fault, 3e-3))
    scaler = torch.amp.GradScaler("cpu")
    for inputs, labels in batches(steps, fault):
        optimizer.zero_grad()
        loss = usual(scaler, model, inputs, labels)
        scaler.step(optimizer)
        if updated(scaler):
            eye.stepped(loss)
    return state_of(model)


def clipped(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(fault, 0.1), momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for inputs, labels in batches(steps, fault):
        loss = usual(scaler, model, inputs, labels)
        if fault != "scaled":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 100.0 if fault == "rate" else 1.0)
        scaler.step(optimizer)
        if updated(scaler):
            eye.stepped(loss)
        optimizer.zero_grad(set_to_none=False)
    return state_of(model)


def accumulated(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Three micro-batches a step; the scale starts far too high, and grows again when it is found."""
    pieces = 3
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(fault, 0.1), momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if fault else 2.0**32, growth_interval=12)
    losses = []
    for number, (inputs, labels) in enumerate(classes(pieces * steps), 1):
        with half():
            loss = functional.cross_entropy(model(inputs), labels)
        losses.append(loss.detach())
        scaler.scale(loss / pieces).backward()
        if number % pieces == 0:
            scaler.step(optimizer)
            if updated(scaler):
                eye.stepped(torch.stack(losses).mean() / pieces)
            losses.clear()
            if fault != "zero_grad":
                optimizer.zero_grad()
    return state_of(model)


def several_losses(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two losses of one forward pass, each with a backward call of its own."""
    body, heads = perceptron(), nn.ModuleList([nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, 1)])
    model = nn.ModuleDict({"body": body, "heads": heads})
    eye.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate(fault, 3e-3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if fault else 2.0**28)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        with half():
            features = body(inputs)
            first = functional.cross_entropy(heads[0](features), labels)
            second = functional.mse_loss(heads[1](features).float()[:, 0], labels.float() - 1.5)
        for number, loss in enumerate(scaler.scale([first, second])):
            loss.backward(retain_graph=number == 0)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        scaler.step(optimizer)
        if updated(scaler):
            eye.stepped((first + second) / 2)
    return state_of(model)


def two_optimizers(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """One scaler for the optimizers of a body and of a head."""
    model = nn.Sequential(normalised(), nn.ReLU(), nn.Linear(CLASSES, CLASSES))
    eye.attach(model)
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=rate(fault, 0.1), momentum=0.9),
        torch.optim.Adam(model[2].parameters(), lr=rate(fault, 3e-3)),
    ]
    made: list[int] = []  # where one has gradients that are not finite, the other may step nevertheless
    for optimizer in optimizers:
        optimizer.register_step_post_hook(lambda *_: made.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if fault else 2.0**30, growth_interval=10)
    for inputs, labels in batches(steps, fault):
        if fault != "zero_grad":
            for optimizer in optimizers:
                optimizer.zero_grad()
        loss = usual(scaler, model, inputs, labels)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        if len(made) > 0:
            eye.stepped(loss)
        made.clear()
    return state_of(model)


def found(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A scale that starts far too high, so that many steps in a row are skipped; gradients become zero, and not None."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(fault, 0.1), momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if fault else 2.0**36, growth_interval=5)
    for inputs, labels in batches(steps, fault):
        if fault != "zero_grad":
            optimizer.zero_grad(set_to_none=False)
        loss = usual(scaler, model, inputs, labels)
        scaler.step(optimizer)
        if updated(scaler):
            eye.stepped(loss)
    return state_of(model)


def fused(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """An optimizer that unscales gradients itself, and skips the step itself."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate(fault, 3e-3), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if fault else 2.0**30, growth_interval=10)
    for inputs, labels in batches(steps, fault):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = usual(scaler, model, inputs, labels)
        scaler.step(optimizer)
        if updated(scaler):
            eye.stepped(loss)
    return state_of(model)


def _stack(name: str, title: str, train: Callable[[Eye, str, int], dict[str, torch.Tensor]], *faults: str) -> Stack:
    rules = {
        "rate": "lr-too-high",
        "overflow": "fp16-overflow",
        "scaled": "clipping-misplaced",
        "zero_grad": "missing-zero-grad",
    }
    named = {fault: rules[fault] for fault in faults}
    return Stack(name=name, title=title, section=SECTION, train=train, faults=named, steps=60)


STACKS = (
    _stack("fp16-scaler", "autocast to float16, `GradScaler`", scaled, "rate", "overflow"),
    _stack("fp16-scaler-clipping", "`GradScaler`, `unscale_` and clipping", clipped, "rate", "scaled"),
    _stack(
        "fp16-scaler-accumulation",
        "`GradScaler`, gradients accumulated over three micro-batches",
        accumulated,
        "rate",
        "zero_grad",
    ),
    _stack("fp16-scaler-losses", "`GradScaler`, two losses with a backward call each", several_losses, "rate", "zero_grad"),
    _stack("fp16-scaler-optimizers", "one `GradScaler` for two optimizers", two_optimizers, "zero_grad", "overflow"),
    _stack("fp16-scaler-search", "`GradScaler` that starts far too high and grows again", found, "rate", "zero_grad"),
    _stack("fp16-scaler-fused", "`GradScaler` with a fused optimizer", fused, "rate", "zero_grad"),
)
